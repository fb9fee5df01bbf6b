// At most as many support rows as dimensions (K <= E): c = (P P^T + lambda)^-1 P e. Included by kernels_solve.cpp only.
//
// With centring, the Gram matrix is singular along (1, ..., 1). A Householder reflection that maps this direction to
// the first axis turns the K centred rows into K - 1 rows with the same singular values:
// p_i - mean + (p_1 - mean) / (sqrt(K) - 1) for i > 1. This costs one more vector addition per row.
#pragma once

#include "gram_float32.h"
#include "row_problem.h"

namespace saltlm::cpu {
namespace {

// The shift of the reflection: row k of the reflected rows is row k + 1 plus the shift.
template <class T>
void reflection(const Problem<T>& p, double* shift) {
  const double factor = 1 / (__builtin_sqrt(static_cast<double>(p.count)) - 1);
  const T* first = p.anchor(0);
  for (int64_t e = 0; e < p.width; ++e) shift[e] = (first[e] * p.scale - p.mean[e]) * factor - p.mean[e];
}

// Turns the coefficients of the m reflected rows into those of the rows. Without centring they are the same.
template <class T>
void unreflect(Problem<T>& p, const double* c, int64_t m) {
  if (!p.input.center) {
    memcpy(p.c, c, static_cast<size_t>(m) * sizeof(double));
    return;
  }
  double sum = 0;
  for (int64_t k = 0; k < m; ++k) sum += c[k];
  const double root = __builtin_sqrt(static_cast<double>(p.count));
  p.c[0] = sum / root;
  for (int64_t k = 0; k < m; ++k) p.c[k + 1] = c[k] - sum / (root * (root - 1));
}

// Refines c, a solution by the Gram matrix of the rows X (padded_width values each) in `f`, until it has converged.
// Returns false if it does not converge. Sets p.residual_square. `step` holds 2 n values.
template <class T>
bool refine(Problem<T>& p, const Factor& f, const double* X, int64_t m, const double* scaling, double* c, double* step,
            bool use_float32) {
  const double noise = kCorrectionNoise * __builtin_sqrt(dot(p.target, p.target, p.padded_width));
  double previous = scaled_norm(c, scaling, m), *gradient = step + f.n;
  for (int round = 0;; ++round) {
    memcpy(p.residual, p.target, static_cast<size_t>(p.padded_width) * sizeof(double));
    add_rows(X, p.padded_width, p.padded_width, c, m, -1, p.residual);
    rows_times(X, p.padded_width, p.padded_width, f.n, p.residual, step);
    if (p.ridge > 0) axpy(-p.ridge, c, step, f.n);
    memcpy(gradient, step, static_cast<size_t>(f.n) * sizeof(double));
    solve_scaled(f, scaling, step);
    const double correction = scaled_norm(step, scaling, m), solution = scaled_norm(c, scaling, m);
    const int verdict = use_float32 ? check_step_float32(round, correction, previous, solution, noise)
                                    : check_step(round, correction, solution, noise);
    if (verdict < 0) return false;
    if (verdict > 0) {
      // |residual - step X|^2 without another pass over X: (G + lambda) step = gradient = X residual - lambda c.
      const double square = dot(p.residual, p.residual, p.padded_width);
      p.residual_square = square - dot(step, gradient, m) - p.ridge * (2 * dot(step, c, m) + dot(step, step, m));
      if (!(p.residual_square > kMaxCancellation * square)) {
        add_rows(X, p.padded_width, p.padded_width, step, m, -1, p.residual);
        p.residual_square = dot(p.residual, p.residual, p.padded_width);
      }
    }
    axpy(1, step, c, f.n);
    if (verdict > 0) return true;
    previous = correction;
  }
}

// Gathers the rows of the wide case to X (n rows of padded_width values, zero from row m on), and their products with e
// to c while a row is in the cache. float_rows gets pointers to the same rows in float32 (`ld` values each) for the
// Gram matrix in float32: the anchors' rows themselves where nothing is subtracted and no padding is needed, otherwise
// copies in float_copies.
template <class T>
void gather_wide(const Problem<T>& p, double* X, double* c, const float** float_rows, float* float_copies, int64_t ld) {
  const int64_t skip = p.input.center ? 1 : 0, m = p.count - skip, n = padded(m);
  const int64_t width = p.width, padded_width = p.padded_width;
  const double scale = p.scale;  // a local copy: the compiler must assume that a store to a row changes the member
  const bool copies = skip || ld != width;
  const double* __restrict shift = p.residual;
  if (skip) reflection(p, p.residual);
  for (int64_t k = 0; k < m; ++k) {
    const T* source = p.anchor(k + skip);
    double* __restrict row = X + k * padded_width;
    if (k + 2 < m)  // rows are at arbitrary addresses
      for (int64_t e = 0; e < width; e += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(p.anchor(k + skip + 2) + e);
    if (skip) {
      for (int64_t e = 0; e < width; ++e) row[e] = source[e] * scale + shift[e];
    } else {
      for (int64_t e = 0; e < width; ++e) row[e] = source[e] * scale;
    }
    clear(row + width, padded_width - width);
    c[k] = dot(row, p.target, padded_width);
    if (float_rows == nullptr) continue;
    float* copy = float_copies + k * ld;
    float_rows[k] = copies ? copy : reinterpret_cast<const float*>(source);
    if (!copies) continue;
    for (int64_t e = 0; e < width; ++e) copy[e] = static_cast<float>(row[e]);
    memset(copy + width, 0, static_cast<size_t>(ld - width) * sizeof(float));
  }
  clear(X + m * padded_width, (n - m) * padded_width);
  clear(c + m, n - m);
  if (float_rows == nullptr) return;
  memset(float_copies + m * ld, 0, static_cast<size_t>(ld) * sizeof(float));
  for (int64_t k = m; k < n; ++k) float_rows[k] = float_copies + m * ld;
}

template <class T>
void solve_wide(Problem<T>& p) {
  const int64_t m = p.count - (p.input.center ? 1 : 0), n = padded(m), padded_width = p.padded_width;
  const bool use_float32 = sizeof(T) == sizeof(float);
  const int64_t ld = (p.width + kFloatLanes - 1) / kFloatLanes * kFloatLanes,
                float_doubles = use_float32 ? n + (n + 1) * ld / 2 + 8 : 0;
  // Region 0 holds the vectors already; all arrays of this function are in region 1.
  double* X = reserve(p.arena, 1,
                      n * padded_width + n * n + n * kPanel + 6 * n + float_doubles + careful_scratch_size(m, p.width));
  if (X == nullptr) {
    p.result.out_of_memory = true;
    return;
  }
  Factor f{X + n * padded_width, nullptr, n, n, 1};
  f.inverse = f.matrix + n * n;
  double* scaling = f.inverse + n * kPanel;
  double* c = scaling + n;
  double* step = c + n;
  double* work = step + 4 * n;
  const float** float_rows = use_float32 ? reinterpret_cast<const float**>(work) : nullptr;
  gather_wide(p, X, c, float_rows, reinterpret_cast<float*>(work + n), ld);
  end_stage(p.arena.times, kGather);

  bool accepted = false;
  for (int attempt = use_float32 ? 0 : 1; attempt < 2 && !accepted; ++attempt) {
    if (attempt == 0) {
      gram_float32(float_rows, n, ld, f.matrix, n);
    } else {
      clear(f.matrix, n * n);
      add_row_products(X, n, padded_width, padded_width, f.matrix, n);
    }
    double trace = 0;
    if (attempt == 1)
      for (int64_t i = 0; i < m; ++i) trace += f.matrix[i * n + i];
    else if (p.input.ridge > 0)  // the ridge is part of the solution, so float32 is not precise enough
      trace = dot(X, X, m * padded_width);
    p.ridge = p.input.ridge * trace / static_cast<double>(p.count);
    end_stage(p.arena.times, kGram);
    f.smallest_pivot = 1;
    accepted = scale_and_factorize(p, f, m, scaling, attempt == 0 ? kMinPivotFloat32 : kMinPivot);
    end_stage(p.arena.times, kFactor);
    if (!accepted) continue;
    if (attempt == 1)
      rows_times(X, padded_width, padded_width, n, p.target, c);  // the first attempt may have overwritten c
    solve_scaled(f, scaling, c);
    accepted = refine(p, f, X, m, scaling, c, step, attempt == 0);
    end_stage(p.arena.times, kSolve);
  }
  if (accepted) {
    p.result.rank = static_cast<int32_t>(m);
    p.result.status = status_of(f, m, scaling, step, step + n, step + 2 * n);
  } else {
    solve_carefully(p, X, m, p.width, padded_width, true, work, c);
  }
  end_stage(p.arena.times, kSolve);
  unreflect(p, c, m);
}

}  // namespace
}  // namespace saltlm::cpu
