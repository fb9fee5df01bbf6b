// Orthogonal matching pursuit of one row over all anchors, from products alone (see kernels.h and the README).
//
// With p the products of all anchors with the residual, and q_k the orthonormal directions of the anchors picked so far, the
// column u_k = (anchors q_k) follows from the Gram matrix without any q: u_k = (G[pick] - sum_i h_i u_i) / rho, where h_i =
// u_i[pick] and rho^2 = G[pick, pick] - sum h_i^2; then p -= (p[pick] / rho) u_k. That is k multiplications an anchor in step
// k rather than E, but one pass over all earlier columns a step. So several picks are guessed at once from the few anchors
// with a large product, and one pass over the columns settles them all: a guess stands if no other anchor does better.
#include <cstdint>
#include <cstring>

#include "kernels.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// For loops whose counter chooses a sum: sums stay in registers only where every turn is written out.
#if defined(__clang__)
#define SALTLM_UNROLL _Pragma("unroll")
#else
#define SALTLM_UNROLL _Pragma("GCC unroll 8")
#endif

namespace saltlm::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 16;
constexpr int kGuesses = 8;
#else
constexpr int kWide = 8;
constexpr int kGuesses = 6;  // 6 x 2 sums, 2 loads and a factor fill the 16 registers of AVX2
#endif
typedef float Wide __attribute__((vector_size(kWide * 4)));
typedef int32_t WideBits __attribute__((vector_size(kWide * 4)));

constexpr int64_t kPanel = 2 * kWide;  // anchors whose columns lie together
static_assert(kPursuitPanel % kPanel == 0 && kGuesses <= kPursuitGuesses);
constexpr int64_t kTogether = kPursuitTogether;
constexpr int64_t kBlock = 4 * kWide;  // candidates at a time
constexpr int64_t kCandidates = kPursuitCandidates;
static_assert(kCandidates % kBlock == 0);
// An anchor is a candidate if its product is at least this share of the largest; the next ones if those are too many.
constexpr float kShares[] = {0.65f, 0.75f, 0.85f, 1.0f};
// Float32 sums cannot tell what is left of a row below this share of its squared norm, or what is left of a pick outside
// the earlier ones: such a row is left to the careful way.
constexpr double kLeft = 1e-5;
// Products that differ by less are equal to rounding, and either may be picked.
constexpr float kEqual = 1 + 1e-5f;

inline Wide load(const float* p) {
  Wide v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Wide v) { memcpy(p, &v, sizeof v); }
inline Wide magnitude(Wide v) { return (Wide)((WideBits)v & 0x7fffffff); }
inline Wide larger(Wide a, Wide b) { return a > b ? a : b; }
inline float magnitude(float x) { return x < 0 ? -x : x; }
inline float largest(Wide v) {
  float m = v[0];
  for (int i = 1; i < kWide; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// A bit for each lane that is true.
inline uint32_t lanes(WideBits v) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)v));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWide; ++i) bits |= static_cast<uint32_t>(v[i] & 1) << i;
  return bits;
#endif
}

// Where a step's column for the panel at anchor `at` lies. kTogether steps of a panel lie together, the next panel's behind
// them: a pass reads few streams, and the columns that there are fill the caches without gaps.
inline int64_t place(int64_t step, int64_t at, int64_t padded) {
  return (step / kTogether * padded + at) * kTogether + step % kTogether * kPanel;
}

// The picks guessed in one go, which the pass over all anchors settles.
struct Guess {
  const float* gram[kGuesses];                 // the pick's row of the Gram matrix
  float inverse[kGuesses];                     // 1 / rho
  float step[kGuesses];                        // p[pick] / rho
  float inside[kGuesses][kGuesses];            // h on the picks guessed before it in this go
  float earlier[kPursuitMost * kGuesses + 8];  // h on the columns there were: [column][guess]
};

// The anchors that the next picks are guessed from, with their products and columns.
struct Near {
  float* columns;   // [step][candidate]
  float* products;  // [candidate]
  int32_t* ids;
  int64_t count;
};

