// The order in which rows are worked on: those that share anchors one after the other, so that the anchors' rows, read from
// memory for the first of them, are still in a cache for the rest. What a row computes does not depend on it.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace saltlm::cpu {

// Breadth first from anchor to the rows that have it, and from those to their anchors, beginning anew where all that hangs
// together is done. Supports are `ids` in [0, anchors) between ascending `bounds`. Rows stay as they are where most anchors
// are in every support, for then nothing is gained, or where there are few.
inline std::vector<int64_t> order_by_anchors(const int64_t* bounds, const int32_t* ids, int64_t rows, int64_t anchors) {
  constexpr int64_t kFewRows = 64, kLargeSupport = 128, kMostEntries = (int64_t{1} << 31) - 1;
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  const int64_t entries = bounds[rows];
  if (rows < kFewRows || entries > kLargeSupport * rows || entries > kMostEntries) return order;
  // rows_of[starts[a] ..]: the rows that have anchor a.
  std::vector<int32_t> starts(static_cast<size_t>(anchors + 2)), rows_of(static_cast<size_t>(entries));
  for (int64_t i = 0; i < entries; ++i) ++starts[static_cast<size_t>(ids[i] + 2)];
  for (int64_t a = 0; a < anchors; ++a) starts[static_cast<size_t>(a + 2)] += starts[static_cast<size_t>(a + 1)];
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = bounds[row]; i < bounds[row + 1]; ++i)
      rows_of[static_cast<size_t>(starts[static_cast<size_t>(ids[i] + 1)]++)] = static_cast<int32_t>(row);
  std::vector<uint8_t> row_seen(static_cast<size_t>(rows)), anchor_seen(static_cast<size_t>(anchors));
  std::vector<int32_t> queue;
  queue.reserve(static_cast<size_t>(anchors));
  int64_t done = 0;
  size_t head = 0;
  for (int64_t first = 0; first < anchors; ++first) {
    if (!anchor_seen[static_cast<size_t>(first)]) {
      anchor_seen[static_cast<size_t>(first)] = 1;
      queue.push_back(static_cast<int32_t>(first));
    }
    for (; head < queue.size(); ++head) {
      const size_t anchor = static_cast<size_t>(queue[head]);
      for (int32_t at = starts[anchor]; at < starts[anchor + 1]; ++at) {
        const int32_t row = rows_of[static_cast<size_t>(at)];
        if (row_seen[static_cast<size_t>(row)]) continue;
        row_seen[static_cast<size_t>(row)] = 1;
        order[static_cast<size_t>(done++)] = row;
        for (int64_t i = bounds[row]; i < bounds[row + 1]; ++i) {
          if (anchor_seen[static_cast<size_t>(ids[i])]) continue;
          anchor_seen[static_cast<size_t>(ids[i])] = 1;
          queue.push_back(ids[i]);
        }
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row)  // without a support
    if (!row_seen[static_cast<size_t>(row)]) order[static_cast<size_t>(done++)] = row;
  return order;
}

// The same, kept for the next operator on the same supports: regression and apply come one after the other. That they are the
// same is told by their place and size alone; were they others after all, the order would still be one of all rows.
inline const std::vector<int64_t>& kept_order(const int64_t* bounds, const int32_t* ids, int64_t rows, int64_t anchors) {
  struct Kept {
    const int32_t* ids = nullptr;
    int64_t rows = -1, entries = -1;
    std::vector<int64_t> order;
  };
  thread_local Kept kept;
  if (kept.ids != ids || kept.rows != rows || kept.entries != bounds[rows])
    kept = {ids, rows, bounds[rows], order_by_anchors(bounds, ids, rows, anchors)};
  return kept.order;
}

}  // namespace saltlm::cpu
