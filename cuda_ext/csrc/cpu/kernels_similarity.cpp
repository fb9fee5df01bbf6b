// Unit vectors, the filter with a guaranteed error bound, and exact cosines (see kernels.h).
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "lanes.h"

namespace saltlm::cpu {
namespace {

template <class T>
void normalize_as(const Matrix& rows, int64_t begin, int64_t end, double* inverse, float* directions) {
  const int64_t width = rows.width;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * width;
    const double square = dot(row, row, width);
    // square * 0 is NaN if the square is infinite or NaN.
    inverse[i] = square > 0 && square * 0 == 0 ? 1 / __builtin_sqrt(square) : 0;
    if (directions == nullptr) continue;
    float* direction = directions + i * width;
    if (inverse[i] == 0) {
      memset(direction, 0, static_cast<size_t>(width) * sizeof(float));
    } else {
      const double factor = inverse[i];
      for (int64_t e = 0; e < width; ++e) direction[e] = static_cast<float>(static_cast<double>(row[e]) * factor);
    }
  }
}

void normalize(const Matrix& rows, int64_t begin, int64_t end, double* inverse, float* directions) {
  if (rows.is_double)
    normalize_as<double>(rows, begin, end, inverse, directions);
  else
    normalize_as<float>(rows, begin, end, inverse, directions);
}

// Largest integer of a coordinate: the range of int16 without its lowest value, so that the sum of two products fits
// int32. Sums over a whole row fit because the rows are unit vectors.
constexpr double kInt16Scale = 32767;
constexpr int64_t kChunk = 128;              // even
constexpr double kRoundingShift = 0x1.8p52;  // a double of this size has no fractional digits: adding it rounds

template <class T>
void to_int16_as(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse,
                 int64_t interleave, int16_t* out, double* errors) {
  const int64_t width = rows.width, pairs = (width + 1) / 2;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t source_row = ids ? ids[i] : i;
    const T* row = static_cast<const T*>(rows.data) + source_row * width;
    const double factor = inverse[source_row] * kInt16Scale;
    int16_t* output = out + ((i - begin) / interleave * pairs * interleave + (i - begin) % interleave) * 2;
    double error_square = 0;
    for (int64_t start = 0; start < width; start += kChunk) {
      const int64_t length = width - start < kChunk ? width - start : kChunk;
      double rounding_error[kChunk], nearest[kChunk];
      int16_t integers[kChunk];
      // Two loops, because the compiler vectorises each of them; with the conversion in the first loop it did not,
      // which took ten times as long.
      for (int64_t e = 0; e < length; ++e) {
        const double exact = factor != 0 ? static_cast<double>(row[start + e]) * factor : 0;
        nearest[e] = (exact + kRoundingShift) - kRoundingShift;
        rounding_error[e] = exact - nearest[e];
      }
      for (int64_t e = 0; e < length; ++e) integers[e] = static_cast<int16_t>(static_cast<int32_t>(nearest[e]));
      error_square += dot(rounding_error, rounding_error, length);
      if (length % 2) integers[length] = 0;
      for (int64_t p = 0; p < (length + 1) / 2; ++p)
        memcpy(output + (start / 2 + p) * interleave * 2, integers + 2 * p, 4);
    }
    errors[i - begin] = __builtin_sqrt(error_square) / kInt16Scale;
  }
}

void to_int16(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse,
              int64_t interleave, int16_t* out, double* errors) {
  if (rows.is_double)
    to_int16_as<double>(rows, ids, begin, end, inverse, interleave, out, errors);
  else
    to_int16_as<float>(rows, ids, begin, end, inverse, interleave, out, errors);
}

