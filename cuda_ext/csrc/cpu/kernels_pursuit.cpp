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
constexpr int64_t kCandidates = kPursuitCandidates;
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

// The picks guessed in one go, which the pass over all anchors settles.
struct Guess {
  const float* gram[kGuesses];                 // the pick's row of the Gram matrix
  float inverse[kGuesses];                     // 1 / rho
  float step[kGuesses];                        // p[pick] / rho
  float inside[kGuesses][kGuesses];            // h on the picks guessed before it in this go
  float earlier[kPursuitMost * kGuesses + 8];  // h on the columns there were: [column][guess]
};

// New columns of W picks, the products after all of them, and the largest magnitude of a product after each.
template <int W>
void sweep(const Guess& guess, int64_t anchors, int64_t most, int64_t k, const float* products, float* after, float* columns,
           float* seen) {
  Wide best[W];
  for (int s = 0; s < W; ++s) best[s] = Wide{};
  for (int64_t at = 0; at < anchors; at += kPanel) {
    float* panel = columns + at * most;
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
    for (int64_t i = 0; i < k; ++i) {
      // The next panel's columns: each is too short for the machine to fetch ahead.
      __builtin_prefetch(panel + (most + i) * kPanel);
      __builtin_prefetch(panel + (most + i) * kPanel + kWide);
      const Wide left = load(panel + i * kPanel), right = load(panel + i * kPanel + kWide);
      for (int s = 0; s < W; ++s) {
        const float h = guess.earlier[i * kGuesses + s];
        low[s] -= h * left;
        high[s] -= h * right;
      }
    }
    Wide p0 = load(products + at), p1 = load(products + at + kWide);
    for (int s = 0; s < W; ++s) {
      for (int r = 0; r < s; ++r) {
        low[s] -= guess.inside[s][r] * low[r];
        high[s] -= guess.inside[s][r] * high[r];
      }
      low[s] *= guess.inverse[s];
      high[s] *= guess.inverse[s];
      store(panel + (k + s) * kPanel, low[s]);
      store(panel + (k + s) * kPanel + kWide, high[s]);
      p0 -= guess.step[s] * low[s];
      p1 -= guess.step[s] * high[s];
      best[s] = larger(best[s], larger(magnitude(p0), magnitude(p1)));
    }
    store(after + at, p0);
    store(after + at + kWide, p1);
  }
  for (int s = 0; s < W; ++s) seen[s] = largest(best[s]);
}

using Sweep = void (*)(const Guess&, int64_t, int64_t, int64_t, const float*, float*, float*, float*);
constexpr Sweep kSweeps[] = {nullptr, sweep<1>, sweep<2>, sweep<3>, sweep<4>, sweep<5>, sweep<6>,
#if defined(__AVX512F__)
                            sweep<7>, sweep<8>,
#endif
};
static_assert(sizeof kSweeps / sizeof *kSweeps == kGuesses + 1);

// Anchors whose product reaches `least`, ascending, at most kCandidates; returns how many there are, one more for too many.
int64_t collect(const float* products, int64_t padded, float least, int32_t* ids) {
  int64_t count = 0;
  for (int64_t at = 0; at < padded; at += kWide) {
    const WideBits reach = magnitude(load(products + at)) >= least - Wide{};
    int64_t parts[kWide / 2], any = 0;
    memcpy(parts, &reach, sizeof parts);
    for (const int64_t part : parts) any |= part;
    if (any == 0) continue;
    for (int64_t lane = 0; lane < kWide; ++lane)
      if (reach[lane]) {
        if (count == kCandidates) return count + 1;
        ids[count++] = static_cast<int32_t>(at + lane);
      }
  }
  return count;
}

