// One row's least squares (see kernels.h and ../solve.h). The fast path factorises the Gram matrix of the smaller side and
// refines with residuals taken from the rows themselves; when its checks fail, the careful path of ../solve.h decides.
// Rows of float32 get a Gram matrix in float32 first: where the refinement converges from it, it ends at the same solution.
//
//   wide, K <= E:  c = (P P^T + lambda)^-1 P e       tall, K > E:  c = P (P^T P + lambda)^-1 e
//
// Centring the wide case would leave the Gram matrix singular along (1, ..., 1). Instead a Householder reflection, which
// takes that direction to the first axis, turns the K centred rows into K - 1 rows with the same singular values:
// p_i - mean + (p_1 - mean) / (sqrt(K) - 1) for i > 1. It costs one more vector to subtract.
#include <stdlib.h>

#include "../solve.h"
#include "dense.h"
#include "kernels.h"
#include "narrow.h"

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

// Rows ids[begin ..] (or begin .. themselves without ids), less the mean, as the columns of a block E x kBlock.
template <class T>
void transpose_block(const T* rows, int64_t width, const int32_t* ids, int64_t begin, int64_t count, double scale,
                     const double* mean, int64_t stride, double* block) {
  for (int64_t b = 0; b < count; b += 8) {
    const int64_t some = count - b < 8 ? count - b : 8;
    const T* source[8];
    for (int64_t u = 0; u < 8; ++u) {
      const int64_t at = begin + b + (u < some ? u : 0);
      source[u] = rows + (ids ? ids[at] : at) * width;
    }
    for (int64_t e = 0; e < width; ++e)
      for (int64_t u = 0; u < 8; ++u)
        block[e * stride + b + u] = u < some ? source[u][e] * scale - (mean ? mean[e] : 0) : 0;
  }
}

template <class T>
void add_gram_of(const T* rows, int64_t width, const int32_t* ids, int64_t begin, int64_t end, double scale,
                 const double* mean, double* gram, double* block) {
  const int64_t n = padded(width);
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t count = end - at < kBlock ? end - at : kBlock;
    transpose_block(rows, width, ids, at, count, scale, mean, kBlockStride, block);
    add_products(block, n, kBlockStride, padded(count), gram, n);
  }
}

// The Gram matrix of a nearly full support: that of all anchors less those left out (fewer than half of them).
template <class T>
void complement_gram(const Problem<T>& p, double* gram, double* block, int32_t* left_out, uint8_t* member) {
  const int64_t all = p.input.anchors.rows, n = padded(p.width);
  memset(member, 0, static_cast<size_t>(all));
  for (int64_t k = 0; k < p.count; ++k) member[p.ids[k]] = 1;
  int64_t missing = 0;
  for (int64_t i = 0; i < all; ++i)
    if (!member[i]) left_out[missing++] = static_cast<int32_t>(i);
  clear(gram, n * n);
  add_gram_of(static_cast<const T*>(p.input.anchors.data), p.width, left_out, 0, missing, p.scale, nullptr, gram, block);
  const double square = p.scale * p.scale;
  for (int64_t i = 0; i < p.width; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double& g = gram[i * n + j];
      g = p.input.whole_gram[i * n + j] * square - g;
      if (p.input.center) g -= static_cast<double>(p.count) * p.mean[i] * p.mean[j];
    }
}

// Factorises and refines with the Gram matrix in `f`; c in p.c, rest in p.rest. vectors: scaling, y, step (n each).
template <class T>
bool solve_tall_with(Problem<T>& p, Factor& f, double* vectors) {
  const int64_t n = f.n;
  double *scaling = vectors, *y = vectors + n, *step = vectors + 2 * n;
  double trace = 0;
  for (int64_t i = 0; i < p.width; ++i) trace += f.matrix[i * n + i];
  p.ridge = p.input.ridge * trace / static_cast<double>(p.count);
  lap(p.arena.laps, kGram);
  const bool factorized = prepare(p, f, p.width, scaling, kPivot);
  lap(p.arena.laps, kFactor);
  if (!factorized) return false;
  clear(y, n);
  clear(p.c, p.count);
  memcpy(p.rest, p.wanted, static_cast<size_t>(n) * sizeof(double));
  const double noise = kNoise * __builtin_sqrt(dot(p.wanted, p.wanted, n));
  for (int round = -1;; ++round) {  // round -1 is the solve itself
    memcpy(step, p.rest, static_cast<size_t>(n) * sizeof(double));
    axpy(-p.ridge, y, step, n);
    solve_scaled(f, scaling, step);
    axpy(1, step, y, n);
    for (int64_t e = 0; e < p.width; ++e) step[e] *= p.scale;
    const double shift = dot(p.mean, step, p.width) / p.scale;
    double moved = 0, size = 0, sum = 0;
    for (int64_t k = 0; k < p.count; ++k) {
      const T* row = p.anchor(k);
      if (k + 2 < p.count) __builtin_prefetch(p.anchor(k + 2));
      const double change = dot(row, step, p.width) - shift;
      p.c[k] += change;
      moved += change * change;
      size += p.c[k] * p.c[k];
      sum += change;
      axpy(-change * p.scale, row, p.rest, p.width);
    }
    axpy(sum, p.mean, p.rest, p.width);
    if (round < 0) continue;
    const int verdict = judge(round, __builtin_sqrt(moved), __builtin_sqrt(size), noise * scaling[0]);
    if (verdict != 0) return verdict > 0;
  }
}

template <class T>
void solve_tall(Problem<T>& p) {
  const int64_t n = padded(p.width), all = p.input.anchors.rows;
  const bool complement = p.input.whole_gram != nullptr && 2 * p.count > all;
  const int64_t lists = complement ? all / 2 + all / 8 + 64 : 0;
  double* gram = reserve(p.arena, 1, n * n + n * kPanel + 6 * n + n * kBlockStride + lists);
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
    int32_t* left_out = reinterpret_cast<int32_t*>(block + n * kBlockStride);
    complement_gram(p, gram, block, left_out, reinterpret_cast<uint8_t*>(left_out + all));
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
    p.result.status = grade(f, p.width, vectors, vectors + n, vectors + 2 * n, vectors + 3 * n);
    return;
  }
  const int64_t length = padded(p.count);
  double* X = reserve(p.arena, 1, n * length + careful_doubles(p.width, p.count));
  if (X == nullptr) {
    p.result.out_of_memory = true;
    return;
  }
  transpose_block(static_cast<const T*>(p.input.anchors.data), p.width, p.ids, 0, p.count, p.scale,
                  p.input.center ? p.mean : nullptr, length, X);
  careful(p, X, p.width, p.count, length, false, X + n * length, p.c);
}

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