template <class T>
void to_bfloat16_as(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse,
                    int64_t stride, uint16_t* out, double* errors) {
  const int64_t width = rows.width;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t source_row = ids ? ids[i] : i;
    const T* row = static_cast<const T*>(rows.data) + source_row * width;
    const double factor = inverse[source_row];
    uint16_t* output = out + (i - begin) * stride;
    double error_square = 0;
    for (int64_t start = 0; start < width; start += kChunk) {
      const int64_t length = width - start < kChunk ? width - start : kChunk;
      double rounding_error[kChunk];
      for (int64_t e = 0; e < length; ++e) {
        const double exact = factor != 0 ? static_cast<double>(row[start + e]) * factor : 0;
        const float single = static_cast<float>(exact);
        uint32_t bits;
        memcpy(&bits, &single, sizeof bits);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;  // to nearest, ties to even
        float nearest;
        memcpy(&nearest, &bits, sizeof nearest);
        rounding_error[e] = exact - nearest;
        output[start + e] = static_cast<uint16_t>(bits >> 16);
      }
      error_square += dot(rounding_error, rounding_error, length);
    }
    memset(output + width, 0, static_cast<size_t>(stride - width) * sizeof(uint16_t));
    errors[i - begin] = __builtin_sqrt(error_square);
  }
}

void to_bfloat16(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse,
                 int64_t stride, uint16_t* out, double* errors) {
  if (rows.is_double)
    to_bfloat16_as<double>(rows, ids, begin, end, inverse, stride, out, errors);
  else
    to_bfloat16_as<float>(rows, ids, begin, end, inverse, stride, out, errors);
}

