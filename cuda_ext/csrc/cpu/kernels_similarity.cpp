// Lengths of rows, the certified filter, and exact cosines (see kernels.h).
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

int64_t survivors(const float* values, int64_t count, double slack, int32_t* found, float* candidates, float* maxima) {
  const int64_t whole = count / kBlock, blocks = whole + (count % kBlock != 0);
  for (int64_t b = 0; b < whole; ++b) {
    const float* block = values + b * kBlock;
    Floats top;
    memcpy(&top, block, sizeof top);
    for (int64_t i = kFloats; i < kBlock; i += kFloats) {
      Floats v;
      memcpy(&v, block + i, sizeof v);
      top = v > top ? v : top;
    }
    float best = top[0];
    for (int64_t i = 1; i < kFloats; ++i) best = top[i] > best ? top[i] : best;
    maxima[b] = best;
  }
  if (blocks > whole) {
    float best = values[whole * kBlock];
    for (int64_t i = whole * kBlock + 1; i < count; ++i) best = values[i] > best ? values[i] : best;
    maxima[whole] = best;
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

template <class T>
void cosines_as(const Matrix& rows, int64_t row, double row_inverse, const Matrix& anchors, const double* inverse,
                const int32_t* ids, int64_t count, double* cosines, double* scratch) {
  const int64_t width = rows.width;
  const T* source = static_cast<const T*>(rows.data) + row * width;
  for (int64_t e = 0; e < width; ++e) scratch[e] = source[e];
  for (int64_t i = 0; i < count; ++i) {
    const T* anchor = static_cast<const T*>(anchors.data) + ids[i] * width;
    if (i + 4 < count) __builtin_prefetch(static_cast<const T*>(anchors.data) + ids[i + 4] * width);
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

extern const SimilarityKernels SALTLM_JOIN(similarity_, SALTLM_LEVEL) = {measure, survivors, cosines};

}  // namespace saltlm::cpu
