// Exact sparsemax of one row of cosines, from approximate cosines of all anchors and float64 cosines of a few.
//
// Approximate cosines s differ from the true ones z by at most `slack`. The threshold of sparsemax is 1-Lipschitz in
// the largest difference, tau(z) >= tau(s) - slack, so every member of the true support has s > tau(s) - 2 slack. The
// cosines of the anchors that pass this filter (the survivors) are recomputed in float64 and sorted, and the support
// follows from them. So the result does not depend on how the approximate product was rounded.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "team.h"

namespace saltlm::cuda {

// Added to the filter's bound for the rounding of the thresholds themselves (float64 sums of numbers of size 1).
constexpr double kThresholdRounding = 1e-12;

// Rounds to the nearest bfloat16, ties to even, and converts back. Only for finite numbers.
SALTLM_BOTH uint16_t to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
SALTLM_BOTH float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// out [stride] = row [W] times `factor` in bfloat16, padded with zeros; all zeros for a factor of 0. Executed by one
// group. Returns the norm of the rounding error.
template <class Team, class X>
SALTLM_BOTH double round_to_bfloat16(const Team& team, const X* row, double factor, int64_t W, int64_t stride,
                                     uint16_t* out) {
  double error_square = 0.0;
  for (int64_t w = team.lane(); w < stride; w += team.lanes()) {
    const double exact = w < W && factor != 0.0 ? static_cast<double>(row[w]) * factor : 0.0;
    out[w] = to_bfloat16(static_cast<float>(exact));
    const double rounding_error = exact - static_cast<double>(from_bfloat16(out[w]));
    error_square += rounding_error * rounding_error;
  }
  return sqrt(team.lane_sum(error_square));
}

// Bound on |product - cosine| for directions in bfloat16 whose product is summed in float32. r and a are the exact
// directions, R and A the rounded ones, x = |R - r| and y = |A - a| their measured rounding errors.
// The inputs' errors add at most x (1 + y) + y, for |r| = |a| = 1. Products of two bfloat16 values are exact in
// float32, but tensor cores add them in groups whose terms are truncated to the bits of the largest one: each of the P
// products and of the at most P / 4 sums loses at most 2^-23 of the largest number involved, which is at most sum |R_i
// A_i| <= (1 + x) (1 + y). The factor (P + 1) 2^-21 is three times larger than that, for other orders of summation.
// 1e-6 covers numbers below float32's normal range and the rounding in float64.
SALTLM_BOTH double bfloat16_error_bound(double x, double y, int64_t P) {
  return x * (1.0 + y) + y + static_cast<double>(P + 1) * 4.76837158203125e-07 * (1.0 + x) * (1.0 + y) + 1e-6;
}

// One step of Michelot's iteration from `tau`, a lower bound of the threshold: tau becomes (sum of the values above tau
// - 1) / (their number). Returns true while the bound rises. `value(i)` for i in [0, n); some value must be above tau.
template <class Team, class Value>
SALTLM_BOTH bool raise_threshold(const Team& team, int64_t n, const Value& value, double* tau, double* count) {
  double sum = 0.0, above = 0.0;
  for (int64_t i = team.rank(); i < n; i += team.size()) {
    const double v = value(i);
    if (v > *tau) {
      sum += v;
      above += 1.0;
    }
  }
  sum = team.sum(sum);
  above = team.sum(above);
  if (above == 0.0) return false;  // possible by rounding, at the fixed point
  const double next = (sum - 1.0) / above;
  // The set of values above tau only shrinks. It is final when none was dropped or when rounding stops the rise.
  const bool rises = next > *tau && above != *count;
  if (next > *tau) *tau = next;
  *count = above;
  return rises;
}

struct RowFilter {
  double min_cosine;  // anchors with a cosine above it may be in the support
  int survivors;      // how many anchors are above it
};

// The filter of one row. s [A]: approximate cosines. valid [A]: 0 for anchors that are zero or not finite.
// thread_maxima [team.size()], list [capacity] and counter are memory of the team. A is below 2^31.
template <class Team>
SALTLM_BOTH RowFilter filter_row(const Team& team, const float* s, const uint8_t* valid, int64_t A, double slack,
                                 float* thread_maxima, float* list, int capacity, int* counter) {
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  // The largest value of each thread's share. The threshold of a subset never exceeds that of the whole set, so the
  // threshold of these maxima is a lower bound, and only a short list of values is above it.
  float thread_maximum = -std::numeric_limits<float>::infinity();
  for (int64_t i = team.rank(); i < A; i += team.size())
    if (valid[i] && s[i] > thread_maximum) thread_maximum = s[i];
  thread_maxima[team.rank()] = thread_maximum;
  if (team.rank() == 0) *counter = 0;
  const double largest = team.max(thread_maximum);  // also the barrier after the two writes
  if (!(largest > minus_infinity)) return {0.0, 0};
  double tau = largest - 1.0, count = -1.0;
  team.sync();
  while (raise_threshold(
      team, team.size(), [&](int64_t i) { return static_cast<double>(thread_maxima[i]); }, &tau, &count)) {
  }
  const double lower_bound = tau - 2.0 * slack - 2.0 * kThresholdRounding;
  for (int64_t i = team.rank(); i < A; i += team.size()) {
    if (valid[i] && s[i] > lower_bound) {
      const int position = team.append(counter);
      if (position < capacity) list[position] = s[i];
    }
  }
  team.sync();
  const int listed = *counter;
  const bool short_list = listed <= capacity;
  const int64_t n = short_list ? listed : A;
  const auto value = [&](int64_t i) {
    if (short_list) return static_cast<double>(list[i]);
    return valid[i] ? static_cast<double>(s[i]) : minus_infinity;
  };
  count = -1.0;
  while (raise_threshold(team, n, value, &tau, &count)) {
  }
  const double min_cosine = tau - 2.0 * slack - kThresholdRounding;
  double survivors = 0.0;
  for (int64_t i = team.rank(); i < n; i += team.size())
    if (value(i) > min_cosine) survivors += 1.0;
  return {min_cosine, static_cast<int>(team.sum(survivors))};
}

// Collects the positions of the survivors of filter_row, in no fixed order.
template <class Team>
SALTLM_BOTH void collect_survivors(const Team& team, const float* s, const uint8_t* valid, int64_t A, double min_cosine,
                                   int* counter, int32_t* ids, int expected) {
  if (team.rank() == 0) *counter = 0;
  team.sync();
  for (int64_t i = team.rank(); i < A; i += team.size()) {
    if (valid[i] && s[i] > min_cosine) {
      const int position = team.append(counter);
      // always true: filter_row counted the same values
      if (position < expected) ids[position] = static_cast<int32_t>(i);
    }
  }
  team.sync();
}

// Float64 cosines of the row `x` [P] with the anchors ids [n], each summed in an order that depends on P and the lanes
// only.
template <class Team, class X>
SALTLM_BOTH void exact_cosines(const Team& team, const X* x, double inverse_norm, const X* anchors,
                               const double* anchor_inverse_norms, int64_t P, const int32_t* ids, int n,
                               double* cosines) {
  for (int i = team.group(); i < n; i += team.groups()) {
    const X* a = anchors + static_cast<int64_t>(ids[i]) * P;
    double dot = 0.0;
    for (int64_t j = team.lane(); j < P; j += team.lanes())
      dot += static_cast<double>(x[j]) * static_cast<double>(a[j]);
    dot = team.lane_sum(dot);
    if (team.lane() == 0) cosines[i] = dot * anchor_inverse_norms[ids[i]] * inverse_norm;
  }
  team.sync();
}

// Bitonic sort by descending cosine, then ascending position. Every exchange puts the earlier element at the lower
// index, so an exchange with a missing upper partner is skipped and n need not be a power of two.
template <class Team>
SALTLM_BOTH void sort_row(const Team& team, double* cosines, int32_t* ids, int n) {
  const auto exchange = [&](int64_t low, int64_t high) {
    if (high >= n) return;
    const bool ordered = cosines[low] > cosines[high] || (cosines[low] == cosines[high] && ids[low] < ids[high]);
    if (ordered) return;
    const double c = cosines[low];
    cosines[low] = cosines[high];
    cosines[high] = c;
    const int32_t id = ids[low];
    ids[low] = ids[high];
    ids[high] = id;
  };
  for (int64_t width = 2; width < 2 * static_cast<int64_t>(n); width *= 2) {
    for (int64_t i = team.rank(); i < n; i += team.size())
      if (const int64_t other = i ^ (width - 1); other > i) exchange(i, other);
    team.sync();
    for (int64_t step = width / 4; step > 0; step /= 2) {
      for (int64_t i = team.rank(); i < n; i += team.size())
        if (const int64_t other = i ^ step; other > i) exchange(i, other);
      team.sync();
    }
  }
}

struct Threshold {
  double tau;
  int support;
};

// Support size and threshold of `cosines` [n], sorted descending, n >= 1: the longest prefix with
// 1 + k z_k > z_1 + ... + z_k. The condition holds for all k up to some value and for none after. Executed by each
// thread.
SALTLM_BOTH Threshold sparsemax_sorted(const double* cosines, int n) {
  double sum = 0.0, tau = 0.0;
  int k = 0;
  while (k < n) {
    const double z = cosines[k];
    if (!(1.0 + (k + 1) * z > sum + z)) break;
    sum += z;
    ++k;
    tau = (sum - 1.0) / k;
  }
  return {tau, k};
}

// Turns sorted cosines [n] into weights. With max_support > 0, only the nearest anchors are kept, and the sparsemax is
// taken over those. Returns the number of weights.
template <class Team>
SALTLM_BOTH int weigh_row(const Team& team, double* cosines, int n, int64_t max_support) {
  Threshold threshold = sparsemax_sorted(cosines, n);
  if (max_support > 0 && threshold.support > max_support)
    threshold = sparsemax_sorted(cosines, static_cast<int>(max_support));
  // By rounding, the last cosines may equal the threshold: they get no weight.
  while (threshold.support > 0 && !(cosines[threshold.support - 1] - threshold.tau > 0.0)) --threshold.support;
  team.sync();  // all threads have read before any thread writes
  for (int i = team.rank(); i < threshold.support; i += team.size()) cosines[i] -= threshold.tau;
  team.sync();
  return threshold.support;
}

// The exact support of a row with n >= 1 survivors above `min_cosine`. ids and weights have room for n entries; the
// support is written to their beginning. Returns its size.
template <class Team, class X>
SALTLM_BOTH int exact_support(const Team& team, const float* s, const uint8_t* valid, int64_t A, double min_cosine,
                              const X* x, double inverse_norm, const X* anchors, const double* anchor_inverse_norms,
                              int64_t P, int64_t max_support, int n, int* counter, int32_t* ids, double* weights) {
  collect_survivors(team, s, valid, A, min_cosine, counter, ids, n);
  exact_cosines(team, x, inverse_norm, anchors, anchor_inverse_norms, P, ids, n, weights);
  sort_row(team, weights, ids, n);
  return weigh_row(team, weights, n, max_support);
}

}  // namespace saltlm::cuda
