// combine on CUDA: row n is the sum of c_k times anchor row ids[k], added in float64 in the order of the support.
#include <type_traits>

#include "launch.cuh"

namespace saltlm::cuda {

namespace {

// One block per row and slice of columns, one thread per column: neighbouring threads read neighbouring values, and the
// order of the additions is that of the support for every launch configuration.
template <class T, class Out>
__global__ void combine_kernel(const int64_t* offsets, const int32_t* ids, const double* coefficients, const T* anchors,
                               int64_t N, int64_t D, Out* rows) {
  const int64_t column = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (column >= D) return;
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    double sum = 0.0;
    const int64_t end = offsets[n + 1];
    for (int64_t k = offsets[n]; k < end; ++k)
      sum += coefficients[k] * as_double(anchors[static_cast<int64_t>(ids[k]) * D + column]);
    rows[n * D + column] = static_cast<Out>(sum);
  }
}

Tensor combine(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients, const Tensor& anchor_lm) {
  check_combine(offsets, ids, coefficients, anchor_lm);
  const Launch launch(anchor_lm);
  const Tensor offsets_tensor = torch::stable::contiguous(offsets), ids_tensor = torch::stable::contiguous(ids);
  const Tensor coefficients_tensor = torch::stable::contiguous(coefficients);
  const Tensor anchors = torch::stable::contiguous(anchor_lm);
  checked_offsets(launch, "combine", offsets_tensor, ids_tensor, anchor_lm.size(0));
  const int64_t N = offsets.size(0) - 1, D = anchors.size(1);
  const ScalarType type = anchors.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor rows = empty_on(anchors, {N, D}, type);
  if (rows.numel() == 0) return rows;
  const int64_t slices = (D + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(slices <= 65535, "combine, anchor_lm: expected fewer columns, found ", D);
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(N, 1 << 20)), static_cast<unsigned>(slices));
  by_type(anchors, [&](auto zero) {
    using T = decltype(zero);
    using Out = std::conditional_t<std::is_same_v<T, double>, double, float>;
    combine_kernel<<<grid, kThreads, 0, launch.stream()>>>(
        data<const int64_t>(offsets_tensor), data<const int32_t>(ids_tensor), data<const double>(coefficients_tensor),
        data<const T>(anchors), N, D, data<Out>(rows));
  });
  Launch::check("combine_kernel");
  return rows;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("combine", TORCH_BOX(&combine)); }

}  // namespace saltlm::cuda
