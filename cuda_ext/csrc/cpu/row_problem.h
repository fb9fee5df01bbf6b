// One row's least squares: what the wide and the tall case share. Included by kernels_solve.cpp only.
#pragma once

#include <stdlib.h>

#include "../solve.h"
#include "dense.h"
#include "kernels.h"

namespace saltlm::cpu {
namespace {

constexpr double kEpsilon = 2.220446049250313e-16, kPivot = 1e-8, kNormRatio = 1e-6, kIllCondition = 1e4;
constexpr double kFirstCorrection = 1e-4, kConverged = 1e-10, kNoise = 1e-14, kSafePivot = 1e-5;
constexpr int kRefinements = 4;
// Of a Gram matrix in float32: pivots that its rounding cannot have made, and how slowly its refinement may converge.
constexpr double kNarrowPivot = 1e-4, kNarrowCorrection = 1e-2;
constexpr int kNarrowRefinements = 6;
// Of a difference of squares that has lost no more than this factor all but a digit is right.
constexpr double kMildLoss = 0.1;
constexpr int64_t kBlock = 128, kBlockStride = kBlock + kPad;  // the odd stride keeps columns out of one cache set
enum : uint8_t { kFull, kIll, kDeficient, kNone, kNotFinite };

double* reserve(Arena& arena, int region, int64_t doubles) {
  if (arena.capacity[region] < doubles) {
    free(arena.data[region]);
    const int64_t wanted = (doubles + doubles / 4 + 7) / 8 * 8;
    arena.data[region] = static_cast<double*>(aligned_alloc(64, static_cast<size_t>(wanted) * sizeof(double)));
    arena.capacity[region] = arena.data[region] ? wanted : 0;
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

// One row's problem. Vectors over E are padded with zeros to `span`.
template <class T>
struct Problem {
  const LstsqInput& input;
  Arena& arena;
  const int32_t* ids;
  int64_t count, width, span;
  double scale;    // a power of two, 1 for float32: keeps squares of float64 values finite
  double ridge;    // lambda
  double* wanted;  // span: e, centred
  double* mean;    // span
  double* rest;    // span: e - c P, or what it was before the last step of a refinement
  double* c;       // count + 8
  LstsqRow result;
  double left = -1;  // squared length of e - c P, where it is known

  const T* anchor(int64_t k) const { return static_cast<const T*>(input.anchors.data) + ids[k] * width; }
};

// Columns of G scaled to a unit diagonal, factorised. `scaling` gets 1 / sqrt(diagonal), `size` real columns.
template <class T>
bool prepare(const Problem<T>& p, Factor& f, int64_t size, double* scaling, double least_pivot) {
  double largest = 0, smallest = 0;
  for (int64_t i = 0; i < size; ++i) {
    const double d = f.matrix[i * f.ld + i] + p.ridge;
    if (i == 0 || d < smallest) smallest = d;
    if (i == 0 || d > largest) largest = d;
    scaling[i] = 1 / __builtin_sqrt(d);
  }
  if (!(smallest > kNormRatio * kNormRatio * largest)) return false;
  for (int64_t i = 0; i < size; ++i) {
    double* row = f.matrix + i * f.ld;
    for (int64_t j = 0; j < i; ++j) row[j] *= scaling[i] * scaling[j];
    row[i] = 1;
  }
  for (int64_t i = size; i < f.n; ++i) {
    clear(f.matrix + i * f.ld, i);
    f.matrix[i * f.ld + i] = scaling[i] = 1;
  }
  return factorize(f, least_pivot);
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

// What a refinement step of size `step` on a solution of size `size` says: -1 give up, 1 done, 0 go on.
inline int judge(int round, double step, double size, double noise) {
  if (!(step <= kFirstCorrection * size + noise)) return -1;
  if (step <= kConverged * size + noise) return 1;
  return round + 1 == kRefinements ? -1 : 0;
}

// Status of an accepted fast solution: the condition number is estimated when a small pivot makes it doubtful.
uint8_t grade(Factor& f, int64_t size, const double* scaling, double* x, double* y, double* diagonal) {
  if (f.smallest_pivot > kSafePivot || size == 0) return kFull;
  for (int64_t i = 0; i < size; ++i) {
    double* row = f.matrix + i * f.ld;
    for (int64_t j = 0; j <= i; ++j) row[j] /= scaling[i];
    diagonal[i] = row[i];
  }
  OneThread team;
  double largest, smallest;
  estimate_extremes(team, f.matrix, size, f.ld, diagonal, x, y, &largest, &smallest);
  return largest > kIllCondition * smallest ? kIll : kFull;
}

// The careful path: X as ../solve.h wants it, in region 0 or 1; work arrays in region 1 after `used` doubles.
template <class T>
void careful(Problem<T>& p, double* X, int64_t n, int64_t len, int64_t ld, bool wide, double* work, double* c) {
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
  const Outcome outcome = careful_lstsq(team, X, n, len, ld, wide, p.wanted, p.ridge, relative, floor, w, c);
  p.result.rank = static_cast<int32_t>(outcome.rank);
  p.result.status = outcome.rank < n ? kDeficient : outcome.condition > kIllCondition ? kIll : kFull;
}

inline int64_t careful_doubles(int64_t n, int64_t len) { return 7 * n + (n > len ? n : len) + n * n + 8; }

// The same for a step from a Gram matrix in float32, after one of size `before`: their ratio tells what is left.
inline int judge_narrow(int round, double step, double before, double size, double noise) {
  if (!(step <= kNarrowCorrection * before + noise)) return -1;
  if (step * step <= kConverged * size * before + noise * before) return 1;
  return round + 1 == kNarrowRefinements ? -1 : 0;
}

}  // namespace
}  // namespace saltlm::cpu
