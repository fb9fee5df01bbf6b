// The order in which rows are processed: rows that share anchors follow each other, so that the anchors' rows are read
// from memory for the first of them and from a cache for the others. The result of a row does not depend on the order.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace saltlm::cpu {

// Breadth-first search from an anchor to the rows whose support contains it, and from those to their anchors; it
// restarts when a connected component is done. Supports are `ids` in [0, anchors), delimited by ascending `offsets`.
// The original order is kept if the supports are large, because then most anchors are in every support, or if there are
// few rows.
inline std::vector<int64_t> order_by_anchors(const int64_t* offsets, const int32_t* ids, int64_t rows,
                                             int64_t anchors) {
  constexpr int64_t kFewRows = 64, kLargeSupport = 128, kMostEntries = (int64_t{1} << 31) - 1;
  std::vector<int64_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  const int64_t entries = offsets[rows];
  if (rows < kFewRows || entries > kLargeSupport * rows || entries > kMostEntries) return order;
  // rows_of[starts[a] ..]: the rows whose support contains anchor a.
  std::vector<int32_t> starts(static_cast<size_t>(anchors + 2)), rows_of(static_cast<size_t>(entries));
  for (int64_t i = 0; i < entries; ++i) ++starts[static_cast<size_t>(ids[i]) + 2];
  for (int64_t a = 0; a < anchors; ++a) starts[static_cast<size_t>(a + 2)] += starts[static_cast<size_t>(a + 1)];
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i)
      rows_of[static_cast<size_t>(starts[static_cast<size_t>(ids[i]) + 1]++)] = static_cast<int32_t>(row);
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
      for (int32_t entry = starts[anchor]; entry < starts[anchor + 1]; ++entry) {
        const int32_t row = rows_of[static_cast<size_t>(entry)];
        if (row_seen[static_cast<size_t>(row)]) continue;
        row_seen[static_cast<size_t>(row)] = 1;
        order[static_cast<size_t>(done++)] = row;
        for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
          if (anchor_seen[static_cast<size_t>(ids[i])]) continue;
          anchor_seen[static_cast<size_t>(ids[i])] = 1;
          queue.push_back(ids[i]);
        }
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row)  // rows with an empty support
    if (!row_seen[static_cast<size_t>(row)]) order[static_cast<size_t>(done++)] = row;
  return order;
}

// The same, cached for the next operator on the same supports, because regression and apply follow each other. Supports
// are recognised by the address and number of their ids. If they were different after all, the cached order would still
// contain every row once, so the result would be the same.
inline const std::vector<int64_t>& cached_order(const int64_t* offsets, const int32_t* ids, int64_t rows,
                                                int64_t anchors) {
  struct Cached {
    const int32_t* ids = nullptr;
    int64_t rows = -1, entries = -1;
    std::vector<int64_t> order;
  };
  thread_local Cached cached;
  if (cached.ids != ids || cached.rows != rows || cached.entries != offsets[rows])
    cached = {ids, rows, offsets[rows], order_by_anchors(offsets, ids, rows, anchors)};
  return cached.order;
}

}  // namespace saltlm::cpu
