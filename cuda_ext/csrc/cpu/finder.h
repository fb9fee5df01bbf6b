// From one row's approximate cosines to its exact support.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "stages.h"

namespace saltlm::cpu {

struct Hit {
  double cosine;
  int32_t id;
};

// Sparsemax over the hits' cosines: sorts them, keeps the support (at most `most`, nearest first), and returns its size;
// weights[i] belongs to hits[i].
inline int64_t settle(std::vector<Hit>& hits, int64_t most, std::vector<double>& weights) {
  std::sort(hits.begin(), hits.end(),
            [](const Hit& a, const Hit& b) { return a.cosine > b.cosine || (a.cosine == b.cosine && a.id < b.id); });
  const int64_t count = static_cast<int64_t>(hits.size());
  double sum = 0, tau = 0;
  int64_t size = 0;
  while (size < count && (most == 0 || size < most)) {
    const double longer = sum + hits[size].cosine;
    if (!(1 + static_cast<double>(size + 1) * hits[size].cosine > longer)) break;
    sum = longer;
    ++size;
    tau = (sum - 1) / static_cast<double>(size);
  }
  weights.clear();
  for (int64_t i = 0; i < size && hits[i].cosine - tau > 0; ++i) weights.push_back(hits[i].cosine - tau);
  return static_cast<int64_t>(weights.size());
}

struct RowSupport {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

// What every row needs of the anchors.
struct Anchors {
  Matrix matrix;
  std::vector<double> inverse;  // A
  std::vector<int32_t> usable;  // positions of the anchors with a direction: even a zero column would shift the threshold
};

// How many entries the supports may hold together, and at most one support a thread more. Threads take pieces of rows in ascending
// order; from the first row that is refused on, all are left out.
class Quota {
 public:
  Quota(int64_t entries, int64_t rows) : limited_(entries > 0), left_(entries), end_(rows) {}

  // Whether `row` is still wanted; the first always is, so that something comes of every call.
  bool open(int64_t row) {
    if (!limited_ || row == 0 || (left_.load(std::memory_order_relaxed) > 0 && row < end())) return true;
    int64_t before = end();
    while (row < before && !end_.compare_exchange_weak(before, row)) {
    }
    return false;
  }
  void take(size_t entries) { left_.fetch_sub(static_cast<int64_t>(entries), std::memory_order_relaxed); }
  // How many rows there are, once all are done.
  int64_t end() const { return end_.load(std::memory_order_relaxed); }

 private:
  const bool limited_;
  std::atomic<int64_t> left_, end_;
};

// One thread's buffers, and the way from a row's approximate cosines to its support.
class Finder {
 public:
  Finder(const Matrix& rows, const Anchors& anchors, int64_t most, Quota& quota)
      : laps_(start_laps()), rows_(rows), anchors_(anchors), most_(most), quota_(quota), survivors_(anchors.usable.size()),
        candidates_(anchors.usable.size() + 64), maxima_(anchors.usable.size() / 64 + 1), exact_(anchors.usable.size()),
        scratch_(static_cast<size_t>(rows.width) + 64) {}

  // Every one of `values`, float32 or the bits of bfloat16, is within `slack` of its cosine.
  template <class T>
  void find(int64_t row, double inverse, const T* values, double slack, RowSupport& support) {
    settle_survivors(row, inverse, filter(values, static_cast<int64_t>(anchors_.usable.size()), slack), support);
  }

  // The same from a row of the integer product with its maxima.
  void find_sieved(int64_t row, double inverse, const float* values, float* maxima, double slack, RowSupport& support) {
    const int64_t count = static_cast<int64_t>(anchors_.usable.size());
    settle_survivors(row, inverse, similarity_kernels().sieve(values, count, slack, survivors_.data(), candidates_.data(), maxima),
                     support);
  }

  Laps* laps() const { return laps_.get(); }

 private:
  // The exact support among the `kept` first of survivors_.
  void settle_survivors(int64_t row, double inverse, int64_t kept, RowSupport& support) {
    const SimilarityKernels& kernels = similarity_kernels();
    lap(laps(), kFilter);
    for (int64_t k = 0; k < kept; ++k) survivors_[k] = anchors_.usable[survivors_[k]];
    kernels.cosines(rows_, row, inverse, anchors_.matrix, anchors_.inverse.data(), survivors_.data(), kept, exact_.data(),
                    scratch_.data());
    lap(laps(), kExact);
    hits_.resize(static_cast<size_t>(kept));
    for (int64_t k = 0; k < kept; ++k) hits_[k] = {exact_[k], survivors_[k]};
    const int64_t size = settle(hits_, most_, support.weights);
    support.ids.resize(static_cast<size_t>(size));
    for (int64_t k = 0; k < size; ++k) support.ids[k] = hits_[k].id;
    quota_.take(support.ids.size());
    lap(laps(), kSettle);
  }

  int64_t filter(const float* values, int64_t count, double slack) {
    return similarity_kernels().survivors(values, count, slack, survivors_.data(), candidates_.data(), maxima_.data());
  }
  int64_t filter(const uint16_t* values, int64_t count, double slack) {
    return similarity_kernels().narrow_survivors(values, count, slack, survivors_.data(), candidates_.data(), maxima_.data());
  }

  OwnedLaps laps_;
  const Matrix& rows_;
  const Anchors& anchors_;
  int64_t most_;
  Quota& quota_;
  std::vector<int32_t> survivors_;
  std::vector<float> candidates_, maxima_;
  std::vector<double> exact_, scratch_;
  std::vector<Hit> hits_;
};

// All rows by a product of torch's, in blocks: of float32, where `slack` bounds its error, or of bfloat16.
void find_by_floats(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t most, double slack, Quota& quota,
                    std::vector<RowSupport>& found);
void find_by_bfloats(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t most, Quota& quota,
                     std::vector<RowSupport>& found);

}  // namespace saltlm::cpu
