// A Gram matrix in float32, twice the rate of one in float64: good enough to start a refinement from. Included by
// kernels_solve.cpp only.
#pragma once

#include "lanes.h"

namespace {

constexpr int64_t kNarrow = 2 * kLanes;
typedef float Narrow __attribute__((vector_size(kNarrow * 4)));
typedef int32_t Places __attribute__((vector_size(kNarrow * 4)));

inline Narrow load_narrow(const float* p) {
  Narrow v;
  memcpy(&v, p, sizeof v);
  return v;
}

// The sums of four vectors, in the first four lanes: a third of the shuffles of four sums.
inline void totals(Narrow a, Narrow b, Narrow c, Narrow d, float* out) {
#if defined(__AVX512F__)
  const Places low{0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29},
      high{2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31},
      first{0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
      second{2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
#elif defined(__AVX__)
  const Places low{0, 8, 1, 9, 4, 12, 5, 13}, high{2, 10, 3, 11, 6, 14, 7, 15}, first{0, 1, 8, 9, 4, 5, 12, 13},
      second{2, 3, 10, 11, 6, 7, 14, 15};
#else
  const Places low{0, 4, 1, 5}, high{2, 6, 3, 7}, first{0, 1, 4, 5}, second{2, 3, 6, 7};
#endif
  const Narrow ab = __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high),
               cd = __builtin_shuffle(c, d, low) + __builtin_shuffle(c, d, high);
  Narrow all = __builtin_shuffle(ab, cd, first) + __builtin_shuffle(ab, cd, second);
#if defined(__AVX512F__)
  all += __builtin_shuffle(all, Places{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  all += __builtin_shuffle(all, Places{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
#elif defined(__AVX__)
  all += __builtin_shuffle(all, Places{4, 5, 6, 7, 0, 1, 2, 3});
#endif
  memcpy(out, &all, 4 * sizeof(float));
}

template <int J>
inline void narrow_tile(const float* const* rows, int64_t length, int64_t i, int64_t j, double* G, int64_t ldg) {
  Narrow sum[4][J] = {};
  const float *left[4], *right[J];
  for (int u = 0; u < 4; ++u) left[u] = rows[i + u];
  for (int v = 0; v < J; ++v) right[v] = rows[j + v];
  for (int64_t e = 0; e < length; e += kNarrow) {
    Narrow b[J];
    for (int v = 0; v < J; ++v) b[v] = load_narrow(right[v] + e);
    for (int u = 0; u < 4; ++u) {
      const Narrow a = load_narrow(left[u] + e);
      for (int v = 0; v < J; ++v) sum[u][v] += a * b[v];
    }
  }
  for (int v = 0; v < J; ++v) {
    float out[4];
    totals(sum[0][v], sum[1][v], sum[2][v], sum[3][v], out);
    for (int u = 0; u < 4; ++u) G[(i + u) * ldg + j + v] = out[u];
  }
}

// Lower triangle of G, the products of n rows (a multiple of 4) of `length` numbers (a multiple of kNarrow).
void narrow_products(const float* const* rows, int64_t n, int64_t length, double* G, int64_t ldg) {
#if defined(__AVX512F__)
  constexpr int kSide = 6;  // 24 sums, 6 rows and one stay in the 32 registers
#else
  constexpr int kSide = 3;
#endif
  for (int64_t i = 0; i < n; i += 4) {
    const int64_t end = i + 4;
    int64_t j = 0;
    for (; j + kSide <= end; j += kSide) narrow_tile<kSide>(rows, length, i, j, G, ldg);
    switch (end - j) {
      case 5: narrow_tile<5>(rows, length, i, j, G, ldg); break;
      case 4: narrow_tile<4>(rows, length, i, j, G, ldg); break;
      case 3: narrow_tile<3>(rows, length, i, j, G, ldg); break;
      case 2: narrow_tile<2>(rows, length, i, j, G, ldg); break;
      case 1: narrow_tile<1>(rows, length, i, j, G, ldg); break;
      default: break;
    }
  }
}

}  // namespace
