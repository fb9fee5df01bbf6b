// Vectors of doubles with the width of the level that is compiled, and the basic loops of all kernels. The order of
// every sum depends on the lengths only. Included by kernels*.cpp only, in an anonymous namespace (see kernels.h).
#pragma once

#include <cstdint>
#include <cstring>

// The lanes of a (0 .. n - 1) and b (n .. 2 n - 1) in the order of the indices, which have the integer vector type
// Indices. clang has no __builtin_shuffle, and gcc has __builtin_shufflevector only since version 12.
#if defined(__clang__)
#define SALTLM_SHUFFLE(Indices, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SALTLM_SHUFFLE(Indices, a, b, ...) __builtin_shuffle(a, b, Indices{__VA_ARGS__})
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 8;
#elif defined(__AVX__)
constexpr int64_t kLanes = 4;
#else
constexpr int64_t kLanes = 2;
#endif
// Rows of doubles in scratch memory are padded with zeros to a multiple of this, so that loops need no remainder.
constexpr int64_t kPadding = 8;

typedef double Lanes __attribute__((vector_size(kLanes * 8)));
typedef float HalfLanes __attribute__((vector_size(kLanes * 4)));
typedef uint16_t QuarterLanes __attribute__((vector_size(kLanes * 2)));
typedef uint32_t HalfBits __attribute__((vector_size(kLanes * 4)));

inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

inline Lanes load(const double* p) {
  Lanes v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline Lanes load(const float* p) {
  HalfLanes v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Lanes);
}
inline void store(double* p, Lanes v) { memcpy(p, &v, sizeof v); }

struct Bfloat16 {
  uint16_t bits;
};
inline Lanes load(const Bfloat16* p) {
  QuarterLanes q;
  memcpy(&q, p, sizeof q);
  const HalfBits bits = __builtin_convertvector(q, HalfBits) << 16;
  HalfLanes f;
  memcpy(&f, &bits, sizeof f);
  return __builtin_convertvector(f, Lanes);
}
inline double as_double(double x) { return x; }
inline double as_double(float x) { return x; }
inline double as_double(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

inline Lanes broadcast(double x) { return x - Lanes{}; }

inline double sum_lanes(Lanes v) {
#if defined(__AVX512F__)
  typedef int64_t Order __attribute__((vector_size(64)));
  v += SALTLM_SHUFFLE(Order, v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += SALTLM_SHUFFLE(Order, v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  v += SALTLM_SHUFFLE(Order, v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  return v[0];
#elif defined(__AVX__)
  typedef int64_t Order __attribute__((vector_size(32)));
  v += SALTLM_SHUFFLE(Order, v, v, 2, 3, 0, 1);
  return v[0] + v[1];
#else
  return v[0] + v[1];
#endif
}

template <class A, class B>
inline double dot(const A* a, const B* b, int64_t n) {
  Lanes s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + kLanes) * load(b + i + kLanes);
    s2 += load(a + i + 2 * kLanes) * load(b + i + 2 * kLanes);
    s3 += load(a + i + 3 * kLanes) * load(b + i + 3 * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) s0 += load(a + i) * load(b + i);
  double sum = sum_lanes((s0 + s1) + (s2 + s3));
  for (; i < n; ++i) sum += as_double(a[i]) * as_double(b[i]);
  return sum;
}

template <class X>
inline void axpy(double factor, const X* x, double* y, int64_t n) {
  const Lanes f = broadcast(factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + f * load(x + i));
  for (; i < n; ++i) y[i] += factor * as_double(x[i]);
}

// Whether all n values are finite.
template <class A>
inline bool all_finite(const A* a, int64_t n) {
  Lanes s0{}, s1{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    s0 += load(a + i) * 0.0;
    s1 += load(a + i + kLanes) * 0.0;
  }
  double sum = sum_lanes(s0 + s1);
  for (; i < n; ++i) sum += as_double(a[i]) * 0.0;
  return sum == 0;
}

// out[i][j] = <a_i, b_j> for I rows of a and J rows of b. `length` is a multiple of kLanes.
template <int I, int J>
inline void dots(const double* a, int64_t lda, const double* b, int64_t ldb, int64_t length, double (&out)[I][J]) {
  Lanes sum[I][J] = {};
  for (int64_t e = 0; e < length; e += kLanes) {
    Lanes right[J];
    for (int j = 0; j < J; ++j) right[j] = load(b + j * ldb + e);
    for (int i = 0; i < I; ++i) {
      const Lanes left = load(a + i * lda + e);
      for (int j = 0; j < J; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < I; ++i)
    for (int j = 0; j < J; ++j) out[i][j] = sum_lanes(sum[i][j]);
}

}  // namespace
