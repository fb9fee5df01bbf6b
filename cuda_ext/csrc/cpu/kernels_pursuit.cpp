// Orthogonal matching pursuit of one row over all anchors, computed from products only (see kernels.h and the README).
//
// Let p be the products of all anchors with the residual, and q_k the orthonormal directions of the anchors picked so
// far. The column u_k = (anchors q_k) follows from the Gram matrix without q: u_k = (G[pick] - sum_i h_i u_i) / rho,
// where h_i = u_i[pick] and rho^2 = G[pick, pick] - sum h_i^2. Then p -= (p[pick] / rho) u_k. Step k needs k
// multiplications per anchor instead of E, but one pass over all earlier columns. Therefore several picks are guessed
// at once from the few anchors with a large product, and one pass over the columns checks them: a guess is accepted if
// no other anchor has a larger product.
#include <cstdint>
#include <cstring>

#include "kernels.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// For loops whose counter selects an accumulator: accumulators stay in registers only if the loop is unrolled
// completely.
#if defined(__clang__)
#define SALTLM_UNROLL _Pragma("unroll")
#else
#define SALTLM_UNROLL _Pragma("GCC unroll 8")
#endif

namespace saltlm::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kFloatLanes = 16;
constexpr int kGuesses = 8;
#else
constexpr int kFloatLanes = 8;
constexpr int kGuesses = 6;  // 6 x 2 sums, 2 loads and a factor fill the 16 registers of AVX2
#endif
typedef float FloatLanes __attribute__((vector_size(kFloatLanes * 4)));
typedef int32_t IntLanes __attribute__((vector_size(kFloatLanes * 4)));

constexpr int64_t kPanel = int64_t{2} * kFloatLanes;  // anchors whose columns are stored together
static_assert(kPursuitPanel % kPanel == 0 && kGuesses <= kPursuitGuesses);
constexpr int64_t kInterleave = kPursuitInterleave;
constexpr int64_t kBlock = int64_t{4} * kFloatLanes;  // number of candidates processed at a time
constexpr int64_t kCandidates = kPursuitCandidates;
static_assert(kCandidates % kBlock == 0);
// An anchor is a candidate if its product is at least this share of the largest. The next share is tried if there are
// too many candidates.
constexpr float kCandidateShares[] = {0.65f, 0.75f, 0.85f, 1.0f};
// In float32 sums, a remaining squared norm below this share of the row's (or of the pick's outside the earlier ones)
// is rounding error. Such a row is returned to the caller.
constexpr double kMinRemaining = 1e-5;
// Products that differ by less than this factor are equal up to rounding, and either anchor may be picked.
constexpr float kTieFactor = 1 + 1e-5f;

inline FloatLanes load(const float* p) {
  FloatLanes v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, FloatLanes v) { memcpy(p, &v, sizeof v); }
inline FloatLanes abs_value(FloatLanes v) { return (FloatLanes)((IntLanes)v & 0x7fffffff); }
inline FloatLanes max_lanes(FloatLanes a, FloatLanes b) { return a > b ? a : b; }
inline float abs_value(float x) { return x < 0 ? -x : x; }
inline float largest(FloatLanes v) {
  float m = v[0];
  for (int i = 1; i < kFloatLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// One bit for each lane that is true.
inline uint32_t lane_mask(IntLanes v) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)v));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kFloatLanes; ++i) bits |= static_cast<uint32_t>(v[i] & 1) << i;
  return bits;
#endif
}

// Offset of a step's column for the panel at anchor `at`. kInterleave steps of a panel are stored together, then those
// of the next panel: one pass reads few memory streams, and the columns fill the caches without gaps.
inline int64_t column_offset(int64_t step, int64_t at, int64_t padded) {
  return (step / kInterleave * padded + at) * kInterleave + step % kInterleave * kPanel;
}