#if defined(__AVX512F__)
typedef __m512i IntLanes;
constexpr int64_t kIntLanes = 16, kRowsAtOnce = 8, kPanelsAtOnce = 3;
inline IntLanes load_int16(const int16_t* p) { return _mm512_loadu_si512(p); }
inline IntLanes broadcast_pair(int32_t x) { return _mm512_set1_epi32(x); }
// In place by assembly, as in the AVX2 version below.
inline IntLanes add_pair_products(IntLanes sum, IntLanes a, IntLanes b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
inline void store_scaled(float* p, IntLanes v, float scale) {
  _mm512_storeu_ps(p, _mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(scale)));
}
#elif defined(__AVX2__)
typedef __m256i IntLanes;
constexpr int64_t kIntLanes = 8, kRowsAtOnce = 6, kPanelsAtOnce = 2;  // 12 sums, 2 + 1 + 1 others: 16 registers
inline IntLanes load_int16(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline IntLanes broadcast_pair(int32_t x) { return _mm256_set1_epi32(x); }
// The assembly forces an update in place: otherwise the compiler renames the twelve sums and spills half of them.
inline IntLanes add_pair_products(IntLanes sum, IntLanes a, IntLanes b) {
  const IntLanes products = _mm256_madd_epi16(a, b);
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
  return sum;
}
inline void store_scaled(float* p, IntLanes v, float scale) {
  _mm256_storeu_ps(p, _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_set1_ps(scale)));
}
#elif defined(__SSE2__)
typedef __m128i IntLanes;
constexpr int64_t kIntLanes = 4, kRowsAtOnce = 6, kPanelsAtOnce = 2;
inline IntLanes load_int16(const int16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline IntLanes broadcast_pair(int32_t x) { return _mm_set1_epi32(x); }
inline IntLanes add_pair_products(IntLanes sum, IntLanes a, IntLanes b) {
  return _mm_add_epi32(sum, _mm_madd_epi16(a, b));
}
inline void store_scaled(float* p, IntLanes v, float scale) {
  _mm_storeu_ps(p, _mm_mul_ps(_mm_cvtepi32_ps(v), _mm_set1_ps(scale)));
}
#endif

#if defined(__SSE2__)
constexpr int64_t kGroupWidth = kIntLanes * kPanelsAtOnce;
// Values per cache line, and cache lines of a group's values for one pair.
constexpr int64_t kCacheLine = 64 / sizeof(int16_t),
                  kCacheLinesPerPair = (kGroupWidth * 2 + kCacheLine - 1) / kCacheLine;
// A maximum is taken over one lane of this many groups' panels: twelve values.
constexpr int64_t kGroupsPerMaximum = 12 / kPanelsAtOnce, kMaximaSpan = kGroupWidth * kGroupsPerMaximum;

int64_t maxima_size(int64_t count) { return (count + kMaximaSpan - 1) / kMaximaSpan * kIntLanes; }

// Stores the maxima of every row over `count` values (at most kMaximaSpan) from `begin` on. Called soon after the
// values were computed, while they are still in the cache. (Inside the product loop it cost a quarter of the product's
// time.)
__attribute__((noinline)) void store_maxima(const float* values, int64_t stride, int64_t begin, int64_t count,
                                            float* maxima, int64_t maxima_stride) {
  typedef float IntLanesFloat __attribute__((vector_size(kIntLanes * 4)));
  for (int64_t r = 0; r < kTileRows; ++r) {
    const float* source_row = values + r * stride + begin;
    IntLanesFloat top, current;
    memcpy(&top, source_row, sizeof top);
    for (int64_t i = kIntLanes; i < count; i += kIntLanes) {
      memcpy(&current, source_row + i, sizeof current);
      top = current > top ? current : top;
    }
    memcpy(maxima + r * maxima_stride + begin / kMaximaSpan * kIntLanes, &top, sizeof top);
  }
}

void product_int16(const int16_t* rows, const int16_t* panels, int64_t count, int64_t pairs, float* values,
                   int64_t stride, float* maxima, int64_t maxima_stride) {
  const float scale = static_cast<float>(1 / (kInt16Scale * kInt16Scale));
  for (int64_t a = 0; a < count; a += kGroupWidth) {
    const int16_t* panel = panels + a * pairs * 2;
    for (int64_t r = 0; r < kTileRows; r += kRowsAtOnce) {
      IntLanes sums[kRowsAtOnce][kPanelsAtOnce] = {};
      const int16_t* row = rows + r * pairs * 2;
      // The next group is read from an outer cache. It is prefetched while this group is used for the second, third,
      // ... time, one cache line of each pair at a time, into the next inner cache, which has room for it.
      const int64_t cache_line = r / kRowsAtOnce - 1;
      const int16_t* prefetched =
          panel +
          (cache_line >= 0 && cache_line < kCacheLinesPerPair ? kGroupWidth * pairs * 2 + cache_line * kCacheLine : 0);
      for (int64_t p = 0; p < pairs; ++p) {
        __builtin_prefetch(prefetched + p * kGroupWidth * 2, 0, 2);
        IntLanes right_lanes[kPanelsAtOnce];
        for (int64_t j = 0; j < kPanelsAtOnce; ++j)
          right_lanes[j] = load_int16(panel + (p * kGroupWidth + j * kIntLanes) * 2);
        for (int64_t i = 0; i < kRowsAtOnce; ++i) {
          int32_t pair;
          memcpy(&pair, row + (i * pairs + p) * 2, sizeof pair);
          const IntLanes left_lanes = broadcast_pair(pair);
          for (int64_t j = 0; j < kPanelsAtOnce; ++j)
            sums[i][j] = add_pair_products(sums[i][j], left_lanes, right_lanes[j]);
          // Keeps the load of the next row here: when it is hoisted, the sums spill. Without a "memory" clobber, which
          // would store them in every iteration.
          __asm__ volatile("" : "+r"(row));
        }
      }
      for (int64_t i = 0; i < kRowsAtOnce; ++i)
        for (int64_t j = 0; j < kPanelsAtOnce; ++j)
          store_scaled(values + (r + i) * stride + a + j * kIntLanes, sums[i][j], scale);
    }
    const int64_t end = a + kGroupWidth, begin = a / kMaximaSpan * kMaximaSpan;
    if (end % kMaximaSpan == 0 || end >= count) store_maxima(values, stride, begin, end - begin, maxima, maxima_stride);
  }
}
#else
constexpr int64_t kIntLanes = 0, kPanelsAtOnce = 0;
int64_t maxima_size(int64_t) { return 0; }
void product_int16(const int16_t*, const int16_t*, int64_t, int64_t, float*, int64_t, float*, int64_t) {}
int64_t filter_int16(const float*, int64_t, double, int32_t*, float*, float*) { return 0; }
#endif

// Threshold of sparsemax by Michelot's iteration; reorders `values`. Every iterate is a lower bound of the threshold of
// any set that contains the values, which is sufficient for the filter.
double michelot_threshold(float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  for (;;) {
    const double tau = (sum - 1) / static_cast<double>(count);
    int64_t kept = 0;
    sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (values[i] > tau) {
        values[kept++] = values[i];
        sum += values[i];
      }
    }
    if (kept == count || kept == 0) return tau;
    count = kept;
  }
}

