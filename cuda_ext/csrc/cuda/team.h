// A team is the set of threads that work on one row together. The maths of the CUDA kernels is written against this
// interface, so that a test can run the same code on the host with one thread, or with several threads and a barrier.
//
//   rank(), size()      index of this thread in the team, number of threads
//   sync()              barrier: writes before it are seen by the whole team after it
//   sum(x), max(x)      over the team, the same value for every thread, in an order that depends on size() only
//   group(), groups()   index and number of groups (warps) of lanes() threads; lane() is the index within the group
//   lane_sum(x)         over the group
//   append(counter)     increments a counter shared by the team and returns the old value; the order is not fixed
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SALTLM_BOTH __host__ __device__ __forceinline__
#else
#define SALTLM_BOTH inline
#endif

namespace saltlm::cuda {

struct SerialTeam {
  SALTLM_BOTH int rank() const { return 0; }
  SALTLM_BOTH int size() const { return 1; }
  SALTLM_BOTH void sync() const {}
  SALTLM_BOTH double sum(double x) const { return x; }
  SALTLM_BOTH double max(double x) const { return x; }
  SALTLM_BOTH int lane() const { return 0; }
  SALTLM_BOTH int lanes() const { return 1; }
  SALTLM_BOTH int group() const { return 0; }
  SALTLM_BOTH int groups() const { return 1; }
  SALTLM_BOTH double lane_sum(double x) const { return x; }
  SALTLM_BOTH int append(int* counter) const { return (*counter)++; }
};

#ifdef __CUDACC__
// One thread block. `scratch` is shared memory for 32 doubles. The block is one-dimensional, a multiple of 32 threads.
struct BlockTeam {
  double* scratch;

  __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) & 31; }
  __device__ __forceinline__ int lanes() const { return 32; }
  __device__ __forceinline__ int group() const { return static_cast<int>(threadIdx.x) >> 5; }
  __device__ __forceinline__ int groups() const { return static_cast<int>(blockDim.x) >> 5; }
  __device__ __forceinline__ int append(int* counter) const { return atomicAdd(counter, 1); }

  // The butterfly gives every lane the same bits, because both partners add the same two numbers.
  __device__ __forceinline__ double lane_sum(double x) const {
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
  }

  __device__ double sum(double x) const {
    x = lane_sum(x);
    if (lane() == 0) scratch[group()] = x;
    __syncthreads();
    double total = 0.0;
    for (int i = 0; i < groups(); ++i) total += scratch[i];
    __syncthreads();  // scratch may be overwritten from here on
    return total;
  }

  __device__ double max(double x) const {
    for (int step = 16; step > 0; step >>= 1) x = fmax(x, __shfl_xor_sync(0xffffffffu, x, step));
    if (lane() == 0) scratch[group()] = x;
    __syncthreads();
    double largest = scratch[0];
    for (int i = 1; i < groups(); ++i) largest = fmax(largest, scratch[i]);
    __syncthreads();
    return largest;
  }
};
#endif

}  // namespace saltlm::cuda
