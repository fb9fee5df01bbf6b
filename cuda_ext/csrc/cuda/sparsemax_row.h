// Exact sparsemax of one row of cosines, from approximate cosines first and float64 ones for the few that matter.
//
// Approximate cosines s differ from the true ones z by at most `slack`. sparsemax's threshold is 1-Lipschitz in the
// largest difference, tau(z) >= tau(s) - slack, so every member of the true support has s > tau(s) - 2 slack. What
// passes this filter is computed again in float64, sorted, and the exact support read off: the result does not depend
// on how the approximate product was rounded.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "team.h"

namespace saltlm::cuda {

// Added to the filter for the rounding of the thresholds themselves (float64 sums of numbers of size 1).
constexpr double kThresholdRounding = 1e-12;

// To the nearest bfloat16, ties to even, and back. A number that is not finite has no use here.
SALTLM_BOTH uint16_t to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
SALTLM_BOTH float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float whole;
  memcpy(&whole, &bits, sizeof whole);
  return whole;
}

// The row times `factor` in bfloat16, `stride` of them, zeros behind the W of the row; zeros alone for a factor of 0. By one
// group. Returns the length of what the rounding took away.
template <class Team, class X>
SALTLM_BOTH double narrow_row(const Team& team, const X* row, double factor, int64_t W, int64_t stride, uint16_t* out) {
  double lost = 0.0;
  for (int64_t w = team.lane(); w < stride; w += team.lanes()) {
    const double exact = w < W && factor != 0.0 ? static_cast<double>(row[w]) * factor : 0.0;
    out[w] = to_bfloat16(static_cast<float>(exact));
    const double rest = exact - static_cast<double>(from_bfloat16(out[w]));
    lost += rest * rest;
  }
  return sqrt(team.lane_sum(lost));
}

// How far a value of the product of directions in bfloat16, summed in float32, can be from the true cosine of r and a. Rounded
// they are R and A, and x = |R - r|, y = |A - a| were measured. The inputs' errors add x (1 + y) + y, for |r| = |a| = 1. The
// products are exact in float32, but tensor cores add them by groups that are cut off at the bits of the largest, not
// rounded: each of P products and of P / 4 sums at most loses 2^-23 of the largest number at hand, which sum |R_i A_i| <=
// (1 + x) (1 + y) bounds; (P + 1) 2^-21 leaves three times that for other ways to add. 1e-6 covers what is below float32's
// normal numbers and float64's roundings.
SALTLM_BOTH double narrow_slack(double x, double y, int64_t P) {
  return x * (1.0 + y) + y + static_cast<double>(P + 1) * 4.76837158203125e-07 * (1.0 + x) * (1.0 + y) + 1e-6;
}

// One more step of Michelot's iteration from `tau`, a lower bound of the threshold: the mean excess of what lies above.
// Returns true while the bound rises. `value(i)` for i in [0, n); the set {value > tau} must not be empty.
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
  if (above == 0.0) return false;  // only by rounding, at the fixed point
  const double next = (sum - 1.0) / above;
  // The set only shrinks; it is final when no member left, or when rounding stops the rise.
  const bool rises = next > *tau && above != *count;
  if (next > *tau) *tau = next;
  *count = above;
  return rises;
}

struct RowFilter {
  double cut;     // what lies above it may be in the support
  int survivors;  // how many do
};

// The filter of one row. `s` [A] approximate cosines, `valid` [A] 0 for anchors that are zero or not finite.
// `peaks` [team.size()], `list` [capacity] and `counter` are memory of the team. A is below 2^31.
template <class Team>
SALTLM_BOTH RowFilter filter_row(const Team& team, const float* s, const uint8_t* valid, int64_t A, double slack,
                                 float* peaks, float* list, int capacity, int* counter) {
  const double nothing = -std::numeric_limits<double>::infinity();
  // The largest of each thread's share; the threshold of a subset never exceeds that of the whole, so these few give a
  // lower bound close enough that one pass over the row leaves a short list.
  float peak = -std::numeric_limits<float>::infinity();
  for (int64_t i = team.rank(); i < A; i += team.size())
    if (valid[i] && s[i] > peak) peak = s[i];
  peaks[team.rank()] = peak;
  if (team.rank() == 0) *counter = 0;
  const double largest = team.max(peak);  // also the barrier after the two writes
  if (!(largest > nothing)) return {0.0, 0};
  double tau = largest - 1.0, count = -1.0;
  team.sync();
  while (raise_threshold(team, team.size(), [&](int64_t i) { return static_cast<double>(peaks[i]); }, &tau, &count)) {
  }
  const double reach = tau - 2.0 * slack - 2.0 * kThresholdRounding;
  for (int64_t i = team.rank(); i < A; i += team.size()) {
    if (valid[i] && s[i] > reach) {
      const int place = team.append(counter);
      if (place < capacity) list[place] = s[i];
    }
  }
  team.sync();
  const int listed = *counter;
  const bool short_list = listed <= capacity;
  const int64_t n = short_list ? listed : A;
  const auto value = [&](int64_t i) {
    if (short_list) return static_cast<double>(list[i]);
    return valid[i] ? static_cast<double>(s[i]) : nothing;
  };
  count = -1.0;
  while (raise_threshold(team, n, value, &tau, &count)) {
  }
  const double cut = tau - 2.0 * slack - kThresholdRounding;
  double survivors = 0.0;
  for (int64_t i = team.rank(); i < n; i += team.size())
    if (value(i) > cut) survivors += 1.0;
  return {cut, static_cast<int>(team.sum(survivors))};
}