int64_t pursue(const float* gram, int64_t anchors, double square, int64_t most, float* products, float* scratch,
               int32_t* picks) {
  const int64_t padded = (anchors + kPanel - 1) / kPanel * kPanel;
  float* after = scratch;
  float* columns = after + padded;                                    // [panel][step][kPanel]
  float* near_columns = columns + padded * most;                      // [step][candidate]
  float* near_products = near_columns + (most + kGuesses) * kCandidates;
  int32_t* near = reinterpret_cast<int32_t*>(near_products + kCandidates);
  Guess guess;
  double rest = square;
  float top = 0;
  for (int64_t at = 0; at < padded; ++at) top = magnitude(products[at]) > top ? magnitude(products[at]) : top;
  for (int64_t k = 0; k < most;) {
    if (!(top > 0)) return k;
    int64_t count = 0;
    for (const float share : kShares) {
      count = collect(products, padded, share * top, near);
      if (count > 0 && count <= kCandidates) break;
    }
    if (count == 0) return -1;  // not a number among the products
    if (count > kCandidates) count = kCandidates;
    for (int64_t c = 0; c < count; ++c) {
      const float* column = columns + near[c] / kPanel * kPanel * most + near[c] % kPanel;
      near_products[c] = products[near[c]];
      for (int64_t i = 0; i < k; ++i) near_columns[i * kCandidates + c] = column[i * kPanel];
    }
    const int wanted = static_cast<int>(most - k < kGuesses ? most - k : kGuesses);
    float value[kGuesses];
    int guessed = 0;
    for (; guessed < wanted; ++guessed) {
      int64_t best = 0;
      for (int64_t c = 1; c < count; ++c)
        if (magnitude(near_products[c]) > magnitude(near_products[best])) best = c;
      value[guessed] = magnitude(near_products[best]);
      if (!(value[guessed] > 0)) break;  // no candidate is left; the pass over all anchors goes on from here
      const int64_t pick = near[best], step = k + guessed;
      const float* row = gram + pick * anchors;
      float h[kPursuitMost];
      double outside = row[pick];
      for (int64_t i = 0; i < step; ++i) {
        h[i] = near_columns[i * kCandidates + best];
        outside -= static_cast<double>(h[i]) * h[i];
      }
      if (!(outside > kLeft * row[pick])) break;
      const float inverse = static_cast<float>(1 / __builtin_sqrt(outside)), move = near_products[best] * inverse;
      rest -= static_cast<double>(move) * move;
      float* own = near_columns + step * kCandidates;
      for (int64_t c = 0; c < count; ++c) own[c] = row[near[c]];
      for (int64_t i = 0; i < step; ++i) {
        const float* column = near_columns + i * kCandidates;
        for (int64_t c = 0; c < count; ++c) own[c] -= h[i] * column[c];
      }
      for (int64_t c = 0; c < count; ++c) {
        own[c] *= inverse;
        near_products[c] -= move * own[c];
      }
      near_products[best] = 0;
      for (int64_t s = 0; s < guessed; ++s)
        if (picks[k + s] == pick) return -1;  // its product should be zero: rounding rules
      picks[step] = static_cast<int32_t>(pick);
      guess.gram[guessed] = row;
      guess.inverse[guessed] = inverse;
      guess.step[guessed] = move;
      for (int64_t i = 0; i < k; ++i) guess.earlier[i * kGuesses + guessed] = h[i];
      for (int s = 0; s < guessed; ++s) guess.inside[guessed][s] = h[k + s];
    }
    if (guessed == 0) return -1;
    float seen[kGuesses];
    kSweeps[guessed](guess, anchors, most, k, products, after, columns, seen);
    int right = 1;
    while (right < guessed && seen[right - 1] <= value[right] * kEqual) ++right;
    if (right == guessed) {
      memcpy(products, after, static_cast<size_t>(padded) * sizeof(float));
    } else {
      for (int64_t at = 0; at < padded; at += kPanel)
        for (int64_t lane = 0; lane < kPanel; lane += kWide) {
          Wide p = load(products + at + lane);
          for (int s = 0; s < right; ++s) p -= guess.step[s] * load(columns + at * most + (k + s) * kPanel + lane);
          store(products + at + lane, p);
        }
      for (int s = right; s < guessed; ++s) rest += static_cast<double>(guess.step[s]) * guess.step[s];
    }
    for (int64_t i = 0; i < k + right; ++i) products[picks[i]] = 0;
    top = seen[right - 1];
    k += right;
    if (k < most && !(rest > kLeft * square)) return -1;
  }
  return most;
}

}  // namespace

extern const PursuitKernels SALTLM_JOIN(pursuit_, SALTLM_LEVEL) = {pursue};

}  // namespace saltlm::cpu