// The picks that are guessed together and then checked by one pass over all anchors.
struct Guess {
  const float* gram[kGuesses];                 // row of the Gram matrix of the pick
  float inverse[kGuesses];                     // 1 / rho
  float step[kGuesses];                        // p[pick] / rho
  float among_guesses[kGuesses][kGuesses];     // h on the earlier picks of the same group
  float on_columns[kMaxPicks * kGuesses + 8];  // h on the existing columns: [column][guess]
};

// The anchors from which the next picks are guessed, with their products and columns.
struct Candidates {
  float* columns;   // [step][candidate]
  float* products;  // [candidate]
  int32_t* ids;
  int64_t count;
};

// Computes the columns of W guessed picks, the products after all of them, and the largest absolute product after each.
template <int W>
void update_all_anchors(const Guess& guess, int64_t anchors, int64_t k, const float* products, float* new_products,
                        float* columns, float* largest_products) {
  const int64_t padded = (anchors + kPanel - 1) / kPanel * kPanel;
  FloatLanes best[W];
  for (int s = 0; s < W; ++s) best[s] = FloatLanes{};
  for (int64_t at = 0; at < anchors; at += kPanel) {
    FloatLanes low[W], high[W];
    if (at + kPanel <= anchors) {
      for (int s = 0; s < W; ++s) low[s] = load(guess.gram[s] + at), high[s] = load(guess.gram[s] + at + kFloatLanes);
    } else {
      for (int s = 0; s < W; ++s) {
        float tail[kPanel] = {};
        memcpy(tail, guess.gram[s] + at, static_cast<size_t>(anchors - at) * sizeof(float));
        low[s] = load(tail), high[s] = load(tail + kFloatLanes);
      }
    }
    for (int64_t first = 0; first < k; first += kInterleave) {
      const float* panel = columns + column_offset(first, at, padded);
      const float* factors = guess.on_columns + first * kGuesses;
      const int64_t end = k - first < kInterleave ? k - first : kInterleave;
      for (int64_t i = 0; i < end; ++i, factors += kGuesses) {
        const FloatLanes left = load(panel + i * kPanel), right = load(panel + i * kPanel + kFloatLanes);
        for (int s = 0; s < W; ++s) {
          low[s] -= factors[s] * left;
          high[s] -= factors[s] * right;
        }
      }
    }
    FloatLanes p0 = load(products + at), p1 = load(products + at + kFloatLanes);
    SALTLM_UNROLL
    for (int s = 0; s < W; ++s) {
      SALTLM_UNROLL
      for (int r = 0; r < s; ++r) {
        low[s] -= guess.among_guesses[s][r] * low[r];
        high[s] -= guess.among_guesses[s][r] * high[r];
      }
      low[s] *= guess.inverse[s];
      high[s] *= guess.inverse[s];
      float* column = columns + column_offset(k + s, at, padded);
      store(column, low[s]);
      store(column + kFloatLanes, high[s]);
      p0 -= guess.step[s] * low[s];
      p1 -= guess.step[s] * high[s];
      best[s] = max_lanes(best[s], max_lanes(abs_value(p0), abs_value(p1)));
    }
    store(new_products + at, p0);
    store(new_products + at + kFloatLanes, p1);
  }
  for (int s = 0; s < W; ++s) largest_products[s] = largest(best[s]);
}

using UpdateFunction = void (*)(const Guess&, int64_t, int64_t, const float*, float*, float*, float*);
constexpr UpdateFunction kUpdateFunctions[] = {
    nullptr,
    update_all_anchors<1>,
    update_all_anchors<2>,
    update_all_anchors<3>,
    update_all_anchors<4>,
    update_all_anchors<5>,
    update_all_anchors<6>,
#if defined(__AVX512F__)
    update_all_anchors<7>,
    update_all_anchors<8>,
#endif
};
static_assert(sizeof kUpdateFunctions / sizeof *kUpdateFunctions == kGuesses + 1);

