// Tokens that the least-squares kernel does not solve: their rows are copied to the host, the CPU operator solves them,
// and the results are copied back.
#pragma once

#include <array>
#include <vector>

#include "launch.cuh"

namespace saltlm::cuda {

// Device memory of the results of least squares.
struct LstsqResults {
  double* coefficients;  // [nnz]
  int32_t* rank;         // [N]
  float* residual;       // [N]
  uint8_t* status;       // [N]
};

// to [count, W] = the rows index[0 .. count) of from [*, W]; one block per row.
template <class T>
__global__ void gather_rows_kernel(const T* from, const int64_t* index, int64_t W, T* to) {
  for (int64_t w = threadIdx.x; w < W; w += blockDim.x) to[blockIdx.x * W + w] = from[index[blockIdx.x] * W + w];
}

inline Tensor on_cpu(const Tensor& tensor) {
  return torch::stable::to(tensor, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

struct CpuSolution {
  Tensor coefficients, rank, residual, status;
};

// Calls the CPU operator through the dispatcher, because this library does not contain it.
inline CpuSolution cpu_support_lstsq(const Tensor& rows, const Tensor& anchors, const Tensor& offsets,
                                     const Tensor& ids, double ridge, bool center) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 6> stack{from(rows), from(anchors), from(offsets), from(ids), from(ridge), from(center)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("saltlm::support_lstsq", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2]), to<Tensor>(stack[3])};
}

// The rows `indices` of a contiguous matrix of any dtype, on the CPU.
inline Tensor rows_on_cpu(const Launch& launch, const Tensor& matrix, const std::vector<int64_t>& indices) {
  const int64_t count = static_cast<int64_t>(indices.size()), width = matrix.size(1);
  const Tensor index = empty_on(matrix, {count}, ScalarType::Long);
  copy_to_device(launch, data<int64_t>(index), indices.data(), count);
  if (count == 0) return on_cpu(empty_on(matrix, {0, width}, matrix.scalar_type()));
  const Tensor rows = empty_on(matrix, {count, width}, matrix.scalar_type());
  by_type(matrix, [&](auto zero) {
    using T = decltype(zero);
    gather_rows_kernel<<<static_cast<unsigned>(count), kThreads, 0, launch.stream()>>>(
        data<const T>(matrix), data<const int64_t>(index), width, data<T>(rows));
  });
  Launch::check("gather_rows_kernel");
  return on_cpu(rows);
}

// The rows of `matrix` that occur in `ids`, on the CPU. `ids` become positions among these rows.
inline Tensor referenced_rows_on_cpu(const Launch& launch, const Tensor& matrix, std::vector<int32_t>& ids) {
  std::vector<int64_t> position(static_cast<size_t>(matrix.size(0)), -1), referenced;
  for (const int32_t id : ids) position[id] = 0;
  for (int64_t i = 0; i < matrix.size(0); ++i) {
    if (position[i] < 0) continue;
    position[i] = static_cast<int64_t>(referenced.size());
    referenced.push_back(i);
  }
  for (int32_t& id : ids) id = static_cast<int32_t>(position[id]);
  return rows_on_cpu(launch, matrix, referenced);
}

// Solves the tokens `unsolved` on the CPU, from the rows as they were given, and writes their results to `out`.
inline void solve_rest_on_cpu(const Launch& launch, const Tensor& rows, const Tensor& anchors, const Tensor& ids,
                              const std::vector<int64_t>& offsets, const std::vector<int64_t>& unsolved, double ridge,
                              bool center, const LstsqResults& out) {
  const int64_t N = rows.size(0), count = static_cast<int64_t>(unsolved.size());
  const Tensor cpu_rows = rows_on_cpu(launch, rows, unsolved);
  const std::vector<int32_t> all_ids = host_copy(launch, data<const int32_t>(ids), ids.numel());
  std::vector<int32_t> cpu_ids;
  int64_t largest = 0;
  const Tensor cpu_offsets_tensor = zeros_on(cpu_rows, {count + 1}, ScalarType::Long);
  int64_t* cpu_offsets = data<int64_t>(cpu_offsets_tensor);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = unsolved[i];
    cpu_ids.insert(cpu_ids.end(), all_ids.begin() + offsets[n], all_ids.begin() + offsets[n + 1]);
    cpu_offsets[i + 1] = static_cast<int64_t>(cpu_ids.size());
    largest = std::max(largest, cpu_offsets[i + 1] - cpu_offsets[i]);
  }
  // For K > E the CPU's order of summation depends on the number of anchors, so it gets all of them; otherwise the
  // referenced ones are enough.
  const Tensor cpu_anchors =
      largest > rows.size(1) ? on_cpu(anchors) : referenced_rows_on_cpu(launch, anchors, cpu_ids);
  const Tensor cpu_ids_tensor = empty_on(cpu_rows, {cpu_offsets[count]}, ScalarType::Int);
  std::copy(cpu_ids.begin(), cpu_ids.end(), data<int32_t>(cpu_ids_tensor));
  const CpuSolution solution =
      cpu_support_lstsq(cpu_rows, cpu_anchors, cpu_offsets_tensor, cpu_ids_tensor, ridge, center);

  std::vector<double> coefficients = host_copy<double>(launch, out.coefficients, ids.numel());
  std::vector<int32_t> rank = host_copy<int32_t>(launch, out.rank, N);
  std::vector<float> residual = host_copy<float>(launch, out.residual, N);
  std::vector<uint8_t> status = host_copy<uint8_t>(launch, out.status, N);
  const double* cpu_coefficients = data<const double>(solution.coefficients);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = unsolved[i];
    std::copy(cpu_coefficients + cpu_offsets[i], cpu_coefficients + cpu_offsets[i + 1],
              coefficients.begin() + offsets[n]);
    rank[n] = data<const int32_t>(solution.rank)[i];
    residual[n] = data<const float>(solution.residual)[i];
    status[n] = data<const uint8_t>(solution.status)[i];
  }
  copy_to_device(launch, out.coefficients, coefficients.data(), ids.numel());
  copy_to_device(launch, out.rank, rank.data(), N);
  copy_to_device(launch, out.residual, residual.data(), N);
  copy_to_device(launch, out.status, status.data(), N);
}

}  // namespace saltlm::cuda
