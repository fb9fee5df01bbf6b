// support_lstsq on CUDA: one thread block per token settles the well-conditioned ones (lstsq_token.h), the CPU operator
// the others, so that ranks and statuses are decided in one place.
#include <algorithm>
#include <array>
#include <tuple>

#include "launch.cuh"
#include "lstsq_token.h"

namespace saltlm::cuda {

namespace {

constexpr uint8_t kPending = 255;                     // not settled here
constexpr int64_t kLargestSupport = 1024;             // beyond it one block per token is the wrong shape
constexpr int64_t kWorkspace = 256 * kMegabyte;       // of all blocks together
constexpr int kSharedLimit = 96 * 1024;               // two blocks on a multiprocessor of the smallest target

struct Outputs {
  double* coefficients;
  int32_t* rank;
  float* residual;
  uint8_t* status;
};

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

// Rows of `from` [*, W] named by `index` [count], as a matrix.
template <class T>
__global__ void gather_kernel(const T* from, const int64_t* index, int64_t W, T* to) {
  for (int64_t w = threadIdx.x; w < W; w += blockDim.x) to[blockIdx.x * W + w] = from[index[blockIdx.x] * W + w];
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

Tensor on_cpu(const Tensor& tensor) {
  return torch::stable::to(tensor, std::nullopt, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

struct Settled {
  Tensor coefficients, rank, residual, status;
};

// The CPU operator, through the dispatcher: this library does not contain it.
Settled solve_on_cpu(const Tensor& rows, const Tensor& anchors, const Tensor& offsets, const Tensor& ids, double ridge,
                     bool center) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 6> stack{from(rows), from(anchors), from(offsets), from(ids), from(ridge), from(center)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("saltlm::support_lstsq", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2]), to<Tensor>(stack[3])};
}

// Row numbers `pending` of a matrix of any dtype, on the CPU.
Tensor rows_on_cpu(const Launch& launch, const Tensor& matrix, const std::vector<int64_t>& pending) {
  const int64_t count = static_cast<int64_t>(pending.size()), width = matrix.size(1);
  const Tensor index = empty_on(matrix, {count}, ScalarType::Long);
  launch.to_device(data<int64_t>(index), pending.data(), count);
  const Tensor some = empty_on(matrix, {count, width}, matrix.scalar_type());
  by_type(matrix, [&](auto zero) {
    using T = decltype(zero);
    gather_kernel<<<static_cast<unsigned>(count), kThreads, 0, launch.stream()>>>(
        data<const T>(matrix), data<const int64_t>(index), width, data<T>(some));
  });
  Launch::check("gather_kernel");
  return on_cpu(some);
}

// A device array on the host, to be patched and sent back.
template <class T>
std::vector<T> fetch(const Launch& launch, const T* device, int64_t count) {
  std::vector<T> host(static_cast<size_t>(count));
  launch.to_host(host.data(), device, count);
  return host;
}

// Settles the tokens `pending` on the CPU, from the rows as they were given, and puts their results into `out`.
void finish_on_cpu(const Launch& launch, const Tensor& rows, const Tensor& anchors, const Tensor& ids,
                   const std::vector<int64_t>& starts, const std::vector<int64_t>& pending, double ridge, bool center,
                   const Outputs& out) {
  const int64_t N = rows.size(0), count = static_cast<int64_t>(pending.size());
  const Tensor some_rows = rows_on_cpu(launch, rows, pending);
  const std::vector<int32_t> all_ids = fetch(launch, data<const int32_t>(ids), ids.numel());
  std::vector<int32_t> some_ids;
  const Tensor some_offsets = zeros_on(some_rows, {count + 1}, ScalarType::Long);
  int64_t* offsets = data<int64_t>(some_offsets);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = pending[i];
    some_ids.insert(some_ids.end(), all_ids.begin() + starts[n], all_ids.begin() + starts[n + 1]);
    offsets[i + 1] = static_cast<int64_t>(some_ids.size());
  }
  const Tensor packed_ids = empty_on(some_rows, {offsets[count]}, ScalarType::Int);
  std::copy(some_ids.begin(), some_ids.end(), data<int32_t>(packed_ids));
  const Settled solved = solve_on_cpu(some_rows, on_cpu(anchors), some_offsets, packed_ids, ridge, center);

  std::vector<double> coefficients = fetch<double>(launch, out.coefficients, ids.numel());
  std::vector<int32_t> rank = fetch<int32_t>(launch, out.rank, N);
  std::vector<float> residual = fetch<float>(launch, out.residual, N);
  std::vector<uint8_t> status = fetch<uint8_t>(launch, out.status, N);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = pending[i];
    const double* found = data<const double>(solved.coefficients);
    std::copy(found + offsets[i], found + offsets[i + 1], coefficients.begin() + starts[n]);
    rank[n] = data<const int32_t>(solved.rank)[i];
    residual[n] = data<const float>(solved.residual)[i];
    status[n] = data<const uint8_t>(solved.status)[i];
  }
  launch.to_device(out.coefficients, coefficients.data(), ids.numel());
  launch.to_device(out.rank, rank.data(), N);
  launch.to_device(out.residual, residual.data(), N);
  launch.to_device(out.status, status.data(), N);
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
    finish_on_cpu(launch, torch::stable::contiguous(new_plm), anchor_plm, places, host_starts, pending, ridge, center, out);
  return {coefficients, rank, residual, status};
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("support_lstsq", TORCH_BOX(&support_lstsq)); }

}  // namespace saltlm::cuda
