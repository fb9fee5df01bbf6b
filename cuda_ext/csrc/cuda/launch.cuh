// What every CUDA operator does around its kernels: device guard, current stream, launch check, dtypes. Nothing here waits for
// the device: that is in waiting.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "../ops.h"
#include "team.h"

namespace saltlm::cuda {

constexpr int kThreads = 256;  // of a team; part of the results' last bits, so the same for every launch
constexpr int64_t kMegabyte = 1 << 20;

inline void check_cuda(cudaError_t code, const char* what) {
  STD_TORCH_CHECK(code == cudaSuccess, what, ": CUDA error ", static_cast<int>(code), ", ", cudaGetErrorString(code));
}

// The device of a tensor made current for as long as this lives, and its current stream.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {
    // This library carries a CUDA runtime of its own; torch's guard speaks to torch's.
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

// Calls body(T{}) with the element type of `tensor`, whose dtype the checks have admitted.
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

// from [rows, width] of any type, to [rows, padded] of float or double, the padding zero.
template <class From, class To>
__global__ void widen_kernel(const From* from, int64_t count, int64_t width, int64_t padded, To* to) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t row = i / padded, column = i % padded;
    to[i] = column < width ? static_cast<To>(as_double(from[row * width + column])) : To{0};
  }
}

// `matrix` as a contiguous float32 matrix (float64 if it is one) whose rows are padded to a multiple of 4 values.
inline Tensor widened(const Launch& launch, const Tensor& matrix) {
  const bool wide = matrix.scalar_type() == ScalarType::Double;
  const int64_t rows = matrix.size(0), width = matrix.size(1), padded = (width + 3) / 4 * 4;
  Tensor source = torch::stable::contiguous(matrix);
  // The kernels read 16 bytes at once, and a view may begin anywhere.
  if (reinterpret_cast<uintptr_t>(source.data_ptr()) % 16 != 0) source = torch::stable::clone(source);
  if (padded == width && (wide || matrix.scalar_type() == ScalarType::Float)) return source;
  const Tensor result = empty_on(matrix, {rows, padded}, wide ? ScalarType::Double : ScalarType::Float);
  if (result.numel() == 0) return result;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((result.numel() + kThreads - 1) / kThreads, 1 << 16));
  by_type(matrix, [&](auto zero) {
    using From = decltype(zero);
    if (wide)
      widen_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<From>(source), result.numel(), width, padded,
                                                             data<double>(result));
    else
      widen_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<From>(source), result.numel(), width, padded,
                                                             data<float>(result));
  });
  Launch::check("widen_kernel");
  return result;
}

}  // namespace saltlm::cuda
