// Tokens that the device leaves to the CPU: their rows are copied to the host, solved by the CPU operator, and the
// results put in place.
#pragma once

#include <array>

#include "lstsq.cuh"
#include "waiting.cuh"

namespace saltlm::cuda {

// Rows of `from` [*, W] named by `index` [count], as a matrix.
template <class T>
__global__ void gather_kernel(const T* from, const int64_t* index, int64_t W, T* to) {
  for (int64_t w = threadIdx.x; w < W; w += blockDim.x) to[blockIdx.x * W + w] = from[index[blockIdx.x] * W + w];
}

inline Tensor on_cpu(const Tensor& tensor) {
  return torch::stable::to(tensor, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

struct Settled {
  Tensor coefficients, rank, residual, status;
};

// The CPU operator, through the dispatcher: this library does not contain it.
inline Settled solve_on_cpu(const Tensor& rows, const Tensor& anchors, const Tensor& offsets, const Tensor& ids,
                            double ridge, bool center) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 6> stack{from(rows), from(anchors), from(offsets), from(ids), from(ridge), from(center)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("saltlm::support_lstsq", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2]), to<Tensor>(stack[3])};
}

// Rows `numbers` of a contiguous matrix of any dtype, on the CPU.
inline Tensor rows_on_cpu(const Launch& launch, const Tensor& matrix, const std::vector<int64_t>& numbers) {
  const int64_t count = static_cast<int64_t>(numbers.size()), width = matrix.size(1);
  const Tensor index = empty_on(matrix, {count}, ScalarType::Long);
  to_device(launch, data<int64_t>(index), numbers.data(), count);
  if (count == 0) return on_cpu(empty_on(matrix, {0, width}, matrix.scalar_type()));
  const Tensor some = empty_on(matrix, {count, width}, matrix.scalar_type());
  by_type(matrix, [&](auto zero) {
    using T = decltype(zero);
    gather_kernel<<<static_cast<unsigned>(count), kThreads, 0, launch.stream()>>>(
        data<const T>(matrix), data<const int64_t>(index), width, data<T>(some));
  });
  Launch::check("gather_kernel");
  return on_cpu(some);
}

// The rows of `matrix` that occur in `ids`, on the CPU; the ids become positions among them.
inline Tensor named_on_cpu(const Launch& launch, const Tensor& matrix, std::vector<int32_t>& ids) {
  std::vector<int64_t> place(static_cast<size_t>(matrix.size(0)), -1), named;
  for (const int32_t id : ids) place[id] = 0;
  for (int64_t i = 0; i < matrix.size(0); ++i) {
    if (place[i] < 0) continue;
    place[i] = static_cast<int64_t>(named.size());
    named.push_back(i);
  }
  for (int32_t& id : ids) id = static_cast<int32_t>(place[id]);
  return rows_on_cpu(launch, matrix, named);
}

// A device array on the host, to be patched and sent back.
template <class T>
std::vector<T> fetch(const Launch& launch, const T* device, int64_t count) {
  std::vector<T> host(static_cast<size_t>(count));
  to_host(launch, host.data(), device, count);
  return host;
}

// Settles the tokens `pending` on the CPU, from the rows as they were given, and puts their results into `out`.
inline void finish_on_cpu(const Launch& launch, const Tensor& rows, const Tensor& anchors, const Tensor& ids,
                          const std::vector<int64_t>& starts, const std::vector<int64_t>& pending, double ridge,
                          bool center, const Outputs& out) {
  const int64_t N = rows.size(0), count = static_cast<int64_t>(pending.size());
  const Tensor some_rows = rows_on_cpu(launch, rows, pending);
  const std::vector<int32_t> all_ids = fetch(launch, data<const int32_t>(ids), ids.numel());
  std::vector<int32_t> some_ids;
  int64_t largest = 0;
  const Tensor some_offsets = zeros_on(some_rows, {count + 1}, ScalarType::Long);
  int64_t* offsets = data<int64_t>(some_offsets);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = pending[i];
    some_ids.insert(some_ids.end(), all_ids.begin() + starts[n], all_ids.begin() + starts[n + 1]);
    offsets[i + 1] = static_cast<int64_t>(some_ids.size());
    largest = std::max(largest, offsets[i + 1] - offsets[i]);
  }
  // For K > E the CPU's way of summing depends on how many anchors there are, so it must see them all; else those that
  // are named are enough.
  const Tensor some_anchors = largest > rows.size(1) ? on_cpu(anchors) : named_on_cpu(launch, anchors, some_ids);
  const Tensor packed_ids = empty_on(some_rows, {offsets[count]}, ScalarType::Int);
  std::copy(some_ids.begin(), some_ids.end(), data<int32_t>(packed_ids));
  const Settled solved = solve_on_cpu(some_rows, some_anchors, some_offsets, packed_ids, ridge, center);

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
  to_device(launch, out.coefficients, coefficients.data(), ids.numel());
  to_device(launch, out.rank, rank.data(), N);
  to_device(launch, out.residual, residual.data(), N);
  to_device(launch, out.status, status.data(), N);
}

}  // namespace saltlm::cuda
