// More support rows than dimensions (K > E): c = P (P^T P + lambda)^-1 e. Included by kernels_solve.cpp only.
#pragma once

#include "row_problem.h"

namespace saltlm::cpu {
namespace {

// Writes the rows ids[begin ..] (or begin .. if ids is null), minus the mean, as columns of a block [E, stride].
template <class T>
void transpose_block(const T* rows, int64_t width, const int32_t* ids, int64_t begin, int64_t count, double scale,
                     const double* mean, int64_t stride, double* block) {
  for (int64_t b = 0; b < count; b += 8) {
    const int64_t rows_here = count - b < 8 ? count - b : 8;
    const T* source[8];
    for (int64_t u = 0; u < 8; ++u) {
      const int64_t index = begin + b + (u < rows_here ? u : 0);
      source[u] = rows + (ids ? ids[index] : index) * width;
    }
    for (int64_t e = 0; e < width; ++e)
      for (int64_t u = 0; u < 8; ++u)
        block[e * stride + b + u] = u < rows_here ? source[u][e] * scale - (mean ? mean[e] : 0) : 0;
  }
}

template <class T>
void add_gram_of(const T* rows, int64_t width, const int32_t* ids, int64_t begin, int64_t end, double scale,
                 const double* mean, double* gram, double* block) {
  const int64_t n = padded(width);
  for (int64_t index = begin; index < end; index += kBlock) {
    const int64_t count = end - index < kBlock ? end - index : kBlock;
    transpose_block(rows, width, ids, index, count, scale, mean, kBlockStride, block);
    add_row_products(block, n, kBlockStride, padded(count), gram, n);
  }
}

// The Gram matrix of a support with more than half of the anchors: that of all anchors minus that of the excluded ones.
template <class T>
void complement_gram(const Problem<T>& p, double* gram, double* block, int32_t* excluded, uint8_t* is_member) {
  const int64_t all = p.input.anchors.rows, n = padded(p.width);
  memset(is_member, 0, static_cast<size_t>(all));
  for (int64_t k = 0; k < p.count; ++k) is_member[p.ids[k]] = 1;
  int64_t excluded_count = 0;
  for (int64_t i = 0; i < all; ++i)
    if (!is_member[i]) excluded[excluded_count++] = static_cast<int32_t>(i);
  clear(gram, n * n);
  add_gram_of(static_cast<const T*>(p.input.anchors.data), p.width, excluded, 0, excluded_count, p.scale, nullptr, gram,
              block);
  const double square = p.scale * p.scale;
  for (int64_t i = 0; i < p.width; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double& g = gram[i * n + j];
      g = p.input.full_gram[i * n + j] * square - g;
      if (p.input.center) g -= static_cast<double>(p.count) * p.mean[i] * p.mean[j];
    }
}

// Factorises the Gram matrix in `f` and refines. Results: c in p.c, the residual in p.residual. vectors: scaling, y and
// step (n each).
template <class T>
bool solve_tall_with(Problem<T>& p, Factor& f, double* vectors) {
  const int64_t n = f.n;
  double *scaling = vectors, *y = vectors + n, *step = vectors + 2 * n;
  double trace = 0;
  for (int64_t i = 0; i < p.width; ++i) trace += f.matrix[i * n + i];
  p.ridge = p.input.ridge * trace / static_cast<double>(p.count);
  end_stage(p.arena.times, kGram);
  const bool factorized = scale_and_factorize(p, f, p.width, scaling, kMinPivot);
  end_stage(p.arena.times, kFactor);
  if (!factorized) return false;
  clear(y, n);
  clear(p.c, p.count);
  memcpy(p.residual, p.target, static_cast<size_t>(n) * sizeof(double));
  const double noise = kCorrectionNoise * __builtin_sqrt(dot(p.target, p.target, n));
  for (int round = -1;; ++round) {  // round -1 computes the first solution
    memcpy(step, p.residual, static_cast<size_t>(n) * sizeof(double));
    axpy(-p.ridge, y, step, n);
    solve_scaled(f, scaling, step);
    axpy(1, step, y, n);
    for (int64_t e = 0; e < p.width; ++e) step[e] *= p.scale;
    const double shift = dot(p.mean, step, p.width) / p.scale;
    double correction_square = 0, solution_square = 0, sum = 0;
    for (int64_t k = 0; k < p.count; ++k) {
      const T* row = p.anchor(k);
      if (k + 2 < p.count) __builtin_prefetch(p.anchor(k + 2));
      const double change = dot(row, step, p.width) - shift;
      p.c[k] += change;
      correction_square += change * change;
      solution_square += p.c[k] * p.c[k];
      sum += change;
      axpy(-change * p.scale, row, p.residual, p.width);
    }
    axpy(sum, p.mean, p.residual, p.width);
    if (round < 0) continue;
    const int verdict =
        check_step(round, __builtin_sqrt(correction_square), __builtin_sqrt(solution_square), noise * scaling[0]);
    if (verdict != 0) return verdict > 0;
  }
}

template <class T>
void solve_tall(Problem<T>& p) {
  const int64_t n = padded(p.width), all = p.input.anchors.rows;
  const bool complement = p.input.full_gram != nullptr && 2 * p.count > all;
  const int64_t list_doubles = complement ? all / 2 + all / 8 + 64 : 0;
  double* gram = reserve(p.arena, 1, n * n + n * kPanel + 6 * n + n * kBlockStride + list_doubles);
  if (gram == nullptr) {
    p.result.out_of_memory = true;
    return;
  }
  Factor f{gram, gram + n * n, n, n, 1};
  double* vectors = f.inverse + n * kPanel;
  double* block = vectors + 6 * n;
  clear(block, n * kBlockStride);
  bool accepted = false;
  if (complement) {
    int32_t* excluded = reinterpret_cast<int32_t*>(block + n * kBlockStride);
    complement_gram(p, gram, block, excluded, reinterpret_cast<uint8_t*>(excluded + all));
    accepted = solve_tall_with(p, f, vectors);
  }
  if (!accepted) {
    clear(gram, n * n);
    add_gram_of(static_cast<const T*>(p.input.anchors.data), p.width, p.ids, 0, p.count, p.scale,
                p.input.center ? p.mean : nullptr, gram, block);
    accepted = solve_tall_with(p, f, vectors);
  }
  if (accepted) {
    p.result.rank = static_cast<int32_t>(p.width);
    p.result.status = status_of(f, p.width, vectors, vectors + n, vectors + 2 * n, vectors + 3 * n);
    return;
  }
  const int64_t length = padded(p.count);
  double* X = reserve(p.arena, 1, n * length + careful_scratch_size(p.width, p.count));
  if (X == nullptr) {
    p.result.out_of_memory = true;
    return;
  }
  transpose_block(static_cast<const T*>(p.input.anchors.data), p.width, p.ids, 0, p.count, p.scale,
                  p.input.center ? p.mean : nullptr, length, X);
  solve_carefully(p, X, p.width, p.count, length, false, X + n * length, p.c);
}

}  // namespace
}  // namespace saltlm::cpu
