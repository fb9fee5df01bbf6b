// Shared by the CPU operators: distribution of rows to torch's threads, and conversion of the inputs for the kernels.
#pragma once

#include <atomic>
#include <cstdint>

#include "../ops.h"
#include "kernels.h"

namespace saltlm::cpu {

// Calls worker(begin, end) for chunks of [0, count) on torch's threads. make_worker() creates one worker per thread,
// which owns that thread's scratch memory. Threads take the next chunk when they are free, because the costs of rows
// differ; the result of a row does not depend on the thread. No exception may leave a torch callback, so a failure
// (only running out of memory) is reported after the loop.
template <class Make>
void for_rows(int64_t count, int64_t chunk, const char* what, const Make& make_worker) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads > 0 ? threads : 1, 1, [&](int64_t, int64_t) {
    try {
      auto worker = make_worker();
      for (;;) {
        const int64_t begin = next.fetch_add(chunk);
        if (begin >= count || failed.load()) break;
        if (!worker(begin, begin + chunk < count ? begin + chunk : count)) failed.store(true);
      }
    } catch (...) {
      failed.store(true);
    }
  });
  STD_TORCH_CHECK(!failed.load(), what, ": out of memory");
}

// Contiguous float32 or float64. bfloat16 and float16 become float32, which represents them exactly.
inline Tensor as_float_or_double(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float || type == ScalarType::Double) return torch::stable::contiguous(tensor);
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Float));
}

inline Matrix as_matrix(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Double, tensor.size(0), tensor.size(1)};
}

}  // namespace saltlm::cpu
