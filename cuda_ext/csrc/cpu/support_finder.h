// From one row's approximate cosines to its exact support.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "stages.h"

namespace saltlm::cpu {

struct Candidate {
  double cosine;
  int32_t id;
};

// Sparsemax over the candidates' cosines. Sorts them and computes the weights of the support, at most `max_support` (0:
// no cap), nearest first: weights[i] belongs to candidates[i]. Returns the size of the support.
inline int64_t exact_sparsemax(std::vector<Candidate>& candidates, int64_t max_support, std::vector<double>& weights) {
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.cosine > b.cosine || (a.cosine == b.cosine && a.id < b.id);
  });
  const int64_t count = static_cast<int64_t>(candidates.size());
  double sum = 0, tau = 0;
  int64_t size = 0;
  while (size < count && (max_support == 0 || size < max_support)) {
    const double next_sum = sum + candidates[size].cosine;
    if (!(1 + static_cast<double>(size + 1) * candidates[size].cosine > next_sum)) break;
    sum = next_sum;
    ++size;
    tau = (sum - 1) / static_cast<double>(size);
  }
  weights.clear();
  for (int64_t i = 0; i < size && candidates[i].cosine - tau > 0; ++i) weights.push_back(candidates[i].cosine - tau);
  return static_cast<int64_t>(weights.size());
}

struct RowSupport {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

// The anchors as every row needs them.
struct Anchors {
  Matrix matrix;
  std::vector<double> inverse_norm;  // A
  // Positions of the anchors with a direction; a column of zeros would change the threshold.
  std::vector<int32_t> usable;
};

// Bound on the total number of entries of all supports; it may be exceeded by one support per thread. Threads take
// chunks of rows in ascending order. From the first refused row on, all rows are left out.
class EntryBudget {
 public:
  EntryBudget(int64_t entries, int64_t rows) : limited_(entries > 0), remaining_(entries), end_row_(rows) {}

  // Whether `row` is to be computed. Row 0 always is, so that every call makes progress.
  bool accepts(int64_t row) {
    if (!limited_ || row == 0 || (remaining_.load(std::memory_order_relaxed) > 0 && row < end_row())) return true;
    int64_t before = end_row();
    while (row < before && !end_row_.compare_exchange_weak(before, row)) {
    }
    return false;
  }
  void spend(size_t entries) { remaining_.fetch_sub(static_cast<int64_t>(entries), std::memory_order_relaxed); }
  // Number of rows that were computed, once all threads are done.
  int64_t end_row() const { return end_row_.load(std::memory_order_relaxed); }

 private:
  const bool limited_;
  std::atomic<int64_t> remaining_, end_row_;
};

// Computes supports from approximate cosines, with one thread's buffers.
class SupportFinder {
 public:
  SupportFinder(const Matrix& rows, const Anchors& anchors, int64_t max_support, EntryBudget& budget)
      : times_(start_stage_times()),
        rows_(rows),
        anchors_(anchors),
        max_support_(max_support),
        budget_(budget),
        survivors_(anchors.usable.size()),
        filter_scratch_(anchors.usable.size() + 64),
        maxima_(anchors.usable.size() / 64 + 1),
        cosines_(anchors.usable.size()),
        scratch_(static_cast<size_t>(rows.width) + 64) {}

  // Each of `values` (float32, or the bits of bfloat16) is within `slack` of its cosine.
  template <class T>
  void find(int64_t row, double inverse_norm, const T* values, double slack, RowSupport& support) {
    find_among(row, inverse_norm, filter(values, static_cast<int64_t>(anchors_.usable.size()), slack), support);
  }

  // The same for a row of the int16 product and its maxima.
  void find_from_int16(int64_t row, double inverse_norm, const float* values, float* maxima, double slack,
                       RowSupport& support) {
    const int64_t count = static_cast<int64_t>(anchors_.usable.size());
    find_among(
        row, inverse_norm,
        similarity_kernels().filter_int16(values, count, slack, survivors_.data(), filter_scratch_.data(), maxima),
        support);
  }

  StageTimes* times() const { return times_.get(); }

 private:
  // Computes the exact support among the first `count` entries of survivors_.
  void find_among(int64_t row, double inverse_norm, int64_t count, RowSupport& support) {
    const SimilarityKernels& kernels = similarity_kernels();
    end_stage(times(), kFilter);
    for (int64_t k = 0; k < count; ++k) survivors_[k] = anchors_.usable[survivors_[k]];
    kernels.exact_cosines(rows_, row, inverse_norm, anchors_.matrix, anchors_.inverse_norm.data(), survivors_.data(),
                          count, cosines_.data(), scratch_.data());
    end_stage(times(), kExactCosines);
    candidates_.resize(static_cast<size_t>(count));
    for (int64_t k = 0; k < count; ++k) candidates_[k] = {cosines_[k], survivors_[k]};
    const int64_t size = exact_sparsemax(candidates_, max_support_, support.weights);
    support.ids.resize(static_cast<size_t>(size));
    for (int64_t k = 0; k < size; ++k) support.ids[k] = candidates_[k].id;
    budget_.spend(support.ids.size());
    end_stage(times(), kSortAndWeigh);
  }

  int64_t filter(const float* values, int64_t count, double slack) {
    return similarity_kernels().filter_float32(values, count, slack, survivors_.data(), filter_scratch_.data(),
                                               maxima_.data());
  }
  int64_t filter(const uint16_t* values, int64_t count, double slack) {
    return similarity_kernels().filter_bfloat16(values, count, slack, survivors_.data(), filter_scratch_.data(),
                                                maxima_.data());
  }

  StageTimesPtr times_;
  const Matrix& rows_;
  const Anchors& anchors_;
  int64_t max_support_;
  EntryBudget& budget_;
  std::vector<int32_t> survivors_;
  std::vector<float> filter_scratch_, maxima_;
  std::vector<double> cosines_, scratch_;
  std::vector<Candidate> candidates_;
};

// Supports of all rows by a product of torch, in blocks: float32, whose error is bounded by `slack`, or bfloat16.
void find_supports_float32(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t max_support,
                           double slack, EntryBudget& budget, std::vector<RowSupport>& supports);
void find_supports_bfloat16(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t max_support,
                            EntryBudget& budget, std::vector<RowSupport>& supports);

}  // namespace saltlm::cpu
