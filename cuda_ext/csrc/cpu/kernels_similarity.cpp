// Lengths of rows, the certified filter, and exact cosines (see kernels.h).
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "lanes.h"

namespace saltlm::cpu {
namespace {

template <class T>
void measure_as(const Matrix& rows, int64_t begin, int64_t end, double* inverse, float* directions) {
  const int64_t width = rows.width;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = static_cast<const T*>(rows.data) + i * width;
    const double square = dot(row, row, width);
    // square * 0 is NaN for an infinite or NaN square.
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

void measure(const Matrix& rows, int64_t begin, int64_t end, double* inverse, float* directions) {
  if (rows.is_double)
    measure_as<double>(rows, begin, end, inverse, directions);
  else
    measure_as<float>(rows, begin, end, inverse, directions);
}

// Largest whole number a coordinate becomes: int16 without its lowest value, so that the sum of two products fits int32. Sums
// over a whole row fit because the rows are unit vectors.
constexpr double kUnit = 32767;
constexpr int64_t kChunk = 128;  // even
constexpr double kRounder = 0x1.8p52;  // a double this large has no digits behind the point: adding it rounds

template <class T>
void quantize_as(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse, int64_t side,
                 int16_t* out, double* errors) {
  const int64_t width = rows.width, pairs = (width + 1) / 2;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t from = ids ? ids[i] : i;
    const T* row = static_cast<const T*>(rows.data) + from * width;
    const double factor = inverse[from] * kUnit;
    int16_t* place = out + ((i - begin) / side * pairs * side + (i - begin) % side) * 2;
    double lost = 0;
    for (int64_t at = 0; at < width; at += kChunk) {
      const int64_t some = width - at < kChunk ? width - at : kChunk;
      double rest[kChunk], nearest[kChunk];
      int16_t whole[kChunk];
      // Two loops that the compiler makes vectors of; with the conversion in the first it did not, and took ten times as long.
      for (int64_t e = 0; e < some; ++e) {
        const double exact = factor != 0 ? static_cast<double>(row[at + e]) * factor : 0;
        nearest[e] = (exact + kRounder) - kRounder;
        rest[e] = exact - nearest[e];
      }
      for (int64_t e = 0; e < some; ++e) whole[e] = static_cast<int16_t>(static_cast<int32_t>(nearest[e]));
      lost += dot(rest, rest, some);
      if (some % 2) whole[some] = 0;
      for (int64_t p = 0; p < (some + 1) / 2; ++p) memcpy(place + (at / 2 + p) * side * 2, whole + 2 * p, 4);
    }
    errors[i - begin] = __builtin_sqrt(lost) / kUnit;
  }
}

void quantize(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse, int64_t side,
              int16_t* out, double* errors) {
  if (rows.is_double)
    quantize_as<double>(rows, ids, begin, end, inverse, side, out, errors);
  else
    quantize_as<float>(rows, ids, begin, end, inverse, side, out, errors);
}

template <class T>
void narrow_as(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse, int64_t stride,
               uint16_t* out, double* errors) {
  const int64_t width = rows.width;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t from = ids ? ids[i] : i;
    const T* row = static_cast<const T*>(rows.data) + from * width;
    const double factor = inverse[from];
    uint16_t* place = out + (i - begin) * stride;
    double lost = 0;
    for (int64_t at = 0; at < width; at += kChunk) {
      const int64_t some = width - at < kChunk ? width - at : kChunk;
      double rest[kChunk];
      for (int64_t e = 0; e < some; ++e) {
        const double exact = factor != 0 ? static_cast<double>(row[at + e]) * factor : 0;
        const float single = static_cast<float>(exact);
        uint32_t bits;
        memcpy(&bits, &single, sizeof bits);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;  // to nearest, ties to even
        float nearest;
        memcpy(&nearest, &bits, sizeof nearest);
        rest[e] = exact - nearest;
        place[at + e] = static_cast<uint16_t>(bits >> 16);
      }
      lost += dot(rest, rest, some);
    }
    memset(place + width, 0, static_cast<size_t>(stride - width) * sizeof(uint16_t));
    errors[i - begin] = __builtin_sqrt(lost);
  }
}

void narrow(const Matrix& rows, const int32_t* ids, int64_t begin, int64_t end, const double* inverse, int64_t stride,
            uint16_t* out, double* errors) {
  if (rows.is_double)
    narrow_as<double>(rows, ids, begin, end, inverse, stride, out, errors);
  else
    narrow_as<float>(rows, ids, begin, end, inverse, stride, out, errors);
}

#if defined(__AVX512F__)
typedef __m512i Whole;
constexpr int64_t kSide = 16, kRowsAtOnce = 8, kPanels = 3;
inline Whole load_whole(const int16_t* p) { return _mm512_loadu_si512(p); }
inline Whole repeat(int32_t x) { return _mm512_set1_epi32(x); }
// In place by name, as below.
inline Whole add_pairs(Whole sum, Whole a, Whole b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
inline void store_scaled(float* p, Whole v, float scale) {
  _mm512_storeu_ps(p, _mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(scale)));
}
#elif defined(__AVX2__)
typedef __m256i Whole;
constexpr int64_t kSide = 8, kRowsAtOnce = 6, kPanels = 2;  // 12 sums, 2 + 1 + 1 others: 16 registers
inline Whole load_whole(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Whole repeat(int32_t x) { return _mm256_set1_epi32(x); }
// The sum is added to in place by name: left to itself the compiler renames the twelve sums and spills half of them.
inline Whole add_pairs(Whole sum, Whole a, Whole b) {
  const Whole products = _mm256_madd_epi16(a, b);
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
  return sum;
}
inline void store_scaled(float* p, Whole v, float scale) {
  _mm256_storeu_ps(p, _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_set1_ps(scale)));
}
#elif defined(__SSE2__)
typedef __m128i Whole;
constexpr int64_t kSide = 4, kRowsAtOnce = 6, kPanels = 2;
inline Whole load_whole(const int16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Whole repeat(int32_t x) { return _mm_set1_epi32(x); }
inline Whole add_pairs(Whole sum, Whole a, Whole b) { return _mm_add_epi32(sum, _mm_madd_epi16(a, b)); }
inline void store_scaled(float* p, Whole v, float scale) {
  _mm_storeu_ps(p, _mm_mul_ps(_mm_cvtepi32_ps(v), _mm_set1_ps(scale)));
}
#endif

#if defined(__SSE2__)
constexpr int64_t kGroup = kSide * kPanels;
// Numbers in a line of the cache, and lines of a group's numbers for one pair.
constexpr int64_t kLine = 64 / sizeof(int16_t), kLines = (kGroup * 2 + kLine - 1) / kLine;
// A maximum is of one lane of this many groups' panels: twelve values.
constexpr int64_t kTogether = 12 / kPanels, kSpan = kGroup * kTogether;

int64_t sieve_size(int64_t count) { return (count + kSpan - 1) / kSpan * kSide; }

// The maxima of every row over `count` values from `begin` on, at most kSpan: soon after they were made, while they are still in
// the cache. (Between the products themselves it cost a quarter of their time.)
__attribute__((noinline)) void mark(const float* values, int64_t stride, int64_t begin, int64_t count, float* maxima,
                                    int64_t sifted) {
  typedef float Side __attribute__((vector_size(kSide * 4)));
  for (int64_t r = 0; r < kTile; ++r) {
    const float* from = values + r * stride + begin;
    Side top, one;
    memcpy(&top, from, sizeof top);
    for (int64_t i = kSide; i < count; i += kSide) {
      memcpy(&one, from + i, sizeof one);
      top = one > top ? one : top;
    }
    memcpy(maxima + r * sifted + begin / kSpan * kSide, &top, sizeof top);
  }
}

void product(const int16_t* rows, const int16_t* panels, int64_t count, int64_t pairs, float* values, int64_t stride,
             float* maxima, int64_t sifted) {
  const float scale = static_cast<float>(1 / (kUnit * kUnit));
  for (int64_t a = 0; a < count; a += kGroup) {
    const int16_t* panel = panels + a * pairs * 2;
    for (int64_t r = 0; r < kTile; r += kRowsAtOnce) {
      Whole sums[kRowsAtOnce][kPanels] = {};
      const int16_t* row = rows + r * pairs * 2;
      // The next group comes from the outer cache. It is asked for into the one before, which has room, line by line of each
      // pair while this group is used for the second time, the third and so on.
      const int64_t line = r / kRowsAtOnce - 1;
      const int16_t* ahead = panel + (line >= 0 && line < kLines ? kGroup * pairs * 2 + line * kLine : 0);
      for (int64_t p = 0; p < pairs; ++p) {
        __builtin_prefetch(ahead + p * kGroup * 2, 0, 2);
        Whole right[kPanels];
        for (int64_t j = 0; j < kPanels; ++j) right[j] = load_whole(panel + (p * kGroup + j * kSide) * 2);
        for (int64_t i = 0; i < kRowsAtOnce; ++i) {
          int32_t pair;
          memcpy(&pair, row + (i * pairs + p) * 2, sizeof pair);
          const Whole left = repeat(pair);
          for (int64_t j = 0; j < kPanels; ++j) sums[i][j] = add_pairs(sums[i][j], left, right[j]);
          // Keeps the next row's load here: hoisted, the sums spill. Of all memory it must not speak, or they are stored each time.
          __asm__ volatile("" : "+r"(row));
        }
      }
      for (int64_t i = 0; i < kRowsAtOnce; ++i)
        for (int64_t j = 0; j < kPanels; ++j) store_scaled(values + (r + i) * stride + a + j * kSide, sums[i][j], scale);
    }
    const int64_t end = a + kGroup, begin = a / kSpan * kSpan;
    if (end % kSpan == 0 || end >= count) mark(values, stride, begin, end - begin, maxima, sifted);
  }
}
#else
constexpr int64_t kSide = 0, kPanels = 0;
int64_t sieve_size(int64_t) { return 0; }
void product(const int16_t*, const int16_t*, int64_t, int64_t, float*, int64_t, float*, int64_t) {}
int64_t sieve(const float*, int64_t, double, int32_t*, float*, float*) { return 0; }
#endif

// Sparsemax's threshold by Michelot's iteration; `values` is reordered. Every iterate is a lower bound of the threshold of
// any set that contains the values, which is all the filter needs.
double threshold(float* values, int64_t count) {
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
typedef float Floats __attribute__((vector_size(kLanes * 8)));
constexpr int64_t kFloats = kLanes * 2;
typedef uint16_t NarrowFloats __attribute__((vector_size(kFloats * 2)));
typedef uint32_t FloatBits __attribute__((vector_size(kFloats * 4)));

inline Floats load_floats(const float* p) {
  Floats v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline Floats load_floats(const Bfloat16* p) {
  NarrowFloats narrow;
  memcpy(&narrow, p, sizeof narrow);
  const FloatBits bits = __builtin_convertvector(narrow, FloatBits) << 16;
  Floats v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

template <class T>
int64_t survivors_of(const T* values, int64_t count, double slack, int32_t* found, float* candidates, float* maxima) {
  const int64_t whole = count / kBlock, blocks = whole + (count % kBlock != 0);
  for (int64_t b = 0; b < whole; ++b) {
    const T* block = values + b * kBlock;
    Floats top = load_floats(block);
    for (int64_t i = kFloats; i < kBlock; i += kFloats) {
      const Floats v = load_floats(block + i);
      top = v > top ? v : top;
    }
    float best = top[0];
    for (int64_t i = 1; i < kFloats; ++i) best = top[i] > best ? top[i] : best;
    maxima[b] = best;
  }
  if (blocks > whole) {
    double best = value(values[whole * kBlock]);
    for (int64_t i = whole * kBlock + 1; i < count; ++i) best = value(values[i]) > best ? value(values[i]) : best;
    maxima[whole] = static_cast<float>(best);
  }
  // The threshold of a subset never exceeds the threshold of the whole, so the block maxima give a lower bound that skips
  // nearly all blocks; the candidates left over give the threshold itself.
  memcpy(candidates, maxima, static_cast<size_t>(blocks) * sizeof(float));
  double floor = threshold(candidates, blocks) - 2 * slack;
  int64_t kept = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (!(maxima[b] > floor)) continue;
    const int64_t end = (b + 1) * kBlock < count ? (b + 1) * kBlock : count;
    for (int64_t i = b * kBlock; i < end; ++i) {
      if (value(values[i]) > floor) {
        candidates[kept] = static_cast<float>(value(values[i]));
        found[kept++] = static_cast<int32_t>(i);
      }
    }
  }
  floor = threshold(candidates, kept) - 2 * slack;
  int64_t left = 0;
  for (int64_t i = 0; i < kept; ++i)
    if (value(values[found[i]]) > floor) found[left++] = found[i];
  return left;
}

#if defined(__SSE2__)
// Rows of maxima that are looked at one by one, for a first floor: a few vectors' lanes.
constexpr int64_t kFirst = 128;

int64_t sieve(const float* values, int64_t count, double slack, int32_t* found, float* candidates, float* maxima) {
  const int64_t sifted = sieve_size(count), last = count / kSpan * kSpan;
  // The last ones are of padding too.
  int64_t blocks = last == count ? sifted : sifted - kSide;
  for (int64_t lane = 0; lane < kSide && last + lane < count; ++lane) {
    float best = values[last + lane];
    for (int64_t i = last + lane; i < count; i += kSide) best = values[i] > best ? values[i] : best;
    maxima[blocks++] = best;
  }
  // The threshold of a subset never exceeds that of the whole: the largest of every few maxima give a floor that skips nearly all.
  int64_t first = blocks < kFirst ? blocks : kFirst;
  memcpy(candidates, maxima, static_cast<size_t>(first) * sizeof(float));
  for (int64_t b = kFirst; b < blocks; b += kFirst) {
    const int64_t some = blocks - b < kFirst ? blocks - b : kFirst;
    for (int64_t i = 0; i < some; ++i) candidates[i] = maxima[b + i] > candidates[i] ? maxima[b + i] : candidates[i];
  }
  double floor = threshold(candidates, first) - 2 * slack;
  int64_t kept = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (!(maxima[b] > floor)) continue;
    const int64_t begin = b / kSide * kSpan + b % kSide, end = begin + kSpan < count ? begin + kSpan : count;
    for (int64_t i = begin; i < end; i += kSide) {
      if (values[i] > floor) {
        candidates[kept] = values[i];
        found[kept++] = static_cast<int32_t>(i);
      }
    }
  }
  floor = threshold(candidates, kept) - 2 * slack;
  int64_t left = 0;
  for (int64_t i = 0; i < kept; ++i)
    if (values[found[i]] > floor) found[left++] = found[i];
  return left;
}
#endif

int64_t survivors(const float* values, int64_t count, double slack, int32_t* found, float* candidates, float* maxima) {
  return survivors_of(values, count, slack, found, candidates, maxima);
}

int64_t narrow_survivors(const uint16_t* values, int64_t count, double slack, int32_t* found, float* candidates,
                         float* maxima) {
  return survivors_of(reinterpret_cast<const Bfloat16*>(values), count, slack, found, candidates, maxima);
}

template <class T>
void cosines_as(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors, const double* inverse,
                const int32_t* ids, int64_t count, double* cosines, double* scratch) {
  const int64_t width = rows.width;
  const T* source = static_cast<const T*>(rows.data) + row * width;
  for (int64_t e = 0; e < width; ++e) scratch[e] = source[e];
  for (int64_t i = 0; i < count; ++i) {
    const T* anchor = static_cast<const T*>(anchors.data) + ids[i] * width;
    if (i + 3 < count)  // anchors lie anywhere in memory
      for (int64_t e = 0; e < width; e += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(static_cast<const T*>(anchors.data) + ids[i + 3] * width + e);
    cosines[i] = dot(scratch, anchor, width) * inverse[ids[i]] * row_inverse;
  }
}

void cosines(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors, const double* inverse,
             const int32_t* ids, int64_t count, double* out, double* scratch) {
  if (rows.is_double)
    cosines_as<double>(rows, row, row_inverse, anchors, inverse, ids, count, out, scratch);
  else
    cosines_as<float>(rows, row, row_inverse, anchors, inverse, ids, count, out, scratch);
}

}  // namespace

extern const SimilarityKernels SALTLM_JOIN(similarity_, SALTLM_LEVEL) = {
    measure, kSide * kPanels, quantize, product, sieve_size, narrow, survivors, sieve, narrow_survivors, cosines};

}  // namespace saltlm::cpu