// Index of the largest absolute value among `count` values (a multiple of kFloatLanes); the smallest index on a tie.
int64_t index_of_largest(const float* values, int64_t count) {
  FloatLanes best = abs_value(load(values));
  IntLanes first{}, at{};
  for (int64_t c = kFloatLanes; c < count; c += kFloatLanes) {
    const FloatLanes v = abs_value(load(values + c));
    at += kFloatLanes;
    const IntLanes better = v > best;
    best = better ? v : best;
    first = better ? at : first;
  }
  int64_t index = first[0];
  for (int lane = 1; lane < kFloatLanes; ++lane) {
    const float v = best[lane], largest_product = best[index % kFloatLanes];
    if (v > largest_product || (v == largest_product && first[lane] + lane < index)) index = first[lane] + lane;
  }
  return index;
}

// Collects the anchors whose absolute product is at least `minimum`, ascending, at most kCandidates. Returns their
// number, or kCandidates + 1 if there are more.
int64_t collect(const float* products, int64_t padded, float minimum, int32_t* ids) {
  int64_t count = 0;
  for (int64_t at = 0; at < padded; at += kFloatLanes) {
    for (uint32_t mask = lane_mask(abs_value(load(products + at)) >= minimum - FloatLanes{}); mask != 0;
         mask &= mask - 1) {
      if (count == kCandidates) return count + 1;
      ids[count++] = static_cast<int32_t>(at + __builtin_ctz(mask));
    }
  }
  return count;
}

// Selects the candidates by the current products, with the first of kCandidateShares that does not give too many.
// Returns false if no product compares to `largest_product` (NaN).
bool gather_candidates(const float* products, const float* columns, int64_t padded, int64_t k, float largest_product,
                       Candidates& candidates) {
  candidates.count = 0;
  for (const float share : kCandidateShares) {
    candidates.count = collect(products, padded, share * largest_product, candidates.ids);
    if (candidates.count > 0 && candidates.count <= kCandidates) break;
  }
  if (candidates.count > kCandidates) candidates.count = kCandidates;
  for (int64_t c = 0; c < candidates.count; ++c) {
    const int64_t at = candidates.ids[c] / kPanel * kPanel, lane = candidates.ids[c] % kPanel;
    candidates.products[c] = products[candidates.ids[c]];
    for (int64_t i = 0; i < k; ++i)
      candidates.columns[i * kCandidates + c] = columns[column_offset(i, at, padded) + lane];
  }
  return candidates.count > 0;
}

