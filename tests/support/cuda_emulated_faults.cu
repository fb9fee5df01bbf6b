// Kernels with one fault each, for the tests of the emulated device.
#include <stdexcept>
#include <string>

namespace {

__global__ void without_barrier(int* out) {
  __shared__ int slot;
  if (threadIdx.x == 0) slot = 7;
  out[threadIdx.x] = slot;
}

__global__ void some_at_barrier(int* out) {
  if (threadIdx.x >= 64) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void at_two_barriers(int* out) {
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void some_of_a_warp(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}

__global__ void faultless(int* out) {
  __shared__ int slots[128];
  slots[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = slots[127 - threadIdx.x] + __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 16);
}

}  // namespace

// Runs kernel `which` with 128 threads. Returns the reported fault, or "".
extern "C" __attribute__((visibility("default"))) const char* fault(int which, int* out) {
  static std::string message;
  message.clear();
  try {
    switch (which) {
      case 0: faultless<<<1, 128>>>(out); break;
      case 1: without_barrier<<<1, 128>>>(out); break;
      case 2: some_at_barrier<<<1, 128>>>(out); break;
      case 3: at_two_barriers<<<1, 128>>>(out); break;
      case 4: some_of_a_warp<<<1, 128>>>(out); break;
      default: faultless<<<0, 128>>>(out);
    }
    if (cudaGetLastError() != cudaSuccess) message = "not launched";
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