// New columns of W picks, the products after all of them, and the largest magnitude of a product after each.
template <int W>
void sweep(const Guess& guess, int64_t anchors, int64_t k, const float* products, float* after, float* columns, float* seen) {
  const int64_t padded = (anchors + kPanel - 1) / kPanel * kPanel;
  Wide best[W];
  for (int s = 0; s < W; ++s) best[s] = Wide{};
  for (int64_t at = 0; at < anchors; at += kPanel) {
    Wide low[W], high[W];
    if (at + kPanel <= anchors) {
      for (int s = 0; s < W; ++s) low[s] = load(guess.gram[s] + at), high[s] = load(guess.gram[s] + at + kWide);
    } else {
      for (int s = 0; s < W; ++s) {
        float tail[kPanel] = {};
        memcpy(tail, guess.gram[s] + at, static_cast<size_t>(anchors - at) * sizeof(float));
        low[s] = load(tail), high[s] = load(tail + kWide);
      }
    }
    for (int64_t first = 0; first < k; first += kTogether) {
      const float* panel = columns + place(first, at, padded);
      const float* factors = guess.earlier + first * kGuesses;
      const int64_t end = k - first < kTogether ? k - first : kTogether;
      for (int64_t i = 0; i < end; ++i, factors += kGuesses) {
        const Wide left = load(panel + i * kPanel), right = load(panel + i * kPanel + kWide);
        for (int s = 0; s < W; ++s) {
          low[s] -= factors[s] * left;
          high[s] -= factors[s] * right;
        }
      }
    }
    Wide p0 = load(products + at), p1 = load(products + at + kWide);
    SALTLM_UNROLL
    for (int s = 0; s < W; ++s) {
      SALTLM_UNROLL
      for (int r = 0; r < s; ++r) {
        low[s] -= guess.inside[s][r] * low[r];
        high[s] -= guess.inside[s][r] * high[r];
      }
      low[s] *= guess.inverse[s];
      high[s] *= guess.inverse[s];
      float* own = columns + place(k + s, at, padded);
      store(own, low[s]);
      store(own + kWide, high[s]);
      p0 -= guess.step[s] * low[s];
      p1 -= guess.step[s] * high[s];
      best[s] = larger(best[s], larger(magnitude(p0), magnitude(p1)));
    }
    store(after + at, p0);
    store(after + at + kWide, p1);
  }
  for (int s = 0; s < W; ++s) seen[s] = largest(best[s]);
}

using Sweep = void (*)(const Guess&, int64_t, int64_t, const float*, float*, float*, float*);
constexpr Sweep kSweeps[] = {nullptr, sweep<1>, sweep<2>, sweep<3>, sweep<4>, sweep<5>, sweep<6>,
#if defined(__AVX512F__)
                            sweep<7>, sweep<8>,
#endif
};
static_assert(sizeof kSweeps / sizeof *kSweeps == kGuesses + 1);

// The first place of the largest magnitude among `count` values, a multiple of kWide.
int64_t largest_at(const float* values, int64_t count) {
  Wide best = magnitude(load(values));
  WideBits first{}, at{};
  for (int64_t c = kWide; c < count; c += kWide) {
    const Wide v = magnitude(load(values + c));
    at += kWide;
    const WideBits better = v > best;
    best = better ? v : best;
    first = better ? at : first;
  }
  int64_t found = first[0];
  for (int lane = 1; lane < kWide; ++lane) {
    const float v = best[lane], top = best[found % kWide];
    if (v > top || (v == top && first[lane] + lane < found)) found = first[lane] + lane;
  }
  return found;
}

// Anchors whose product reaches `least`, ascending, at most kCandidates; returns how many there are, one more for too many.
int64_t collect(const float* products, int64_t padded, float least, int32_t* ids) {
  int64_t count = 0;
  for (int64_t at = 0; at < padded; at += kWide) {
    for (uint32_t reach = lanes(magnitude(load(products + at)) >= least - Wide{}); reach != 0; reach &= reach - 1) {
      if (count == kCandidates) return count + 1;
      ids[count++] = static_cast<int32_t>(at + __builtin_ctz(reach));
    }
  }
  return count;
}

// The candidates from all products as they stand: those that reach the first of kShares that is not reached by too many.
// False where no product compares to `top`: not a number.
bool gather(const float* products, const float* columns, int64_t padded, int64_t k, float top, Near& near) {
  near.count = 0;
  for (const float share : kShares) {
    near.count = collect(products, padded, share * top, near.ids);
    if (near.count > 0 && near.count <= kCandidates) break;
  }
  if (near.count > kCandidates) near.count = kCandidates;
  for (int64_t c = 0; c < near.count; ++c) {
    const int64_t at = near.ids[c] / kPanel * kPanel, lane = near.ids[c] % kPanel;
    near.products[c] = products[near.ids[c]];
    for (int64_t i = 0; i < k; ++i) near.columns[i * kCandidates + c] = columns[place(i, at, padded) + lane];
  }
  return near.count > 0;
}

