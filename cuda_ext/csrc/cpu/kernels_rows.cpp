// Passes over whole rows: largest absolute values and linear combinations (see kernels.h).
#include "kernels.h"
#include "lanes.h"

namespace saltlm::cpu {
namespace {

template <class T>
void max_abs_as(const Matrix& rows, int64_t begin, int64_t end, double* out) {
  // Explicit vectors: in a plain loop the compiler must keep the order of the operations and does not vectorise it.
  typedef T Vector __attribute__((vector_size(kLanes * 8)));
  constexpr int64_t kVectorSize = sizeof(Vector) / sizeof(T);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * rows.width;
    Vector lane_max{}, finite_check{}, values;
    int64_t e = 0;
    for (; e + kVectorSize <= rows.width; e += kVectorSize) {
      memcpy(&values, row + e, sizeof values);
      finite_check += values * 0;
      values = values < 0 ? -values : values;
      lane_max = values > lane_max ? values : lane_max;
    }
    T maximum = 0, finite_sum = 0;
    for (int64_t lane = 0; lane < kVectorSize; ++lane) {
      maximum = lane_max[lane] > maximum ? lane_max[lane] : maximum;
      finite_sum += finite_check[lane];
    }
    for (; e < rows.width; ++e) {
      const T magnitude = row[e] < 0 ? -row[e] : row[e];
      maximum = magnitude > maximum ? magnitude : maximum;
      finite_sum += row[e] * 0;
    }
    out[i] = finite_sum == 0 ? static_cast<double>(maximum) : __builtin_inf();
  }
}

void max_abs(const Matrix& rows, int64_t begin, int64_t end, double* out) {
  if (rows.is_double)
    max_abs_as<double>(rows, begin, end, out);
  else
    max_abs_as<float>(rows, begin, end, out);
}

#if defined(__AVX512F__)
inline void store_checked(double* p, Lanes v, Lanes& finite_check) {
  store(p, v);
  finite_check += v * 0.0;
}
inline void store_checked(float* p, Lanes v, Lanes& finite_check) {
  const HalfLanes rounded = __builtin_convertvector(v, HalfLanes);
  memcpy(p, &rounded, sizeof rounded);
  finite_check += __builtin_convertvector(rounded, Lanes) * 0.0;
}

// A slice of a support. `sums` holds the partial sums of earlier slices unless it is the first, and receives the
// partial sums unless it is the last.
struct SupportSlice {
  const int32_t* ids;
  const double* coefficients;
  int64_t count;
  bool first, last;
};

// Combines V vectors of columns, beginning at `rows`; their sums stay in registers over the slice. finite_check becomes
// NaN if a result is not finite.
template <int V, class T, class Out>
inline void combine_block(const T* rows, int64_t width, const SupportSlice& slice, double* partial_sums, Out* out,
                          Lanes& finite_check) {
  constexpr int64_t kColumns = V * kLanes, kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int32_t* ids = slice.ids;
  const double* coefficients = slice.coefficients;
  const int64_t count = slice.count;
  Lanes sums[V] = {};
  if (!slice.first)
    for (int v = 0; v < V; ++v) sums[v] = load(partial_sums + v * kLanes);
  for (int64_t k = 0; k < count; ++k) {
    const T* row = rows + ids[k] * width;
    for (int64_t e = 0; e < kColumns; e += kLine) __builtin_prefetch(row + kColumns + e);  // prefetch of the next block
    const Lanes f = broadcast(coefficients[k]);
    for (int v = 0; v < V; ++v) sums[v] += f * load(row + v * kLanes);
  }
  if (slice.last)
    for (int v = 0; v < V; ++v) store_checked(out + v * kLanes, sums[v], finite_check);
  else
    for (int v = 0; v < V; ++v) store(partial_sums + v * kLanes, sums[v]);
}

template <class T, class Out>
bool combine_as(const void* data, int64_t width, const int32_t* ids, const double* coefficients, int64_t count,
                double* sums, void* output) {
  constexpr int kVectors = 8;
  constexpr int64_t kSliceRows = 64;  // rows whose blocks are still in a cache when the next block is processed
  const T* rows = static_cast<const T*>(data);
  Out* out = static_cast<Out*>(output);
  Lanes finite_check{};
  int64_t e = 0, begin = 0;
  do {
    const int64_t slice_count = count - begin < kSliceRows ? count - begin : kSliceRows;
    const SupportSlice slice{ids + begin, coefficients + begin, slice_count, begin == 0, begin + slice_count == count};
    for (e = 0; e + kVectors * kLanes <= width; e += kVectors * kLanes)
      combine_block<kVectors>(rows + e, width, slice, sums + e, out + e, finite_check);
    for (; e + kLanes <= width; e += kLanes) combine_block<1>(rows + e, width, slice, sums + e, out + e, finite_check);
    begin += slice_count;
  } while (begin < count);
  double finite_sum = sum_lanes(finite_check);
  for (; e < width; ++e) {
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += coefficients[k] * as_double(rows[ids[k] * width + e]);
    out[e] = static_cast<Out>(sum);
    finite_sum += static_cast<double>(out[e]) * 0.0;
  }
  return finite_sum == 0;
}
#else
// With fewer or narrower registers a block would read too few columns of each row for efficient memory access.
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
    // The next four rows are at arbitrary addresses: they are prefetched while these are added.
    const T* next[4];
    for (int64_t u = 0; u < 4; ++u) next[u] = rows + ids[k + 4 + u < count ? k + 4 + u : k] * width;
    int64_t e = 0;
    for (; e + kLanes <= width; e += kLanes) {
      for (int64_t u = 0; u < 4; ++u) __builtin_prefetch(next[u] + e);
      store(sums + e, load(sums + e) + f0 * load(a + e) + f1 * load(b + e) + f2 * load(c + e) + f3 * load(d + e));
    }
    for (; e < width; ++e)
      sums[e] = sums[e] + f0 * as_double(a[e]) + f1 * as_double(b[e]) + f2 * as_double(c[e]) + f3 * as_double(d[e]);
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

extern const RowKernels SALTLM_JOIN(rows_, SALTLM_LEVEL) = {max_abs, combine};

}  // namespace saltlm::cpu