constexpr int64_t kBlock = 64;
typedef float FloatLanes __attribute__((vector_size(kLanes * 8)));
constexpr int64_t kFloatLanes = kLanes * 2;
typedef uint16_t Bfloat16Lanes __attribute__((vector_size(kFloatLanes * 2)));
typedef uint32_t FloatBits __attribute__((vector_size(kFloatLanes * 4)));

inline FloatLanes load_floats(const float* p) {
  FloatLanes v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline FloatLanes load_floats(const Bfloat16* p) {
  Bfloat16Lanes to_bfloat16;
  memcpy(&to_bfloat16, p, sizeof to_bfloat16);
  const FloatBits bits = __builtin_convertvector(to_bfloat16, FloatBits) << 16;
  FloatLanes v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

template <class T>
int64_t filter_as(const T* values, int64_t count, double slack, int32_t* survivors, float* candidates, float* maxima) {
  const int64_t full_blocks = count / kBlock, blocks = full_blocks + (count % kBlock != 0);
  for (int64_t b = 0; b < full_blocks; ++b) {
    const T* block = values + b * kBlock;
    FloatLanes top = load_floats(block);
    for (int64_t i = kFloatLanes; i < kBlock; i += kFloatLanes) {
      const FloatLanes v = load_floats(block + i);
      top = v > top ? v : top;
    }
    float best = top[0];
    for (int64_t i = 1; i < kFloatLanes; ++i) best = top[i] > best ? top[i] : best;
    maxima[b] = best;
  }
  if (blocks > full_blocks) {
    double best = as_double(values[full_blocks * kBlock]);
    for (int64_t i = full_blocks * kBlock + 1; i < count; ++i)
      best = as_double(values[i]) > best ? as_double(values[i]) : best;
    maxima[full_blocks] = static_cast<float>(best);
  }
  // The threshold of a subset never exceeds that of the whole set, so the block maxima give a lower bound that skips
  // nearly all blocks. The remaining candidates give the threshold itself.
  memcpy(candidates, maxima, static_cast<size_t>(blocks) * sizeof(float));
  double lower_bound = michelot_threshold(candidates, blocks) - 2 * slack;
  int64_t kept = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (!(maxima[b] > lower_bound)) continue;
    const int64_t end = (b + 1) * kBlock < count ? (b + 1) * kBlock : count;
    for (int64_t i = b * kBlock; i < end; ++i) {
      if (as_double(values[i]) > lower_bound) {
        candidates[kept] = static_cast<float>(as_double(values[i]));
        survivors[kept++] = static_cast<int32_t>(i);
      }
    }
  }
  lower_bound = michelot_threshold(candidates, kept) - 2 * slack;
  int64_t remaining = 0;
  for (int64_t i = 0; i < kept; ++i)
    if (as_double(values[survivors[i]]) > lower_bound) survivors[remaining++] = survivors[i];
  return remaining;
}

#if defined(__SSE2__)
// Number of maxima of the first bound: a few vectors of lanes.
constexpr int64_t kFirstMaxima = 128;

int64_t filter_int16(const float* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                     float* maxima) {
  const int64_t maxima_stride = maxima_size(count), last = count / kMaximaSpan * kMaximaSpan;
  // The last maxima also cover padding.
  int64_t blocks = last == count ? maxima_stride : maxima_stride - kIntLanes;
  for (int64_t lane = 0; lane < kIntLanes && last + lane < count; ++lane) {
    float best = values[last + lane];
    for (int64_t i = last + lane; i < count; i += kIntLanes) best = values[i] > best ? values[i] : best;
    maxima[blocks++] = best;
  }
  // The threshold of a subset never exceeds that of the whole set: the largest of every few maxima give a lower bound
  // that skips nearly all of them.
  int64_t first = blocks < kFirstMaxima ? blocks : kFirstMaxima;
  memcpy(candidates, maxima, static_cast<size_t>(first) * sizeof(float));
  for (int64_t b = kFirstMaxima; b < blocks; b += kFirstMaxima) {
    const int64_t length = blocks - b < kFirstMaxima ? blocks - b : kFirstMaxima;
    for (int64_t i = 0; i < length; ++i) candidates[i] = maxima[b + i] > candidates[i] ? maxima[b + i] : candidates[i];
  }
  double lower_bound = michelot_threshold(candidates, first) - 2 * slack;
  int64_t kept = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (!(maxima[b] > lower_bound)) continue;
    const int64_t begin = b / kIntLanes * kMaximaSpan + b % kIntLanes,
                  end = begin + kMaximaSpan < count ? begin + kMaximaSpan : count;
    for (int64_t i = begin; i < end; i += kIntLanes) {
      if (values[i] > lower_bound) {
        candidates[kept] = values[i];
        survivors[kept++] = static_cast<int32_t>(i);
      }
    }
  }
  lower_bound = michelot_threshold(candidates, kept) - 2 * slack;
  int64_t remaining = 0;
  for (int64_t i = 0; i < kept; ++i)
    if (values[survivors[i]] > lower_bound) survivors[remaining++] = survivors[i];
  return remaining;
}
#endif

