// Row n is the sum of c_k times anchor row ids[k], added in float64 in the order of the support. Nothing here waits for the device.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "supports.cuh"

namespace saltlm::cuda {

namespace {

// One block per row and slice of columns, one thread per column: neighbours read neighbouring values, and the order of
// the additions is that of the support whatever the launch.
template <class T, class Out, class Supports>
__global__ void combine_kernel(Supports supports, const double* coefficients, const T* anchors, int64_t N, int64_t D,
                               Out* rows) {
  const int64_t column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (column >= D) return;
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    double sum = 0.0;
    const int64_t start = supports.start(n), end = start + supports.size(n);
    for (int64_t k = start; k < end; ++k)
      sum += coefficients[k] * as_double(anchors[static_cast<int64_t>(supports.ids[k]) * D + column]);
    rows[n * D + column] = static_cast<Out>(sum);
  }
}

ScalarType combined_type(const Tensor& anchors) {
  return anchors.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Rows [N, D] of contiguous `anchors`; zeros for a token without entries.
template <class Supports>
Tensor combine_all(const Launch& launch, const char* op, const Supports& supports, const Tensor& coefficients,
                   const Tensor& anchors, int64_t N) {
  const int64_t D = anchors.size(1);
  const Tensor rows = empty_on(anchors, {N, D}, combined_type(anchors));
  if (rows.numel() == 0) return rows;
  const int64_t slices = (D + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(slices <= 65535, op, ", anchor_lm: expected fewer columns, found ", D);
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(N, 1 << 20)), static_cast<unsigned>(slices));
  by_type(anchors, [&](auto zero) {
    using T = decltype(zero);
    using Out = std::conditional_t<std::is_same_v<T, double>, double, float>;
    combine_kernel<<<grid, kThreads, 0, launch.stream()>>>(supports, data<const double>(coefficients),
                                                           data<const T>(anchors), N, D, data<Out>(rows));
  });
  Launch::check("combine_kernel");
  return rows;
}

}  // namespace

}  // namespace saltlm::cuda
