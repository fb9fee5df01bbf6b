// support_lstsq on CUDA. One thread block per token solves the well-conditioned tokens (lstsq_token.h); the CPU
// operator solves the others (cpu_fallback.cuh), so that ranks and statuses are decided in one place.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu_fallback.cuh"
#include "launch.cuh"
#include "lstsq_token.h"

namespace saltlm::cuda {

namespace {

constexpr uint8_t kUnsolved = 255;               // status of a token that the kernel has not solved
constexpr int64_t kLargestSupport = 1024;        // beyond it one block per token is the wrong shape
constexpr int64_t kWorkspace = 256 * kMegabyte;  // of all blocks together
constexpr int kSharedLimit = 96 * 1024;          // two blocks on a multiprocessor of the smallest target

template <class T>
__global__ void __launch_bounds__(kThreads)
    lstsq_kernel(const T* rows, const T* anchors, const int64_t* offsets, const int32_t* ids, int64_t N, int W,
                 double ridge, bool center, int largest, int64_t shared_doubles, double* workspace,
                 int64_t workspace_doubles, LstsqResults out) {
  extern __shared__ double shared[];
  __shared__ double scratch[32];
  const BlockTeam team{scratch};
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    team.sync();  // the memory of the previous token is free
    const int64_t start = offsets[n], K = offsets[n + 1] - start;
    if (K <= 0 || K > largest) continue;  // the same for the whole block
    const bool fits = token_memory(K, W) <= shared_doubles;
    double* memory = fits ? shared : workspace + static_cast<int64_t>(blockIdx.x) * workspace_doubles;
    const Token<T> token{rows + n * W, anchors, ids + start, static_cast<int>(K), W, ridge, center};
    const bool solved = solve_token(team, token, memory, out.coefficients + start, out.residual + n);
    if (team.rank() == 0 && solved) {
      out.rank[n] = static_cast<int32_t>(K - (center ? 1 : 0));
      out.status[n] = kFullRank;
    }
  }
}

// Tries the tokens with at most `largest` anchors (none above kLargestSupport); the others stay as they are in `out`.
template <class T>
void solve_on_device(const Launch& launch, const Tensor& rows, const Tensor& anchors, const Tensor& offsets,
                     const Tensor& ids, int largest, double ridge, bool center, const LstsqResults& out) {
  const int64_t N = rows.size(0), W = rows.size(1), needed = token_memory(largest, W);
  const int allowed = std::min(launch.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024, kSharedLimit);
  const int shared = static_cast<int>(std::min<int64_t>(allowed, needed * 8));
  // Always the same limit, because it belongs to the kernel, which other threads launch too.
  check_cuda(cudaFuncSetAttribute(lstsq_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed),
             "lstsq_kernel");
  const int64_t max_blocks = 4 * static_cast<int64_t>(launch.attribute(cudaDevAttrMultiProcessorCount));
  const bool spills = needed * 8 > shared;
  const int64_t blocks =
      std::min(N, spills ? std::clamp<int64_t>(kWorkspace / (needed * 8), 1, max_blocks) : max_blocks);
  const Tensor workspace = empty_on(rows, {spills ? blocks * needed : 0}, ScalarType::Double);
  lstsq_kernel<T><<<static_cast<unsigned>(blocks), kThreads, shared, launch.stream()>>>(
      data<const T>(rows), data<const T>(anchors), data<const int64_t>(offsets), data<const int32_t>(ids), N,
      static_cast<int>(W), ridge, center, largest, shared / 8, spills ? data<double>(workspace) : nullptr, needed, out);
  Launch::check("lstsq_kernel");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> support_lstsq(const Tensor& new_plm, const Tensor& anchor_plm,
                                                         const Tensor& offsets, const Tensor& ids, double ridge,
                                                         bool center) {
  check_support_lstsq(new_plm, anchor_plm, offsets, ids, ridge);
  const int64_t N = new_plm.size(0), E = new_plm.size(1);
  const Launch launch(new_plm);
  const Tensor offsets_tensor = torch::stable::contiguous(offsets), ids_tensor = torch::stable::contiguous(ids);
  const std::vector<int64_t> host_offsets =
      checked_offsets(launch, "support_lstsq", offsets_tensor, ids_tensor, anchor_plm.size(0));
  const Tensor coefficients = zeros_on(new_plm, {ids.numel()}, ScalarType::Double);
  const Tensor rank = zeros_on(new_plm, {N}, ScalarType::Int);
  const Tensor residual =
      torch::stable::full({N}, kNothingExplained, ScalarType::Float, std::nullopt, new_plm.device());
  Tensor status = empty_on(new_plm, {N}, ScalarType::Byte);
  if (N == 0) return {coefficients, rank, residual, status};
  const LstsqResults out{data<double>(coefficients), data<int32_t>(rank), data<float>(residual), data<uint8_t>(status)};
  torch::stable::fill_(status, kUnsolved);

  int largest = 0;  // the largest support that the kernel tries
  const int64_t limit = std::min<int64_t>(kLargestSupport, E + (center ? 1 : 0));
  for (int64_t n = 0; n < N; ++n) {
    const int64_t K = host_offsets[n + 1] - host_offsets[n];
    if (K <= limit) largest = std::max(largest, static_cast<int>(K));
  }
  if (largest > 0) {
    const Tensor rows = padded_rows(launch, new_plm), anchors = padded_rows(launch, anchor_plm);
    if (rows.scalar_type() == ScalarType::Double)
      solve_on_device<double>(launch, rows, anchors, offsets_tensor, ids_tensor, largest, ridge, center, out);
    else
      solve_on_device<float>(launch, rows, anchors, offsets_tensor, ids_tensor, largest, ridge, center, out);
  }
  const std::vector<uint8_t> statuses = host_copy<uint8_t>(launch, out.status, N);
  std::vector<int64_t> unsolved;
  for (int64_t n = 0; n < N; ++n)
    if (statuses[n] == kUnsolved) unsolved.push_back(n);
  if (!unsolved.empty())
    solve_rest_on_cpu(launch, torch::stable::contiguous(new_plm), torch::stable::contiguous(anchor_plm), ids_tensor,
                      host_offsets, unsolved, ridge, center, out);
  return {coefficients, rank, residual, status};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("support_lstsq", TORCH_BOX(&support_lstsq)); }

}  // namespace saltlm::cuda
