// Least squares of many tokens, one thread block each (lstsq_token.h); what it does not settle keeps its status. Nothing here waits
// for the device.
#pragma once

#include "launch.cuh"
#include "lstsq_token.h"
#include "supports.cuh"

namespace saltlm::cuda {

// Device memory of the results of least squares.
struct Outputs {
  double* coefficients;
  int32_t* rank;
  float* residual;
  uint8_t* status;
};

namespace {

constexpr uint8_t kPending = 255;                         // not settled here
constexpr int64_t kLargestSupport = kCapacityLimit;       // beyond it one block per token is the wrong shape
constexpr int64_t kWorkspace = 256 * kMegabyte;           // of all blocks together
constexpr int kSharedLimit = 96 * 1024;                   // two blocks on a multiprocessor of the smallest target

template <class T, class Supports>
__global__ void __launch_bounds__(kThreads)
    lstsq_kernel(const T* rows, const T* anchors, Supports supports, int64_t N, int W, double ridge, bool center, int largest,
                 int64_t shared_doubles, double* workspace, int64_t workspace_doubles, Outputs out) {
  extern __shared__ double shared[];
  __shared__ double scratch[32];
  const BlockTeam team{scratch};
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    team.sync();  // the memory of the token before is free
    const int64_t start = supports.start(n), K = supports.size(n);
    if (K <= 0 || K > largest) continue;  // for the whole block alike
    const bool fits = token_memory(K, W) <= shared_doubles;
    double* memory = fits ? shared : workspace + static_cast<int64_t>(blockIdx.x) * workspace_doubles;
    const Token<T> token{rows + n * W, anchors, supports.ids + start, static_cast<int>(K), W, ridge, center};
    const bool settled = solve_token(team, token, memory, out.coefficients + start, out.residual + n);
    if (team.rank() == 0 && settled) {
      out.rank[n] = static_cast<int32_t>(K - (center ? 1 : 0));
      out.status[n] = kFullRank;
    }
  }
}

// The tokens whose supports have no more than `largest` anchors, none above kLargestSupport; the rest stay as they are in `out`.
template <class T, class Supports>
void solve_all(const Launch& launch, const Tensor& rows, const Tensor& anchors, const Supports& supports, int largest,
               double ridge, bool center, const Outputs& out) {
  const int64_t N = rows.size(0), W = rows.size(1), needed = token_memory(largest, W);
  const int allowed = std::min(launch.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024, kSharedLimit);
  const int shared = static_cast<int>(std::min<int64_t>(allowed, needed * 8));
  // Always to the same limit, for it belongs to the kernel, which other threads launch too.
  check_cuda(cudaFuncSetAttribute(lstsq_kernel<T, Supports>, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed),
             "lstsq_kernel");
  const int64_t fill = 4 * static_cast<int64_t>(launch.attribute(cudaDevAttrMultiProcessorCount));
  const bool spills = needed * 8 > shared;
  const int64_t blocks = std::min(N, spills ? std::clamp<int64_t>(kWorkspace / (needed * 8), 1, fill) : fill);
  const Tensor workspace = empty_on(rows, {spills ? blocks * needed : 0}, ScalarType::Double);
  lstsq_kernel<T, Supports><<<static_cast<unsigned>(blocks), kThreads, shared, launch.stream()>>>(
      data<const T>(rows), data<const T>(anchors), supports, N, static_cast<int>(W), ridge, center, largest, shared / 8,
      spills ? data<double>(workspace) : nullptr, needed, out);
  Launch::check("lstsq_kernel");
}

}  // namespace

}  // namespace saltlm::cuda
