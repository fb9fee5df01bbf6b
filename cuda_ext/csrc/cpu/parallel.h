// Shared by the CPU operators: rows handed out to torch's threads, and the input as the kernels want it.
#pragma once

#include <atomic>
#include <cstdint>

#include "../ops.h"
#include "kernels.h"

namespace saltlm::cpu {

// Calls work(begin, end) for pieces of [0, count), each piece on one of torch's threads. `make()` makes one worker a thread
// (its scratch lives in it). Rows are handed out as threads come free, since their costs differ; what a row computes never
// depends on who computes it. Nothing may escape a torch callback, so failures (memory is the only one) are reported after.
template <class Make>
void for_rows(int64_t count, int64_t piece, const char* what, const Make& make) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads > 0 ? threads : 1, 1, [&](int64_t, int64_t) {
    try {
      auto work = make();
      for (;;) {
        const int64_t begin = next.fetch_add(piece);
        if (begin >= count || failed.load()) break;
        if (!work(begin, begin + piece < count ? begin + piece : count)) failed.store(true);
      }
    } catch (...) {
      failed.store(true);
    }
  });
  STD_TORCH_CHECK(!failed.load(), what, ": out of memory");
}

// Contiguous float32 or float64 (the narrow types become float32, which holds them exactly).
inline Tensor prepared(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float || type == ScalarType::Double) return torch::stable::contiguous(tensor);
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Float));
}

inline Matrix as_matrix(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Double, tensor.size(0), tensor.size(1)};
}

}  // namespace saltlm::cpu
