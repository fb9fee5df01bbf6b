// What waits for the device: copies to the host and back, and checks of values. No operator that a CUDA graph may capture includes
// this.
#pragma once

#include <vector>

#include "launch.cuh"

namespace saltlm::cuda {

inline void wait(const Launch& launch) { check_cuda(cudaStreamSynchronize(launch.stream()), "cudaStreamSynchronize"); }

template <class T>
void to_host(const Launch& launch, T* host, const T* device, int64_t count) {
  if (count == 0) return;
  check_cuda(cudaMemcpyAsync(host, device, sizeof(T) * static_cast<size_t>(count), cudaMemcpyDeviceToHost, launch.stream()),
             "copy to the host");
  wait(launch);
}

template <class T>
void to_device(const Launch& launch, T* device, const T* host, int64_t count) {
  if (count == 0) return;
  check_cuda(cudaMemcpyAsync(device, host, sizeof(T) * static_cast<size_t>(count), cudaMemcpyHostToDevice, launch.stream()),
             "copy to the device");
  wait(launch);  // the host's memory may go
}

// bad becomes 1 where an id is outside [0, rows).
template <class Id>
__global__ void check_ids_kernel(const Id* ids, int64_t count, int64_t rows, int32_t* bad) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    if (ids[i] < 0 || ids[i] >= rows) *bad = 1;
}

// The offsets on the host, once they are known to ascend from 0 to nnz and the ids to name rows of the anchors: no
// kernel reads through them before.
inline std::vector<int64_t> checked_offsets(const Launch& launch, const char* op, const Tensor& offsets,
                                            const Tensor& ids, int64_t rows) {
  std::vector<int64_t> host(static_cast<size_t>(offsets.numel()));
  to_host(launch, host.data(), data<const int64_t>(torch::stable::contiguous(offsets)), offsets.numel());
  STD_TORCH_CHECK(host.front() == 0 && host.back() == ids.numel() && std::is_sorted(host.begin(), host.end()), op,
                  ", offsets: expected to ascend from 0 to the number of ids, ", ids.numel());
  if (ids.numel() > 0) {
    const Tensor bad = zeros_on(ids, {1}, ScalarType::Int);
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((ids.numel() + kThreads - 1) / kThreads, 4096));
    check_ids_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<const int32_t>(ids), ids.numel(), rows,
                                                               data<int32_t>(bad));
    Launch::check("check_ids_kernel");
    int32_t found = 0;
    to_host(launch, &found, data<const int32_t>(bad), 1);
    STD_TORCH_CHECK(found == 0, op, ", ids: expected positions in [0, ", rows, ") among the anchors");
  }
  return host;
}

}  // namespace saltlm::cuda
