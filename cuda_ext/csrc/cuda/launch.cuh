// What every CUDA operator does around its kernels: device guard, current stream, launch check, element types, copies
// between host and device, and the checks of values.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <vector>

#include "../ops.h"
#include "team.h"

namespace saltlm::cuda {

constexpr int kThreads = 256;  // of a team; it decides the last bits of the results, so it is the same for every launch
constexpr int64_t kMegabyte = 1 << 20;

inline void check_cuda(cudaError_t code, const char* what) {
  STD_TORCH_CHECK(code == cudaSuccess, what, ": CUDA error ", static_cast<int>(code), ", ", cudaGetErrorString(code));
}

// Makes the device of a tensor the current one for the lifetime of the object, and holds its current stream.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
    // This library contains a CUDA runtime of its own; torch's guard sets the device of torch's runtime only.
    check_cuda(cudaSetDevice(index_), "cudaSetDevice");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }
  static void check(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, index_), "cudaDeviceGetAttribute");
    return value;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

__device__ __forceinline__ double as_double(float x) { return x; }
__device__ __forceinline__ double as_double(double x) { return x; }
__device__ __forceinline__ double as_double(__half x) { return __half2float(x); }
__device__ __forceinline__ double as_double(__nv_bfloat16 x) { return __bfloat162float(x); }

// Calls body(T{}) with the element type T of `tensor`, whose dtype has passed the checks.
template <class Body>
void by_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::Half: return body(__half{});
    case ScalarType::BFloat16: return body(__nv_bfloat16{});
    default: STD_TORCH_CHECK(false, "unexpected dtype");
  }
}

// Converts from [rows, width] of any type to [rows, padded] of float or double; the padding is zero.
template <class From, class To>
__global__ void pad_rows_kernel(const From* from, int64_t count, int64_t width, int64_t padded, To* to) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t row = i / padded, column = i % padded;
    to[i] = column < width ? static_cast<To>(as_double(from[row * width + column])) : To{0};
  }
}

// `matrix` as a contiguous float32 matrix (float64 if it is one) whose rows are padded to a multiple of 4 values.
inline Tensor padded_rows(const Launch& launch, const Tensor& matrix) {
  const bool is_double = matrix.scalar_type() == ScalarType::Double;
  const int64_t rows = matrix.size(0), width = matrix.size(1), padded = (width + 3) / 4 * 4;
  Tensor source = torch::stable::contiguous(matrix);
  // The kernels load 16 bytes at once, and a view may begin at any element.
  if (reinterpret_cast<uintptr_t>(source.data_ptr()) % 16 != 0) source = torch::stable::clone(source);
  if (padded == width && (is_double || matrix.scalar_type() == ScalarType::Float)) return source;
  const Tensor result = empty_on(matrix, {rows, padded}, is_double ? ScalarType::Double : ScalarType::Float);
  if (result.numel() == 0) return result;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((result.numel() + kThreads - 1) / kThreads, 1 << 16));
  by_type(matrix, [&](auto zero) {
    using From = decltype(zero);
    if (is_double)
      pad_rows_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<From>(source), result.numel(), width, padded,
                                                                data<double>(result));
    else
      pad_rows_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<From>(source), result.numel(), width, padded,
                                                                data<float>(result));
  });
  Launch::check("pad_rows_kernel");
  return result;
}

inline void synchronize(const Launch& launch) {
  check_cuda(cudaStreamSynchronize(launch.stream()), "cudaStreamSynchronize");
}

template <class T>
void copy_to_host(const Launch& launch, T* host, const T* device, int64_t count) {
  if (count == 0) return;
  check_cuda(
      cudaMemcpyAsync(host, device, sizeof(T) * static_cast<size_t>(count), cudaMemcpyDeviceToHost, launch.stream()),
      "copy to the host");
  synchronize(launch);
}

// The values of a device array on the host.
template <class T>
std::vector<T> host_copy(const Launch& launch, const T* device, int64_t count) {
  std::vector<T> host(static_cast<size_t>(count));
  copy_to_host(launch, host.data(), device, count);
  return host;
}

template <class T>
void copy_to_device(const Launch& launch, T* device, const T* host, int64_t count) {
  if (count == 0) return;
  check_cuda(
      cudaMemcpyAsync(device, host, sizeof(T) * static_cast<size_t>(count), cudaMemcpyHostToDevice, launch.stream()),
      "copy to the device");
  synchronize(launch);  // the caller may free the host memory after this call
}

// *out_of_range becomes 1 where an id is outside [0, rows).
template <class Id>
__global__ void check_ids_kernel(const Id* ids, int64_t count, int64_t rows, int32_t* out_of_range) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    if (ids[i] < 0 || ids[i] >= rows) *out_of_range = 1;
}

// Checks that the offsets ascend from 0 to nnz and that the ids are positions among the anchors, before any kernel
// reads through them. Returns the offsets on the host.
inline std::vector<int64_t> checked_offsets(const Launch& launch, const char* op, const Tensor& offsets,
                                            const Tensor& ids, int64_t rows) {
  const Tensor source = torch::stable::contiguous(offsets);
  std::vector<int64_t> host = host_copy(launch, data<const int64_t>(source), offsets.numel());
  STD_TORCH_CHECK(host.front() == 0 && host.back() == ids.numel() && std::is_sorted(host.begin(), host.end()), op,
                  ", offsets: expected to ascend from 0 to the number of ids, ", ids.numel());
  if (ids.numel() > 0) {
    const Tensor flag = zeros_on(ids, {1}, ScalarType::Int);
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((ids.numel() + kThreads - 1) / kThreads, 4096));
    check_ids_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<const int32_t>(ids), ids.numel(), rows,
                                                               data<int32_t>(flag));
    Launch::check("check_ids_kernel");
    int32_t out_of_range = 0;
    copy_to_host(launch, &out_of_range, data<const int32_t>(flag), 1);
    STD_TORCH_CHECK(out_of_range == 0, op, ", ids: expected positions in [0, ", rows, ") among the anchors");
  }
  return host;
}

}  // namespace saltlm::cuda
