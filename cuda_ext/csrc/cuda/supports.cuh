// Where a token's support stands: one after the other, or each in a room of its own.
#pragma once

#include <cstdint>

#include "team.h"

namespace saltlm::cuda {

// Token n owns entries offsets[n] to offsets[n + 1].
struct Packed {
  const int64_t* offsets;
  const int32_t* ids;

  SALTLM_BOTH int64_t start(int64_t n) const { return offsets[n]; }
  SALTLM_BOTH int64_t size(int64_t n) const { return offsets[n + 1] - offsets[n]; }
};

// Token n owns the first sizes[n] of `room` entries.
struct Roomy {
  const int32_t* sizes;
  const int32_t* ids;
  int64_t room;

  SALTLM_BOTH int64_t start(int64_t n) const { return n * room; }
  SALTLM_BOTH int64_t size(int64_t n) const { return sizes[n]; }
};

}  // namespace saltlm::cuda
