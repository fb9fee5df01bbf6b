// No more neighbours than dimensions: c = (P P^T + lambda)^-1 P e. Included by kernels_solve.cpp only.
//
// Centring would leave the Gram matrix singular along (1, ..., 1). Instead a Householder reflection, which takes that direction
// to the first axis, turns the K centred rows into K - 1 rows with the same singular values:
// p_i - mean + (p_1 - mean) / (sqrt(K) - 1) for i > 1. It costs one more vector to subtract.
#pragma once

#include "narrow.h"
#include "row_problem.h"

namespace saltlm::cpu {
namespace {

// What takes the first axis out of the centred rows: row k of the reflected ones is row k + 1 plus this.
template <class T>
void reflection(const Problem<T>& p, double* shift) {
  const double factor = 1 / (__builtin_sqrt(static_cast<double>(p.count)) - 1);
  const T* first = p.anchor(0);
  for (int64_t e = 0; e < p.width; ++e) shift[e] = (first[e] * p.scale - p.mean[e]) * factor - p.mean[e];
}

// The coefficients of the `m` reflected rows are those of the rows themselves, or become them.
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

// Goes on from c, a solution by the Gram matrix of rows X (`span` numbers each) in `f`, until the steps say that it is right;
// false where they do not. Leaves in `left` how much of the row is not explained. `step` holds 2 n numbers.
template <class T>
bool refine(Problem<T>& p, const Factor& f, const double* X, int64_t m, const double* scaling, double* c, double* step,
            bool narrow) {
  const double noise = kNoise * __builtin_sqrt(dot(p.wanted, p.wanted, p.span));
  double before = scaled_norm(c, scaling, m), *gradient = step + f.n;
  for (int round = 0;; ++round) {
    memcpy(p.rest, p.wanted, static_cast<size_t>(p.span) * sizeof(double));
    add_rows(X, p.span, p.span, c, m, -1, p.rest);
    multiply(X, p.span, p.span, f.n, p.rest, step);
    if (p.ridge > 0) axpy(-p.ridge, c, step, f.n);
    memcpy(gradient, step, static_cast<size_t>(f.n) * sizeof(double));
    solve_scaled(f, scaling, step);
    const double moved = scaled_norm(step, scaling, m), size = scaled_norm(c, scaling, m);
    const int verdict = narrow ? judge_narrow(round, moved, before, size, noise) : judge(round, moved, size, noise);
    if (verdict < 0) return false;
    if (verdict > 0) {
      // |rest - step X|^2 without another pass over X: (G + lambda) step = gradient = X rest - lambda c.
      const double square = dot(p.rest, p.rest, p.span);
      p.left = square - dot(step, gradient, m) - p.ridge * (2 * dot(step, c, m) + dot(step, step, m));
      if (!(p.left > kMildLoss * square)) {
        add_rows(X, p.span, p.span, step, m, -1, p.rest);
        p.left = dot(p.rest, p.rest, p.span);
      }
    }
    axpy(1, step, c, f.n);
    if (verdict > 0) return true;
    before = moved;
  }
}

// The rows of the wide case, n of `span` numbers, those from m on zeros; and where they are in float32, for a Gram matrix in
// that: `ld` numbers each. Where nothing is taken off them the anchors' own rows serve, else copies in `narrow` do. c gets the
// products with e, while a row is at hand.
template <class T>
void gather_wide(const Problem<T>& p, double* X, double* c, const float** places, float* narrow, int64_t ld) {
  const int64_t skip = p.input.center ? 1 : 0, m = p.count - skip, n = padded(m);
  const int64_t width = p.width, span = p.span;
  const double scale = p.scale;  // of its own: as a member it could change with every number that is written
  const bool copied = skip || ld != width;
  const double* __restrict shift = p.rest;
  if (skip) reflection(p, p.rest);
  for (int64_t k = 0; k < m; ++k) {
    const T* source = p.anchor(k + skip);
    double* __restrict row = X + k * span;
    if (k + 2 < m)  // rows lie anywhere in memory
      for (int64_t e = 0; e < width; e += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p.anchor(k + skip + 2) + e);
    if (skip) {
      for (int64_t e = 0; e < width; ++e) row[e] = source[e] * scale + shift[e];
    } else {
      for (int64_t e = 0; e < width; ++e) row[e] = source[e] * scale;
    }
    clear(row + width, span - width);
    c[k] = dot(row, p.wanted, span);
    if (places == nullptr) continue;
    float* other = narrow + k * ld;
    places[k] = copied ? other : static_cast<const float*>(static_cast<const void*>(source));
    if (!copied) continue;
    for (int64_t e = 0; e < width; ++e) other[e] = static_cast<float>(row[e]);
    memset(other + width, 0, static_cast<size_t>(ld - width) * sizeof(float));
  }
  clear(X + m * span, (n - m) * span);
  clear(c + m, n - m);
  if (places == nullptr) return;
  memset(narrow + m * ld, 0, static_cast<size_t>(ld) * sizeof(float));
  for (int64_t k = m; k < n; ++k) places[k] = narrow + m * ld;
}

template <class T>
void solve_wide(Problem<T>& p) {
  const int64_t m = p.count - (p.input.center ? 1 : 0), n = padded(m), span = p.span;
  const bool narrow = sizeof(T) == sizeof(float);
  const int64_t ld = (p.width + kNarrow - 1) / kNarrow * kNarrow, floats = narrow ? n + (n + 1) * ld / 2 + 8 : 0;
  // Region 0 already holds the vectors; everything of this size comes from region 1.
  double* X = reserve(p.arena, 1, n * span + n * n + n * kPanel + 6 * n + floats + careful_doubles(m, p.width));
  if (X == nullptr) {
    p.result.out_of_memory = true;
    return;
  }
  Factor f{X + n * span, nullptr, n, n, 1};
  f.inverse = f.matrix + n * n;
  double* scaling = f.inverse + n * kPanel;
  double* c = scaling + n;
  double* step = c + n;
  double* work = step + 4 * n;
  const float** places = narrow ? reinterpret_cast<const float**>(work) : nullptr;
  gather_wide(p, X, c, places, reinterpret_cast<float*>(work + n), ld);
  lap(p.arena.laps, kGather);

  bool accepted = false;
  for (int attempt = narrow ? 0 : 1; attempt < 2 && !accepted; ++attempt) {
    if (attempt == 0) {
      narrow_products(places, n, ld, f.matrix, n);
    } else {
      clear(f.matrix, n * n);
      add_products(X, n, span, span, f.matrix, n);
    }
    double trace = 0;
    if (attempt == 1)
      for (int64_t i = 0; i < m; ++i) trace += f.matrix[i * n + i];
    else if (p.input.ridge > 0)  // it is part of the solution, so float32 will not do
      trace = dot(X, X, m * span);
    p.ridge = p.input.ridge * trace / static_cast<double>(p.count);
    lap(p.arena.laps, kGram);
    f.smallest_pivot = 1;
    accepted = prepare(p, f, m, scaling, attempt == 0 ? kNarrowPivot : kPivot);
    lap(p.arena.laps, kFactor);
    if (!accepted) continue;
    if (attempt == 1) multiply(X, span, span, n, p.wanted, c);  // the first attempt may have used them up
    solve_scaled(f, scaling, c);
    accepted = refine(p, f, X, m, scaling, c, step, attempt == 0);
    lap(p.arena.laps, kSolve);
  }
  if (accepted) {
    p.result.rank = static_cast<int32_t>(m);
    p.result.status = grade(f, m, scaling, step, step + n, step + 2 * n);
  } else {
    careful(p, X, m, p.width, span, true, work, c);
  }
  lap(p.arena.laps, kSolve);
  unreflect(p, c, m);
}

}  // namespace
}  // namespace saltlm::cpu