int64_t filter_float32(const float* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                       float* maxima) {
  return filter_as(values, count, slack, survivors, candidates, maxima);
}

int64_t filter_bfloat16(const uint16_t* values, int64_t count, double slack, int32_t* survivors, float* candidates,
                        float* maxima) {
  return filter_as(reinterpret_cast<const Bfloat16*>(values), count, slack, survivors, candidates, maxima);
}

template <class T>
void exact_cosines_as(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors, const double* inverse,
                      const int32_t* ids, int64_t count, double* out, double* scratch) {
  const int64_t width = rows.width;
  const T* source = static_cast<const T*>(rows.data) + row * width;
  for (int64_t e = 0; e < width; ++e) scratch[e] = source[e];
  for (int64_t i = 0; i < count; ++i) {
    const T* anchor = static_cast<const T*>(anchors.data) + ids[i] * width;
    if (i + 3 < count)  // anchors are at arbitrary addresses
      for (int64_t e = 0; e < width; e += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(static_cast<const T*>(anchors.data) + ids[i + 3] * width + e);
    out[i] = dot(scratch, anchor, width) * inverse[ids[i]] * row_inverse;
  }
}

void exact_cosines(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors, const double* inverse,
                   const int32_t* ids, int64_t count, double* out, double* scratch) {
  if (rows.is_double)
    exact_cosines_as<double>(rows, row, row_inverse, anchors, inverse, ids, count, out, scratch);
  else
    exact_cosines_as<float>(rows, row, row_inverse, anchors, inverse, ids, count, out, scratch);
}

}  // namespace

extern const SimilarityKernels SALTLM_JOIN(similarity_, SALTLM_LEVEL) = {
    normalize,    kIntLanes * kPanelsAtOnce, to_int16,     product_int16, maxima_size, to_bfloat16, filter_float32,
    filter_int16, filter_bfloat16,           exact_cosines};

}  // namespace saltlm::cpu
