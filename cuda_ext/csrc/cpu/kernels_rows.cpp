// Passes over whole rows: largest magnitudes, linear combinations (see kernels.h).
#include "kernels.h"
#include "lanes.h"

namespace saltlm::cpu {
namespace {

template <class T>
void peaks_as(const Matrix& rows, int64_t begin, int64_t end, double* peaks) {
  // Written as vectors: of plain loops the compiler must keep the order, one number after the other.
  typedef T Side __attribute__((vector_size(kLanes * 8)));
  constexpr int64_t kSide = sizeof(Side) / sizeof(T);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * rows.width;
    Side largest{}, zeros{}, one;
    int64_t e = 0;
    for (; e + kSide <= rows.width; e += kSide) {
      memcpy(&one, row + e, sizeof one);
      zeros += one * 0;
      one = one < 0 ? -one : one;
      largest = one > largest ? one : largest;
    }
    T peak = 0, zero = 0;
    for (int64_t lane = 0; lane < kSide; ++lane) {
      peak = largest[lane] > peak ? largest[lane] : peak;
      zero += zeros[lane];
    }
    for (; e < rows.width; ++e) {
      const T magnitude = row[e] < 0 ? -row[e] : row[e];
      peak = magnitude > peak ? magnitude : peak;
      zero += row[e] * 0;
    }
    peaks[i] = zero == 0 ? static_cast<double>(peak) : __builtin_inf();
  }
}

void peaks(const Matrix& rows, int64_t begin, int64_t end, double* out) {
  if (rows.is_double)
    peaks_as<double>(rows, begin, end, out);
  else
    peaks_as<float>(rows, begin, end, out);
}

#if defined(__AVX512F__)
inline void put(double* p, Lanes v, Lanes& zeros) {
  store(p, v);
  zeros += v * 0.0;
}
inline void put(float* p, Lanes v, Lanes& zeros) {
  const HalfLanes narrow = __builtin_convertvector(v, HalfLanes);
  memcpy(p, &narrow, sizeof narrow);
  zeros += __builtin_convertvector(narrow, Lanes) * 0.0;
}

// A stretch of a support: `sums` holds what came before it, unless it is the first, and gets what comes to it, unless it is the last.
struct Stretch {
  const int32_t* ids;
  const double* coefficients;
  int64_t count;
  bool first, last;
};

// V vectors of columns from `rows` on: their sums stay in registers over the stretch. zeros becomes NaN where a result is not finite.
template <int V, class T, class Out>
inline void combine_block(const T* rows, int64_t width, const Stretch& stretch, double* before, Out* out, Lanes& zeros) {
  constexpr int64_t kColumns = V * kLanes, kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int32_t* ids = stretch.ids;
  const double* coefficients = stretch.coefficients;
  const int64_t count = stretch.count;
  Lanes sums[V] = {};
  if (!stretch.first)
    for (int v = 0; v < V; ++v) sums[v] = load(before + v * kLanes);
  for (int64_t k = 0; k < count; ++k) {
    const T* row = rows + ids[k] * width;
    for (int64_t e = 0; e < kColumns; e += kLine) __builtin_prefetch(row + kColumns + e);  // of the next block
    const Lanes f = broadcast(coefficients[k]);
    for (int v = 0; v < V; ++v) sums[v] += f * load(row + v * kLanes);
  }
  if (stretch.last)
    for (int v = 0; v < V; ++v) put(out + v * kLanes, sums[v], zeros);
  else
    for (int v = 0; v < V; ++v) store(before + v * kLanes, sums[v]);
}

template <class T, class Out>
bool combine_as(const void* data, int64_t width, const int32_t* ids, const double* coefficients, int64_t count, double* sums,
                void* whole) {
  constexpr int kVectors = 8;
  constexpr int64_t kTogether = 64;  // rows whose blocks are still in a cache when the next block's turn comes
  const T* rows = static_cast<const T*>(data);
  Out* out = static_cast<Out*>(whole);
  Lanes zeros{};
  int64_t e = 0, begin = 0;
  do {
    const int64_t some = count - begin < kTogether ? count - begin : kTogether;
    const Stretch stretch{ids + begin, coefficients + begin, some, begin == 0, begin + some == count};
    for (e = 0; e + kVectors * kLanes <= width; e += kVectors * kLanes)
      combine_block<kVectors>(rows + e, width, stretch, sums + e, out + e, zeros);
    for (; e + kLanes <= width; e += kLanes) combine_block<1>(rows + e, width, stretch, sums + e, out + e, zeros);
    begin += some;
  } while (begin < count);
  double zero = total(zeros);
  for (; e < width; ++e) {
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += coefficients[k] * value(rows[ids[k] * width + e]);
    out[e] = static_cast<Out>(sum);
    zero += static_cast<double>(out[e]) * 0.0;
  }
  return zero == 0;
}
#else
// With fewer or narrower registers a block would be too few columns of each row to come from memory well.
template <class T, class Out>
bool combine_as(const void* data, int64_t width, const int32_t* ids, const double* coefficients, int64_t count,
                double* sums, void* out) {
  const T* rows = static_cast<const T*>(data);
  memset(sums, 0, static_cast<size_t>(width) * sizeof(double));
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const T *a = rows + ids[k] * width, *b = rows + ids[k + 1] * width, *c = rows + ids[k + 2] * width,
            *d = rows + ids[k + 3] * width;
    const double f0 = coefficients[k], f1 = coefficients[k + 1], f2 = coefficients[k + 2], f3 = coefficients[k + 3];
    // The next four rows lie anywhere: they are asked for while these are added.
    const T* next[4];
    for (int64_t u = 0; u < 4; ++u) next[u] = rows + ids[k + 4 + u < count ? k + 4 + u : k] * width;
    int64_t e = 0;
    for (; e + kLanes <= width; e += kLanes) {
      for (int64_t u = 0; u < 4; ++u) __builtin_prefetch(next[u] + e);
      store(sums + e, load(sums + e) + f0 * load(a + e) + f1 * load(b + e) + f2 * load(c + e) + f3 * load(d + e));
    }
    for (; e < width; ++e) sums[e] = sums[e] + f0 * value(a[e]) + f1 * value(b[e]) + f2 * value(c[e]) + f3 * value(d[e]);
  }
  for (; k < count; ++k) axpy(coefficients[k], rows + ids[k] * width, sums, width);
  for (int64_t e = 0; e < width; ++e) static_cast<Out*>(out)[e] = static_cast<Out>(sums[e]);
  return all_finite(static_cast<const Out*>(out), width);
}
#endif

bool combine(const void* rows, int type, int64_t width, const int32_t* ids, const double* coefficients, int64_t count,
             double* sums, void* out) {
  if (type == 1) return combine_as<double, double>(rows, width, ids, coefficients, count, sums, out);
  if (type == 2) return combine_as<Bfloat16, float>(rows, width, ids, coefficients, count, sums, out);
  return combine_as<float, float>(rows, width, ids, coefficients, count, sums, out);
}

}  // namespace

extern const RowKernels SALTLM_JOIN(rows_, SALTLM_LEVEL) = {peaks, combine};

}  // namespace saltlm::cpu
