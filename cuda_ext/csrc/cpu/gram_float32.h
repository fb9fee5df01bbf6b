// A Gram matrix in float32, at twice the rate of float64: precise enough as the start of a refinement. Included by
// kernels_solve.cpp only.
#pragma once

#include "lanes.h"

namespace {

constexpr int64_t kFloatLanes = 2 * kLanes;
typedef float FloatLanes __attribute__((vector_size(kFloatLanes * 4)));
typedef int32_t FloatLaneIndices __attribute__((vector_size(kFloatLanes * 4)));

inline FloatLanes load_floats(const float* p) {
  FloatLanes v;
  memcpy(&v, p, sizeof v);
  return v;
}

// Steps of sum_four on pairs of vectors. Each group of four lanes of a and b is handled separately.
#if defined(__AVX512F__)
inline FloatLanes interleave_low(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
inline FloatLanes interleave_high(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
inline FloatLanes join_low(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
inline FloatLanes join_high(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
#elif defined(__AVX__)
inline FloatLanes interleave_low(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 0, 8, 1, 9, 4, 12, 5, 13);
}
inline FloatLanes interleave_high(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
inline FloatLanes join_low(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 0, 1, 8, 9, 4, 5, 12, 13);
}
inline FloatLanes join_high(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
#else
inline FloatLanes interleave_low(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 0, 4, 1, 5);
}
inline FloatLanes interleave_high(FloatLanes a, FloatLanes b) {
  return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 2, 6, 3, 7);
}
inline FloatLanes join_low(FloatLanes a, FloatLanes b) { return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 0, 1, 4, 5); }
inline FloatLanes join_high(FloatLanes a, FloatLanes b) { return SALTLM_SHUFFLE(FloatLaneIndices, a, b, 2, 3, 6, 7); }
#endif

// Sums of the lanes of a, b, c and d, written to out[0 .. 4). Needs a third of the shuffles of four separate sums.
inline void sum_four(FloatLanes a, FloatLanes b, FloatLanes c, FloatLanes d, float* out) {
  const FloatLanes ab = interleave_low(a, b) + interleave_high(a, b), cd = interleave_low(c, d) + interleave_high(c, d);
  FloatLanes sums = join_low(ab, cd) + join_high(ab, cd);
#if defined(__AVX512F__)
  sums += SALTLM_SHUFFLE(FloatLaneIndices, sums, sums, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  sums += SALTLM_SHUFFLE(FloatLaneIndices, sums, sums, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif defined(__AVX__)
  sums += SALTLM_SHUFFLE(FloatLaneIndices, sums, sums, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
  memcpy(out, &sums, 4 * sizeof(float));
}

template <int J>
inline void gram_float32_tile(const float* const* rows, int64_t length, int64_t i, int64_t j, double* G, int64_t ldg) {
  FloatLanes sum[4][J] = {};
  const float *left[4], *right[J];
  for (int u = 0; u < 4; ++u) left[u] = rows[i + u];
  for (int v = 0; v < J; ++v) right[v] = rows[j + v];
  for (int64_t e = 0; e < length; e += kFloatLanes) {
    FloatLanes b[J];
    for (int v = 0; v < J; ++v) b[v] = load_floats(right[v] + e);
    for (int u = 0; u < 4; ++u) {
      const FloatLanes a = load_floats(left[u] + e);
      for (int v = 0; v < J; ++v) sum[u][v] += a * b[v];
    }
  }
  for (int v = 0; v < J; ++v) {
    float out[4];
    sum_four(sum[0][v], sum[1][v], sum[2][v], sum[3][v], out);
    for (int u = 0; u < 4; ++u) G[(i + u) * ldg + j + v] = out[u];
  }
}

// Lower triangle of G = the products of n rows (n a multiple of 4) of `length` values (a multiple of kFloatLanes).
void gram_float32(const float* const* rows, int64_t n, int64_t length, double* G, int64_t ldg) {
#if defined(__AVX512F__)
  constexpr int kTileColumns = 6;  // 24 sums, 6 rows and one more vector fit the 32 registers
#else
  constexpr int kTileColumns = 3;
#endif
  for (int64_t i = 0; i < n; i += 4) {
    const int64_t end = i + 4;
    int64_t j = 0;
    for (; j + kTileColumns <= end; j += kTileColumns) gram_float32_tile<kTileColumns>(rows, length, i, j, G, ldg);
    switch (end - j) {
      case 5: gram_float32_tile<5>(rows, length, i, j, G, ldg); break;
      case 4: gram_float32_tile<4>(rows, length, i, j, G, ldg); break;
      case 3: gram_float32_tile<3>(rows, length, i, j, G, ldg); break;
      case 2: gram_float32_tile<2>(rows, length, i, j, G, ldg); break;
      case 1: gram_float32_tile<1>(rows, length, i, j, G, ldg); break;
      default: break;
    }
  }
}

}  // namespace
