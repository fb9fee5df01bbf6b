// One row's least squares: what the wide and the tall case share. Included by kernels_solve.cpp only.
#pragma once

#include <stdlib.h>

#include "../contract.h"
#include "../solve.h"
#include "dense.h"
#include "kernels.h"

namespace saltlm::cpu {
namespace {

// For a Gram matrix in float32: pivots below this may be rounding error, and each correction must be at most this share
// of the previous one.
constexpr double kMinPivotFloat32 = 1e-4, kMaxCorrectionRatioFloat32 = 1e-2;
constexpr int kMaxRefinementsFloat32 = 6;
// A difference of squares that is at least this share of the minuend has lost at most one decimal digit.
constexpr double kMaxCancellation = 0.1;
// not a power of two, so that columns do not map to one cache set
constexpr int64_t kBlock = 128, kBlockStride = kBlock + kPadding;

double* reserve(Arena& arena, int region, int64_t doubles) {
  if (arena.capacity[region] < doubles) {
    free(arena.data[region]);
    const int64_t rounded = (doubles + doubles / 4 + 7) / 8 * 8;
    arena.data[region] = static_cast<double*>(aligned_alloc(64, static_cast<size_t>(rounded) * sizeof(double)));
    arena.capacity[region] = arena.data[region] ? rounded : 0;
  }
  return arena.data[region];
}

inline void clear(double* p, int64_t n) { memset(p, 0, static_cast<size_t>(n) * sizeof(double)); }

struct OneThread {
  static constexpr int64_t rank() { return 0; }
  static constexpr int64_t size() { return 1; }
  void sync() const {}
  double dot(const double* a, const double* b, int64_t n) const { return ::dot(a, b, n); }
  void axpy(double f, const double* x, double* y, int64_t n) const { ::axpy(f, x, y, n); }
  void rotate(double* a, double* b, double c, double s, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const double x = a[i], y = b[i];
      a[i] = c * x - s * y;
      b[i] = s * x + c * y;
    }
  }
  void swap(double* a, double* b, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const double x = a[i];
      a[i] = b[i];
      b[i] = x;
    }
  }
};

// One row's problem. Vectors of length E are padded with zeros to `padded_width`.
template <class T>
struct Problem {
  const LstsqInput& input;
  Arena& arena;
  const int32_t* ids;
  int64_t count, width, padded_width;
  double scale;      // a power of two, 1 for float32: keeps squares of float64 values finite
  double ridge;      // the ridge term lambda
  double* target;    // padded_width: e, centred
  double* mean;      // padded_width
  double* residual;  // padded_width: e - c P, or its value before the last step of a refinement
  double* c;         // count + 8
  LstsqRow result;
  double residual_square = -1;  // squared norm of e - c P; negative where it is not known

  const T* anchor(int64_t k) const { return static_cast<const T*>(input.anchors.data) + ids[k] * width; }
};

// Scales G to a unit diagonal and factorises it. scaling gets 1 / sqrt(diagonal); the first `size` columns are real,
// the others padding. Returns false where a check fails.
template <class T>
bool scale_and_factorize(const Problem<T>& p, Factor& f, int64_t size, double* scaling, double min_pivot) {
  double largest = 0, smallest = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double d = f.matrix[i * f.ld + i] + p.ridge;
    if (i == 0 || d < smallest) smallest = d;
    if (i == 0 || d > largest) largest = d;
    scaling[i] = 1 / __builtin_sqrt(d);
  }
  if (!(smallest > kMinNormRatio * kMinNormRatio * largest)) return false;
  for (int64_t i = 0; i < size; ++i) {
    double* row = f.matrix + i * f.ld;
    for (int64_t j = 0; j < i; ++j) row[j] *= scaling[i] * scaling[j];
    row[i] = 1;
  }
  for (int64_t i = size; i < f.n; ++i) {
    clear(f.matrix + i * f.ld, i);
    f.matrix[i * f.ld + i] = scaling[i] = 1;
  }
  return factorize(f, min_pivot);
}

inline void solve_scaled(const Factor& f, const double* scaling, double* x) {
  for (int64_t i = 0; i < f.n; ++i) x[i] *= scaling[i];
  solve(f, x);
  for (int64_t i = 0; i < f.n; ++i) x[i] *= scaling[i];
}

inline double scaled_norm(const double* x, const double* scaling, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] / scaling[i] * (x[i] / scaling[i]);
  return __builtin_sqrt(sum);
}

// Judges a refinement step by the norms of its correction and of the solution: -1 give up, 1 converged, 0 continue.
inline int check_step(int round, double correction, double solution, double noise) {
  if (!(correction <= kMaxFirstCorrection * solution + noise)) return -1;
  if (correction <= kConverged * solution + noise) return 1;
  return round + 1 == kMaxRefinements ? -1 : 0;
}

// Status of an accepted fast solution. The condition number is estimated where a small pivot makes it doubtful.
uint8_t status_of(Factor& f, int64_t size, const double* scaling, double* x, double* y, double* diagonal) {
  if (f.smallest_pivot > kSafePivot || size == 0) return kFullRank;
  for (int64_t i = 0; i < size; ++i) {
    double* row = f.matrix + i * f.ld;
    for (int64_t j = 0; j <= i; ++j) row[j] /= scaling[i];
    diagonal[i] = row[i];
  }
  OneThread team;
  double largest, smallest;
  estimate_extremes(team, f.matrix, size, f.ld, diagonal, x, y, &largest, &smallest);
  return largest > kIllCondition * smallest ? kIllConditioned : kFullRank;
}

// Solves on the careful path. X as in ../solve.h; `work` holds careful_scratch_size(n, len) doubles.
template <class T>
void solve_carefully(Problem<T>& p, double* X, int64_t n, int64_t len, int64_t ld, bool wide, double* work, double* c) {
  CarefulScratch w;
  const int64_t long_side = n > len ? n : len;
  w.diagonal = work;
  w.tau = w.diagonal + n;
  w.norms = w.tau + n;
  w.vector = w.norms + n;
  w.other = w.vector + n;
  w.order = reinterpret_cast<int64_t*>(w.other + n);
  w.right = w.other + 2 * n;
  w.square = w.right + long_side;
  double floor = 0;
  if (p.input.center) {
    for (int64_t k = 0; k < p.count; ++k) {
      double square = 0;
      const T* row = p.anchor(k);
      for (int64_t e = 0; e < p.width; ++e) square += row[e] * p.scale * (row[e] * p.scale);
      if (square > floor) floor = square;
    }
    floor = __builtin_sqrt(floor);
  }
  OneThread team;
  const double relative = static_cast<double>(p.count > p.width ? p.count : p.width) * kEpsilon;
  const Outcome outcome = careful_lstsq(team, X, n, len, ld, wide, p.target, p.ridge, relative, floor, w, c);
  p.result.rank = static_cast<int32_t>(outcome.rank);
  p.result.status = outcome.rank < n ? kRankDeficient : outcome.condition > kIllCondition ? kIllConditioned : kFullRank;
}

inline int64_t careful_scratch_size(int64_t n, int64_t len) { return 7 * n + (n > len ? n : len) + n * n + 8; }

// check_step for a Gram matrix in float32; the ratio of two successive corrections predicts the remaining error.
inline int check_step_float32(int round, double correction, double previous, double solution, double noise) {
  if (!(correction <= kMaxCorrectionRatioFloat32 * previous + noise)) return -1;
  if (correction * correction <= kConverged * solution * previous + noise * previous) return 1;
  return round + 1 == kMaxRefinementsFloat32 ? -1 : 0;
}

}  // namespace
}  // namespace saltlm::cpu
