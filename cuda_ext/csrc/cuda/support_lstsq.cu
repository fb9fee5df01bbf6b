// support_lstsq on CUDA: one thread block per token settles the well-conditioned ones (lstsq_token.h), the CPU operator
// the others, so that ranks and statuses are decided in one place.
#include <algorithm>
#include <tuple>

#include "launch.cuh"
#include "lstsq_token.h"
#include "pending.cuh"

namespace saltlm::cuda {

namespace {

constexpr uint8_t kPending = 255;                     // not settled here
constexpr int64_t kLargestSupport = 1024;             // beyond it one block per token is the wrong shape
constexpr int64_t kWorkspace = 256 * kMegabyte;       // of all blocks together
constexpr int kSharedLimit = 96 * 1024;               // two blocks on a multiprocessor of the smallest target

template <class T>
__global__ void __launch_bounds__(kThreads)
    lstsq_kernel(const T* rows, const T* anchors, const int64_t* offsets, const int32_t* ids, int64_t N, int W, double ridge,
                 bool center, int largest, int64_t shared_doubles, double* workspace,
                 int64_t workspace_doubles, Outputs out) {
  extern __shared__ double shared[];
  __shared__ double scratch[32];
  const BlockTeam team{scratch};
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    team.sync();  // the memory of the token before is free
    const int64_t start = offsets[n], K = offsets[n + 1] - start;
    if (K == 0 || K > largest) continue;  // for the whole block alike
    const bool fits = token_memory(K, W) <= shared_doubles;
    double* memory = fits ? shared : workspace + static_cast<int64_t>(blockIdx.x) * workspace_doubles;
    const Token<T> token{rows + n * W, anchors, ids + start, static_cast<int>(K), W, ridge, center};
    const bool settled = solve_token(team, token, memory, out.coefficients + start, out.residual + n);
    if (team.rank() == 0 && settled) {
      out.rank[n] = static_cast<int32_t>(K - (center ? 1 : 0));
      out.status[n] = kFullRank;
    }
  }
}

template <class T>
void solve_all(const Launch& launch, const Tensor& rows, const Tensor& anchors, const Tensor& offsets,
               const Tensor& ids, int largest, double ridge, bool center, const Outputs& out) {
  const int64_t N = rows.size(0), W = rows.size(1), needed = token_memory(largest, W);
  const int allowed = std::min(launch.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024, kSharedLimit);
  const int shared = static_cast<int>(std::min<int64_t>(allowed, needed * 8));
  check_cuda(cudaFuncSetAttribute(lstsq_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "lstsq_kernel");
  const int64_t fill = 4 * static_cast<int64_t>(launch.attribute(cudaDevAttrMultiProcessorCount));
  const bool spills = needed * 8 > shared;
  const int64_t blocks = std::min(N, spills ? std::clamp<int64_t>(kWorkspace / (needed * 8), 1, fill) : fill);
  const Tensor workspace = empty_on(rows, {spills ? blocks * needed : 0}, ScalarType::Double);
  lstsq_kernel<T><<<static_cast<unsigned>(blocks), kThreads, shared, launch.stream()>>>(
      data<const T>(rows), data<const T>(anchors), data<const int64_t>(offsets), data<const int32_t>(ids), N,
      static_cast<int>(W), ridge, center, largest, shared / 8, spills ? data<double>(workspace) : nullptr, needed, out);
  Launch::check("lstsq_kernel");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> support_lstsq(const Tensor& new_plm, const Tensor& anchor_plm,
                                                         const Tensor& offsets, const Tensor& ids, double ridge,
                                                         bool center) {
  check_support_lstsq(new_plm, anchor_plm, offsets, ids, ridge);
  const int64_t N = new_plm.size(0), E = new_plm.size(1);
  const Launch launch(new_plm);
  const Tensor starts = torch::stable::contiguous(offsets), places = torch::stable::contiguous(ids);
  const std::vector<int64_t> host_starts = checked_offsets(launch, "support_lstsq", starts, places, anchor_plm.size(0));
  const Tensor coefficients = zeros_on(new_plm, {ids.numel()}, ScalarType::Double);
  const Tensor rank = zeros_on(new_plm, {N}, ScalarType::Int);
  const Tensor residual = torch::stable::full({N}, kNothingExplained, ScalarType::Float, std::nullopt, new_plm.device());
  Tensor status = empty_on(new_plm, {N}, ScalarType::Byte);
  if (N == 0) return {coefficients, rank, residual, status};
  const Outputs out{data<double>(coefficients), data<int32_t>(rank), data<float>(residual), data<uint8_t>(status)};
  torch::stable::fill_(status, kPending);

  int largest = 0;  // the largest support that is tried here
  const int64_t cap = std::min<int64_t>(kLargestSupport, E + (center ? 1 : 0));
  for (int64_t n = 0; n < N; ++n) {
    const int64_t K = host_starts[n + 1] - host_starts[n];
    if (K <= cap) largest = std::max(largest, static_cast<int>(K));
  }
  const Tensor rows = widened(launch, new_plm), anchors = widened(launch, anchor_plm);
  if (largest > 0) {
    if (rows.scalar_type() == ScalarType::Double)
      solve_all<double>(launch, rows, anchors, starts, places, largest, ridge, center, out);
    else
      solve_all<float>(launch, rows, anchors, starts, places, largest, ridge, center, out);
  }
  const std::vector<uint8_t> found = fetch<uint8_t>(launch, out.status, N);
  std::vector<int64_t> pending;
  for (int64_t n = 0; n < N; ++n)
    if (found[n] == kPending) pending.push_back(n);
  if (!pending.empty())
    finish_on_cpu(launch, torch::stable::contiguous(new_plm), torch::stable::contiguous(anchor_plm), places, host_starts,
                  pending, ridge, center, out);
  return {coefficients, rank, residual, status};
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("support_lstsq", TORCH_BOX(&support_lstsq)); }

}  // namespace saltlm::cuda