int64_t pursue(const float* gram, int64_t anchors, double square, int64_t most, float* products, float* scratch,
               int32_t* picks) {
  const int64_t padded = (anchors + kPanel - 1) / kPanel * kPanel;
  float* after = scratch;
  float* columns = after + padded;  // see place
  Near near;
  near.columns = columns + padded * ((most + kTogether - 1) / kTogether * kTogether);
  near.products = near.columns + (most + kGuesses) * kCandidates;
  near.ids = reinterpret_cast<int32_t*>(near.products + kCandidates);
  Guess guess;
  double rest = square;
  float top = 0;
  for (int64_t at = 0; at < padded; ++at) top = magnitude(products[at]) > top ? magnitude(products[at]) : top;
  for (int64_t k = 0; k < most;) {
    if (!(top > 0)) return k;
    if (!gather(products, columns, padded, k, top, near)) return -1;
    // Up to whole blocks with zeros, which no pick is made of.
    const int64_t count = near.count, room = (count + kBlock - 1) / kBlock * kBlock;
    for (int64_t c = count; c < room; ++c) near.products[c] = 0;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t c = count; c < room; ++c) near.columns[i * kCandidates + c] = 0;
    const int wanted = static_cast<int>(most - k < kGuesses ? most - k : kGuesses);
    float value[kGuesses];
    int guessed = 0;
    for (; guessed < wanted; ++guessed) {
      const int64_t best = largest_at(near.products, room);
      value[guessed] = magnitude(near.products[best]);
      if (!(value[guessed] > 0)) break;  // no candidate is left; the pass over all anchors goes on from here
      const int64_t pick = near.ids[best], step = k + guessed;
      const float* row = gram + pick * anchors;
      float* own = near.columns + step * kCandidates;
      for (int64_t c = 0; c < count; ++c) own[c] = row[near.ids[c]];
      for (int64_t c = count; c < room; ++c) own[c] = 0;
      float h[kPursuitMost];
      double outside = row[pick];
      for (int64_t i = 0; i < step; ++i) {
        h[i] = near.columns[i * kCandidates + best];
        outside -= static_cast<double>(h[i]) * h[i];
      }
      if (!(outside > kLeft * row[pick])) break;
      const float inverse = static_cast<float>(1 / __builtin_sqrt(outside)), move = near.products[best] * inverse;
      rest -= static_cast<double>(move) * move;
      for (int64_t c = 0; c < room; c += kBlock) {
        Wide sum[kBlock / kWide];
        for (int64_t v = 0; v < kBlock / kWide; ++v) sum[v] = load(own + c + v * kWide);
        for (int64_t i = 0; i < step; ++i)
          for (int64_t v = 0; v < kBlock / kWide; ++v)
            sum[v] -= h[i] * load(near.columns + i * kCandidates + c + v * kWide);
        for (int64_t v = 0; v < kBlock / kWide; ++v) {
          float* product = near.products + c + v * kWide;
          sum[v] *= inverse;
          store(own + c + v * kWide, sum[v]);
          store(product, load(product) - move * sum[v]);
        }
      }
      near.products[best] = 0;
      for (int64_t s = 0; s < step; ++s)
        if (picks[s] == pick) return -1;  // its product should be zero: rounding rules
      picks[step] = static_cast<int32_t>(pick);
      guess.gram[guessed] = row;
      guess.inverse[guessed] = inverse;
      guess.step[guessed] = move;
      for (int64_t i = 0; i < k; ++i) guess.earlier[i * kGuesses + guessed] = h[i];
      for (int s = 0; s < guessed; ++s) guess.inside[guessed][s] = h[k + s];
    }
    if (guessed == 0) return -1;
    float seen[kGuesses];
    kSweeps[guessed](guess, anchors, k, products, after, columns, seen);
    int right = 1;
    while (right < guessed && seen[right - 1] <= value[right] * kEqual) ++right;
    if (right == guessed) {
      float* other = products;
      products = after;
      after = other;
    } else {
      for (int64_t at = 0; at < padded; at += kPanel)
        for (int64_t lane = 0; lane < kPanel; lane += kWide) {
          Wide p = load(products + at + lane);
          for (int s = 0; s < right; ++s) p -= guess.step[s] * load(columns + place(k + s, at, padded) + lane);
          store(products + at + lane, p);
        }
      for (int s = right; s < guessed; ++s) rest += static_cast<double>(guess.step[s]) * guess.step[s];
    }
    top = seen[right - 1];
    k += right;
    for (int64_t i = 0; i < k; ++i) products[picks[i]] = 0;
    if (k < most && !(rest > kLeft * square)) return -1;
  }
  return most;
}

}  // namespace

extern const PursuitKernels SALTLM_JOIN(pursuit_, SALTLM_LEVEL) = {pursue};

}  // namespace saltlm::cpu
