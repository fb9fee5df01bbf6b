// One row's least squares (see kernels.h). The fast path factorises the Gram matrix of the smaller side and refines the
// solution with residuals computed from the rows. When its checks fail, the careful path (../solve.h) solves the row.
// Rows of float32 start with a Gram matrix in float32: where its refinement converges, it reaches the same solution.
#include "row_tall.h"
#include "row_wide.h"

namespace saltlm::cpu {
namespace {

template <class T>
LstsqRow solve_as(const LstsqInput& input, int64_t row, const int32_t* ids, int64_t count, double* coefficients,
                  Arena& arena) {
  const int64_t width = input.new_rows.width, padded_width = padded(width);
  const T* e = static_cast<const T*>(input.new_rows.data) + row * width;
  const LstsqRow no_solution{0, kNothingExplained, kNoSupport, false};
  LstsqRow non_finite = no_solution;
  non_finite.status = kNonFinite;
  clear(coefficients, count);
  double max_abs = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double value = input.anchor_max_abs[ids[k]];
    if (value > max_abs) max_abs = value;
  }
  if (max_abs * 0 != 0 || !all_finite(e, width)) return non_finite;
  if (max_abs == 0) return no_solution;

  double* vectors = reserve(arena, 0, 3 * padded_width + count + 16);
  if (vectors == nullptr) return {0, kNothingExplained, kNoSupport, true};
  Problem<T> p{input,
               arena,
               ids,
               count,
               width,
               padded_width,
               1.0,
               0.0,
               vectors,
               vectors + padded_width,
               vectors + 2 * padded_width,
               vectors + 3 * padded_width,
               no_solution};
  if (sizeof(T) == sizeof(double)) {
    int exponent;
    __builtin_frexp(max_abs, &exponent);
    p.scale = __builtin_ldexp(1.0, exponent < -1000 ? 1000 : -exponent);
  }
  clear(vectors, 3 * padded_width);
  if (input.center) {
    for (int64_t k = 0; k < count; ++k) axpy(p.scale, p.anchor(k), p.mean, width);
    for (int64_t i = 0; i < width; ++i) p.mean[i] /= static_cast<double>(count);
  }
  for (int64_t i = 0; i < width; ++i) p.target[i] = e[i] * p.scale - p.mean[i];

  const int64_t m = count - (input.center ? 1 : 0);
  if (m == 0)
    p.c[0] = 0, p.result.status = kFullRank;
  else if (m <= width)
    solve_wide(p);
  else
    solve_tall(p);
  end_stage(p.arena.times, kSolve);
  if (p.result.out_of_memory) return p.result;

  const double fold = input.center ? 1 / static_cast<double>(count) : 0;
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += p.c[k];
  const double correction = input.center ? -sum / static_cast<double>(count) : 0;  // the sum is 0 up to rounding
  for (int64_t k = 0; k < count; ++k) coefficients[k] = p.c[k] + correction + fold;
  if (!all_finite(coefficients, count)) {
    clear(coefficients, count);
    return non_finite;
  }
  double* full_target = p.target;  // the mean is added again
  if (input.center)
    for (int64_t i = 0; i < width; ++i) full_target[i] = e[i] * p.scale;
  const double norm = dot(full_target, full_target, width);
  if (p.residual_square < 0) {
    memcpy(p.residual, full_target, static_cast<size_t>(width) * sizeof(double));
    for (int64_t k = 0; k < count; ++k) axpy(-coefficients[k] * p.scale, p.anchor(k), p.residual, width);
    p.residual_square = dot(p.residual, p.residual, width);
  }
  p.result.residual = norm > 0 ? static_cast<float>(__builtin_sqrt(p.residual_square / norm)) : 0.0f;
  end_stage(arena.times, kResidual);
  return p.result;
}

LstsqRow solve_row(const LstsqInput& input, int64_t row, const int32_t* ids, int64_t count, double* coefficients,
                   Arena& arena) {
  return input.new_rows.is_double ? solve_as<double>(input, row, ids, count, coefficients, arena)
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
