// The inner loops of the CPU operators, compiled once per instruction-set level; the level is chosen at run time.
//
// Each kernels*.cpp file is compiled several times (SALTLM_LEVEL names the level). Everything in it is in an anonymous
// namespace except its table of functions, and it uses no inline function or template that another file may instantiate
// too: the linker keeps only one copy of such a function, perhaps one with instructions that the machine lacks. Kernels
// throw no exceptions and include no torch header.
#pragma once

#include <cstdint>

#include "../contract.h"

namespace saltlm::cpu {

// A contiguous row-major matrix of float32 or float64.
struct Matrix {
  const void* data;
  bool is_double;
  int64_t rows, width;
};

// Stages of the operators whose time is measured, in the order of saltlm.operators.profile.STAGES.
enum Stage {
  kPrepare,
  kProduct,
  kFilter,
  kExactCosines,
  kSortAndWeigh,
  kGather,
  kGram,
  kFactor,
  kSolve,
  kResidual,
  kApply,
  kStageCount
};

// Processor time in nanoseconds of one thread in each stage, and when the current stage started.
struct StageTimes {
  int64_t nanoseconds[kStageCount] = {};
  int64_t started;
};

// Adds the time since the previous stage ended to `stage`. `times` is null, and nothing is done, without a profile.
void end_stage(StageTimes* times, Stage stage);

// Number of rows that the int16 product takes at a time.
constexpr int64_t kTileRows = 48;

struct SimilarityKernels {
  // For row i of `rows` in [begin, end): 1 / norm, or 0 for a zero or non-finite row, and, unless `directions` is null,
  // its unit vector in float32 at directions[i * width].
  void (*normalize)(const Matrix& rows, int64_t begin, int64_t end, double* inverse, float* directions);
  // The int16 product: coordinates of unit vectors are rounded to multiples of about 2^-15, products of pairs are
  // summed in int32. It has twice the rate of a float32 product on every x86-64, and its error follows from the
  // rounding. panel_width is 0 where the machine does not have it.
  int64_t panel_width;  // anchors of one panel; the number of anchors is padded to a multiple of it
  // Unit vectors of the rows ids[i] (or i if ids is null), i in [begin, end), as pairs of int16. `interleave` rows form
  // a panel, in which their pairs alternate; a panel is P / 2 (rounded up) pairs deep. errors[i]: norm of the rounding
  // error.
  void (*to_int16)(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse,
                   int64_t interleave, int16_t* out, double* errors);
  // values[r * stride + a] = product of kTileRows rows (interleave 1) with `count` anchors (interleave panel_width,
  // count a multiple of it). maxima[r * maxima_stride + ...]: the largest of every twelve values; maxima_stride is
  // maxima_size(count).
  void (*product_int16)(const int16_t* rows, const int16_t* panels, int64_t count, int64_t pairs, float* values,
                        int64_t stride, float* maxima, int64_t maxima_stride);
  int64_t (*maxima_size)(int64_t count);
  // Unit vectors of the same rows in bfloat16, `stride` elements apart and padded with zeros. errors as above.
  void (*to_bfloat16)(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse,
                      int64_t stride, uint16_t* out, double* errors);
  // Writes the indices of all values that can be in the sparsemax support of the exact cosines, where each value is
  // within `slack` of its cosine, and returns their number. `survivors` and `candidates` have room for `count` values,
  // `maxima` for count / 64 + 1.
  int64_t (*filter_float32)(const float* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                            float* maxima);
  // The same, in no fixed order, for one row of product_int16 of which the first `count` values belong to anchors;
  // `maxima` is the row's maxima.
  int64_t (*filter_int16)(const float* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                          float* maxima);
  // The same as filter_float32 for values in bfloat16.
  int64_t (*filter_bfloat16)(const uint16_t* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                             float* maxima);
  // out[i] = <row, anchors[ids[i]]> * inverse[ids[i]] * row_inverse in float64, summed in an order that depends on the
  // width only. `scratch` holds width + 64 doubles.
  void (*exact_cosines)(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors,
                        const double* inverse, const int32_t* ids, int64_t count, double* out, double* scratch);
};

// Memory of one thread that grows and is reused from row to row: one region for the fast path, one for the careful
// path. Kernels cannot throw, so they report when memory runs out. The owner releases both regions with free().
struct Arena {
  double* data[2] = {nullptr, nullptr};
  int64_t capacity[2] = {0, 0};
  StageTimes* times = nullptr;
};

struct LstsqInput {
  Matrix new_rows;               // N x E
  Matrix anchors;                // A x E
  const double* anchor_max_abs;  // A: largest absolute value of the row; infinity for a row with a NaN or infinity
  double ridge;
  bool center;
  const double* full_gram;  // lower triangle of anchors^T anchors as add_gram computes it, or null
};

struct LstsqRow {
  int32_t rank;
  float residual;
  uint8_t status;
  bool out_of_memory;
};

struct SolveKernels {
  // Least squares of row `row` on the anchors ids[0 .. count). Writes coefficients[0 .. count).
  LstsqRow (*solve)(const LstsqInput& input, int64_t row, const int32_t* ids, int64_t count, double* coefficients,
                    Arena& arena);
  // Adds the lower triangle of the sum of row^T row over rows [begin, end) to `gram`, which has E rows and columns,
  // both rounded up to a multiple of 8. Returns false when memory runs out.
  bool (*add_gram)(const Matrix& rows, int64_t begin, int64_t end, double* gram, Arena& arena);
};

struct RowKernels {
  // Largest absolute value of each row in [begin, end), or infinity for a row that is not finite.
  void (*max_abs)(const Matrix& rows, int64_t begin, int64_t end, double* out);
  // out = sum_k coefficients[k] rows[ids[k]], accumulated in float64 in the order of k. type: 0 float32, 1 float64,
  // 2 bfloat16. `sums` holds width + 64 doubles. `out` is float32, or float64 for type 1. Returns whether `out` is
  // finite.
  bool (*combine)(const void* rows, int type, int64_t width, const int32_t* ids, const double* coefficients,
                  int64_t count, double* sums, void* out);
};

constexpr int64_t kPursuitPanel = 32, kPursuitCandidates = 192, kPursuitGuesses = 8, kPursuitInterleave = 8;

struct PursuitKernels {
  // Writes the picks of one row, at most `max_picks` (up to kMaxPicks), and returns their number, or -1 where float32
  // is not precise enough. gram [anchors, anchors]. products: the row's products with all anchors, padded with zeros to
  // a multiple of kPursuitPanel; overwritten. square: the row's squared norm. scratch: (max_picks + kPursuitInterleave)
  // x padded anchors + (max_picks + kPursuitGuesses + 2) x kPursuitCandidates floats.
  int64_t (*pursue)(const float* gram, int64_t anchors, double square, int64_t max_picks, float* products,
                    float* scratch, int32_t* picks);
};

// Whether torch's bfloat16 product uses matrix tiles (AMX), which makes it many times faster than any other product.
bool has_fast_bfloat16();
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