// Positions of the survivors of filter_row, in no fixed order.
template <class Team>
SALTLM_BOTH void collect_row(const Team& team, const float* s, const uint8_t* valid, int64_t A, double cut, int* counter,
                             int32_t* ids, int expected) {
  if (team.rank() == 0) *counter = 0;
  team.sync();
  for (int64_t i = team.rank(); i < A; i += team.size()) {
    if (valid[i] && s[i] > cut) {
      const int place = team.append(counter);
      if (place < expected) ids[place] = static_cast<int32_t>(i);  // always: it counts what filter_row counted
    }
  }
  team.sync();
}

// Float64 cosines of the row `x` [P] with the anchors `ids` [n], each in an order fixed by P and the lanes alone.
template <class Team, class X>
SALTLM_BOTH void cosines_row(const Team& team, const X* x, double inverse_norm, const X* anchors,
                             const double* anchor_inverse_norms, int64_t P, const int32_t* ids, int n, double* cosines) {
  for (int i = team.group(); i < n; i += team.groups()) {
    const X* a = anchors + static_cast<int64_t>(ids[i]) * P;
    double dot = 0.0;
    for (int64_t j = team.lane(); j < P; j += team.lanes()) dot += static_cast<double>(x[j]) * static_cast<double>(a[j]);
    dot = team.lane_sum(dot);
    if (team.lane() == 0) cosines[i] = dot * anchor_inverse_norms[ids[i]] * inverse_norm;
  }
  team.sync();
}

// Bitonic sort, nearest first, ties to the smaller position. Every exchange puts the earlier element at the lower
// index, so that a missing upper partner means "nothing to do" and n need not be a power of two.
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

// Support size and threshold of `cosines` [n], sorted from the largest, n >= 1: the longest prefix with
// 1 + k z_k > z_1 + ... + z_k. The condition holds for a prefix of k and for no k after it. Done by one thread.
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

// Turns sorted cosines [n] into weights; with max_support > 0 only the nearest are kept and weighted among themselves.
// Returns how many weights there are.
template <class Team>
SALTLM_BOTH int weigh_row(const Team& team, double* cosines, int n, int64_t max_support) {
  Threshold found = sparsemax_sorted(cosines, n);
  if (max_support > 0 && found.support > max_support) found = sparsemax_sorted(cosines, static_cast<int>(max_support));
  // By rounding the last ones may sit on the threshold: they carry no weight.
  while (found.support > 0 && !(cosines[found.support - 1] - found.tau > 0.0)) --found.support;
  team.sync();  // everyone has read before anyone writes
  for (int i = team.rank(); i < found.support; i += team.size()) cosines[i] -= found.tau;
  team.sync();
  return found.support;
}

// The support of a row whose n >= 1 survivors of filter_row are above `cut`: `ids` and `weights`, room for n each, get it from their
// beginning. Returns its size.
template <class Team, class X>
SALTLM_BOTH int settle_row(const Team& team, const float* s, const uint8_t* valid, int64_t A, double cut, const X* x,
                           double inverse_norm, const X* anchors, const double* anchor_inverse_norms, int64_t P,
                           int64_t max_support, int n, int* counter, int32_t* ids, double* weights) {
  collect_row(team, s, valid, A, cut, counter, ids, n);
  cosines_row(team, x, inverse_norm, anchors, anchor_inverse_norms, P, ids, n, weights);
  sort_row(team, weights, ids, n);
  return weigh_row(team, weights, n, max_support);
}

constexpr int kDoesNotFit = -1;

// The same for any n >= 0 within bounds: survivors have `room` entries of room_ids and room_cosines, the support `capacity` of ids.
// Returns its size, or kDoesNotFit.
template <class Team, class X>
SALTLM_BOTH int support_in_room(const Team& team, const float* s, const uint8_t* valid, int64_t A, double cut, const X* x,
                                double inverse_norm, const X* anchors, const double* anchor_inverse_norms, int64_t P,
                                int64_t max_support, int n, int* counter, int64_t room, int32_t* room_ids,
                                double* room_cosines, int64_t capacity, int32_t* ids) {
  if (n == 0) return 0;
  if (n > room) return kDoesNotFit;
  const int support = settle_row(team, s, valid, A, cut, x, inverse_norm, anchors, anchor_inverse_norms, P, max_support, n,
                                 counter, room_ids, room_cosines);
  if (support > capacity) return kDoesNotFit;
  for (int k = team.rank(); k < support; k += team.size()) ids[k] = room_ids[k];
  return support;
}

}  // namespace saltlm::cuda
