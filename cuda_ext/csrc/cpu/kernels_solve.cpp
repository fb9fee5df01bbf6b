// One row's least squares (see kernels.h). The fast path factorises the Gram matrix of the smaller side and
// refines with residuals taken from the rows themselves; when its checks fail, the careful path of ../solve.h decides.
// Rows of float32 get a Gram matrix in float32 first: where the refinement converges from it, it ends at the same solution.
#include "row_tall.h"
#include "row_wide.h"

namespace saltlm::cpu {
namespace {

template <class T>
LstsqRow solve_as(const LstsqInput& input, int64_t row, const int32_t* ids, int64_t count, double* coefficients,
                  Arena& arena) {
  const int64_t width = input.wanted.width, span = padded(width);
  const T* e = static_cast<const T*>(input.wanted.data) + row * width;
  const LstsqRow nothing{0, 1.0f, kNone, false};
  LstsqRow not_finite = nothing;
  not_finite.status = kNotFinite;
  clear(coefficients, count);
  double peak = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double one = input.anchor_peak[ids[k]];
    if (one > peak) peak = one;
  }
  if (peak * 0 != 0 || !all_finite(e, width)) return not_finite;
  if (peak == 0) return nothing;

  double* vectors = reserve(arena, 0, 3 * span + count + 16);
  if (vectors == nullptr) return {0, 1.0f, kNone, true};
  Problem<T> p{input, arena, ids, count, width, span, 1.0, 0.0, vectors, vectors + span, vectors + 2 * span,
               vectors + 3 * span, nothing};
  if (sizeof(T) == sizeof(double)) {
    int exponent;
    __builtin_frexp(peak, &exponent);
    p.scale = __builtin_ldexp(1.0, exponent < -1000 ? 1000 : -exponent);
  }
  clear(vectors, 3 * span);
  if (input.center) {
    for (int64_t k = 0; k < count; ++k) axpy(p.scale, p.anchor(k), p.mean, width);
    for (int64_t i = 0; i < width; ++i) p.mean[i] /= static_cast<double>(count);
  }
  for (int64_t i = 0; i < width; ++i) p.wanted[i] = e[i] * p.scale - p.mean[i];

  const int64_t m = count - (input.center ? 1 : 0);
  if (m == 0)
    p.c[0] = 0, p.result.status = kFull;
  else if (m <= width)
    solve_wide(p);
  else
    solve_tall(p);
  lap(p.arena.laps, kSolve);
  if (p.result.out_of_memory) return p.result;

  const double fold = input.center ? 1 / static_cast<double>(count) : 0;
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += p.c[k];
  const double correction = input.center ? -sum / static_cast<double>(count) : 0;  // the sum is 0 but for rounding
  for (int64_t k = 0; k < count; ++k) coefficients[k] = p.c[k] + correction + fold;
  if (!all_finite(coefficients, count)) {
    clear(coefficients, count);
    return not_finite;
  }
  double* whole = p.wanted;  // with its mean again
  if (input.center)
    for (int64_t i = 0; i < width; ++i) whole[i] = e[i] * p.scale;
  const double norm = dot(whole, whole, width);
  if (p.left < 0) {
    memcpy(p.rest, whole, static_cast<size_t>(width) * sizeof(double));
    for (int64_t k = 0; k < count; ++k) axpy(-coefficients[k] * p.scale, p.anchor(k), p.rest, width);
    p.left = dot(p.rest, p.rest, width);
  }
  p.result.residual = norm > 0 ? static_cast<float>(__builtin_sqrt(p.left / norm)) : 0.0f;
  lap(arena.laps, kResidual);
  return p.result;
}

LstsqRow solve_row(const LstsqInput& input, int64_t row, const int32_t* ids, int64_t count, double* coefficients,
                   Arena& arena) {
  return input.wanted.is_double ? solve_as<double>(input, row, ids, count, coefficients, arena)
                                : solve_as<float>(input, row, ids, count, coefficients, arena);
}

bool add_gram(const Matrix& rows, int64_t begin, int64_t end, double* gram, Arena& arena) {
  double* block = reserve(arena, 1, padded(rows.width) * kBlockStride);
  if (block == nullptr) return false;
  clear(block, padded(rows.width) * kBlockStride);
  if (rows.is_double)
    add_gram_of(static_cast<const double*>(rows.data), rows.width, nullptr, begin, end, 1, nullptr, gram, block);
  else
    add_gram_of(static_cast<const float*>(rows.data), rows.width, nullptr, begin, end, 1, nullptr, gram, block);
  return true;
}

}  // namespace

extern const SolveKernels SALTLM_JOIN(solve_, SALTLM_LEVEL) = {solve_row, add_gram};

}  // namespace saltlm::cpu
