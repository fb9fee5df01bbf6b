// The hot loops of the CPU operators, compiled once per instruction-set level and chosen once at run time.
//
// A kernels*.cpp file is compiled several times (SALTLM_LEVEL names the level), so everything in it lives in an anonymous
// namespace but for its table, and it uses no inline function or template that other files could share: the linker would
// keep one copy, perhaps the one with instructions that the machine lacks. It throws nothing and includes no torch header.
#pragma once

#include <cstdint>

namespace saltlm::cpu {

// A contiguous row-major matrix of float32 or float64.
struct Matrix {
  const void* data;
  bool is_double;
  int64_t rows, width;
};

// Where an operator's time goes, in the order of saltlm.ops_profile.STAGES.
enum Stage { kPrepare, kProduct, kFilter, kExact, kSettle, kGather, kGram, kFactor, kSolve, kResidual, kApply, kStages };

// Processor time of one thread's work on each stage, in nanoseconds, and when the last stage ended.
struct Laps {
  int64_t spent[kStages] = {};
  int64_t last;
};

// The time since the last stage ended counts as `stage`. Does nothing with the null pointer that there is unless somebody
// asked for a profile.
void lap(Laps* laps, Stage stage);

// Rows that the integer product takes at a time.
constexpr int64_t kTile = 48;

struct SimilarityKernels {
  // Row i of `rows` in [begin, end): its inverse length, 0 for a zero or non-finite one; its direction in float32 to
  // directions[i * width] where `directions` is given.
  void (*measure)(const Matrix& rows, int64_t begin, int64_t end, double* inverse, float* directions);
  // The integer product: directions rounded to multiples of 2^-15 and a little, products of pairs summed in int32. Twice
  // the rate of a float32 product on every x86-64, with an error known from the rounding. 0 lanes: not on this machine.
  int64_t lanes;  // anchors side by side in one panel; their count is padded to a multiple of it
  // Directions of the rows ids[i] (or i without ids), i in [begin, end), as pairs of int16: `side` rows side by side, each
  // panel P / 2 (rounded up) pairs deep. errors[i] is the length of what the rounding took away.
  void (*quantize)(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse, int64_t side,
                   int16_t* out, double* errors);
  // values[r * stride + a] = product of kTile rows (side 1) with `count` anchors (side `lanes`, count a multiple of it), and
  // maxima[r * sifted + ...], the largest of every few of them; `sifted` is `sieve_size(count)`.
  void (*product)(const int16_t* rows, const int16_t* panels, int64_t count, int64_t pairs, float* values, int64_t stride,
                  float* maxima, int64_t sifted);
  int64_t (*sieve_size)(int64_t count);
  // Directions of the same rows in bfloat16, `stride` elements apart and padded with zeros up to it; errors as above.
  void (*narrow)(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse, int64_t stride,
                 uint16_t* out, double* errors);
  // Indices of all values that can be in the sparsemax support of the exact cosines, where each value is within `slack` of
  // its cosine. `survivors` and `candidates` hold `count` values, `maxima` count / 64 + 1. Returns how many survive.
  int64_t (*survivors)(const float* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                       float* maxima);
  // The same in no order from one row of `product`, of whose values the first `count` are anchors'; `maxima` is its row.
  int64_t (*sieve)(const float* values, int64_t count, double slack, int32_t* survivors, float* candidates, float* maxima);
  // `survivors` from values in bfloat16.
  int64_t (*narrow_survivors)(const uint16_t* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                              float* maxima);
  // cosines[i] = <row, anchors[ids[i]]> * inverse[ids[i]] * row_inverse in float64, in an order that depends on the width
  // alone. `scratch` holds width + 64 doubles.
  void (*cosines)(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors, const double* inverse,
                  const int32_t* ids, int64_t count, double* cosines, double* scratch);
};

// Memory of one thread that grows and is reused from row to row: one region for the fast path, one for the careful one.
// Kernels cannot throw, so they report when memory ran out. The owner frees both with free().
struct Arena {
  double* data[2] = {nullptr, nullptr};
  int64_t capacity[2] = {0, 0};
  Laps* laps = nullptr;
};

struct LstsqInput {
  Matrix wanted;              // N x E
  Matrix anchors;             // A x E
  const double* anchor_peak;  // A: largest magnitude in the row; infinity for a row with a NaN or infinity
  double ridge;
  bool center;
  const double* whole_gram;   // lower triangle of anchors^T anchors as add_gram makes it, or null
};

struct LstsqRow {
  int32_t rank;
  float residual;
  uint8_t status;
  bool out_of_memory;
};

struct SolveKernels {
  // Least squares of row `row` on the anchors ids[0 .. count); fills coefficients[0 .. count).
  LstsqRow (*solve)(const LstsqInput& input, int64_t row, const int32_t* ids, int64_t count, double* coefficients,
                    Arena& arena);
  // gram += the lower triangle of sum over rows [begin, end) of row^T row; `gram` has E rows and columns, both rounded up to
  // a multiple of 8. False when memory ran out.
  bool (*add_gram)(const Matrix& rows, int64_t begin, int64_t end, double* gram, Arena& arena);
};

struct RowKernels {
  // Largest magnitude of each row in [begin, end), infinity where one is not finite.
  void (*peaks)(const Matrix& rows, int64_t begin, int64_t end, double* peaks);
  // out = sum_k coefficients[k] rows[ids[k]], accumulated in float64 in the order of k; type 0 float32, 1 float64,
  // 2 bfloat16. `sums` holds width + 64 doubles; `out` is float32, or float64 for type 1. Whether all of it is finite.
  bool (*combine)(const void* rows, int type, int64_t width, const int32_t* ids, const double* coefficients,
                  int64_t count, double* sums, void* out);
};

constexpr int64_t kPursuitMost = 256, kPursuitPanel = 32, kPursuitCandidates = 192, kPursuitGuesses = 8,
                  kPursuitTogether = 8;

struct PursuitKernels {
  // Picks of one row, at most `most` (up to kPursuitMost), and how many: -1 where float32 cannot tell how to go on. `gram` is
  // anchors x anchors, `products` holds the row's with all anchors and zeros up to a multiple of kPursuitPanel, and is
  // used up; `square` is the row's squared norm. `scratch` holds (most + kPursuitTogether) x padded anchors +
  // (most + kPursuitGuesses + 2) x kPursuitCandidates floats.
  int64_t (*pursue)(const float* gram, int64_t anchors, double square, int64_t most, float* products, float* scratch,
                    int32_t* picks);
};

// Whether torch's bfloat16 product runs on matrix tiles (AMX), many times faster than any other product.
bool fast_bfloat16();
const SimilarityKernels& similarity_kernels();
const SolveKernels& solve_kernels();
const RowKernels& row_kernels();
const PursuitKernels& pursuit_kernels();

#define SALTLM_JOIN_(a, b) a##b
#define SALTLM_JOIN(a, b) SALTLM_JOIN_(a, b)
extern const SimilarityKernels similarity_base, similarity_avx2, similarity_avx512;
extern const SolveKernels solve_base, solve_avx2, solve_avx512;
extern const RowKernels rows_base, rows_avx2, rows_avx512;
extern const PursuitKernels pursuit_base, pursuit_avx2, pursuit_avx512;

}  // namespace saltlm::cpu