int64_t pursue(const float* gram, int64_t anchors, double square, int64_t max_picks, float* products, float* scratch,
               int32_t* picks) {
  const int64_t padded = (anchors + kPanel - 1) / kPanel * kPanel;
  float* new_products = scratch;
  float* columns = new_products + padded;  // see column_offset
  Candidates candidates;
  candidates.columns = columns + padded * ((max_picks + kInterleave - 1) / kInterleave * kInterleave);
  candidates.products = candidates.columns + (max_picks + kGuesses) * kCandidates;
  candidates.ids = reinterpret_cast<int32_t*>(candidates.products + kCandidates);
  Guess guess;
  double remaining = square;
  float largest_product = 0;
  for (int64_t at = 0; at < padded; ++at)
    largest_product = abs_value(products[at]) > largest_product ? abs_value(products[at]) : largest_product;
  for (int64_t k = 0; k < max_picks;) {
    if (!(largest_product > 0)) return k;
    if (!gather_candidates(products, columns, padded, k, largest_product, candidates)) return -1;
    // Padded with zeros to whole blocks; a zero is never picked.
    const int64_t count = candidates.count, padded_count = (count + kBlock - 1) / kBlock * kBlock;
    for (int64_t c = count; c < padded_count; ++c) candidates.products[c] = 0;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t c = count; c < padded_count; ++c) candidates.columns[i * kCandidates + c] = 0;
    const int max_guesses = static_cast<int>(max_picks - k < kGuesses ? max_picks - k : kGuesses);
    float guessed_product[kGuesses];
    int guessed = 0;
    for (; guessed < max_guesses; ++guessed) {
      const int64_t best = index_of_largest(candidates.products, padded_count);
      guessed_product[guessed] = abs_value(candidates.products[best]);
      // no candidate is left; the pass over all anchors continues from here
      if (!(guessed_product[guessed] > 0)) break;
      const int64_t pick = candidates.ids[best], step = k + guessed;
      const float* row = gram + pick * anchors;
      float* column = candidates.columns + step * kCandidates;
      for (int64_t c = 0; c < count; ++c) column[c] = row[candidates.ids[c]];
      for (int64_t c = count; c < padded_count; ++c) column[c] = 0;
      float h[kMaxPicks];
      double outside_square = row[pick];
      for (int64_t i = 0; i < step; ++i) {
        h[i] = candidates.columns[i * kCandidates + best];
        outside_square -= static_cast<double>(h[i]) * h[i];
      }
      if (!(outside_square > kMinRemaining * row[pick])) break;
      const float inverse = static_cast<float>(1 / __builtin_sqrt(outside_square)),
                  step_size = candidates.products[best] * inverse;
      remaining -= static_cast<double>(step_size) * step_size;
      for (int64_t c = 0; c < padded_count; c += kBlock) {
        FloatLanes sum[kBlock / kFloatLanes];
        for (int64_t v = 0; v < kBlock / kFloatLanes; ++v) sum[v] = load(column + c + v * kFloatLanes);
        for (int64_t i = 0; i < step; ++i)
          for (int64_t v = 0; v < kBlock / kFloatLanes; ++v)
            sum[v] -= h[i] * load(candidates.columns + i * kCandidates + c + v * kFloatLanes);
        for (int64_t v = 0; v < kBlock / kFloatLanes; ++v) {
          float* product = candidates.products + c + v * kFloatLanes;
          sum[v] *= inverse;
          store(column + c + v * kFloatLanes, sum[v]);
          store(product, load(product) - step_size * sum[v]);
        }
      }
      candidates.products[best] = 0;
      for (int64_t s = 0; s < step; ++s)
        if (picks[s] == pick) return -1;  // its product should be zero, so only rounding error is left
      picks[step] = static_cast<int32_t>(pick);
      guess.gram[guessed] = row;
      guess.inverse[guessed] = inverse;
      guess.step[guessed] = step_size;
      for (int64_t i = 0; i < k; ++i) guess.on_columns[i * kGuesses + guessed] = h[i];
      for (int s = 0; s < guessed; ++s) guess.among_guesses[guessed][s] = h[k + s];
    }
    if (guessed == 0) return -1;
    float largest_products[kGuesses];
    kUpdateFunctions[guessed](guess, anchors, k, products, new_products, columns, largest_products);
    int accepted = 1;
    while (accepted < guessed && largest_products[accepted - 1] <= guessed_product[accepted] * kTieFactor) ++accepted;
    if (accepted == guessed) {
      float* other = products;
      products = new_products;
      new_products = other;
    } else {
      for (int64_t at = 0; at < padded; at += kPanel)
        for (int64_t lane = 0; lane < kPanel; lane += kFloatLanes) {
          FloatLanes p = load(products + at + lane);
          for (int s = 0; s < accepted; ++s)
            p -= guess.step[s] * load(columns + column_offset(k + s, at, padded) + lane);
          store(products + at + lane, p);
        }
      for (int s = accepted; s < guessed; ++s) remaining += static_cast<double>(guess.step[s]) * guess.step[s];
    }
    largest_product = largest_products[accepted - 1];
    k += accepted;
    for (int64_t i = 0; i < k; ++i) products[picks[i]] = 0;
    if (k < max_picks && !(remaining > kMinRemaining * square)) return -1;
  }
  return max_picks;
}

}  // namespace

extern const PursuitKernels SALTLM_JOIN(pursuit_, SALTLM_LEVEL) = {pursue};

}  // namespace saltlm::cpu
