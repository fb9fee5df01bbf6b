// combine on CUDA (combine.cuh).
#include "combine.cuh"
#include "waiting.cuh"

namespace saltlm::cuda {

Tensor combine(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients, const Tensor& anchor_lm) {
  check_combine(offsets, ids, coefficients, anchor_lm);
  const int64_t N = offsets.size(0) - 1, D = anchor_lm.size(1);
  const bool wide = anchor_lm.scalar_type() == ScalarType::Double;
  const Tensor rows = zeros_on(anchor_lm, {N, D}, wide ? ScalarType::Double : ScalarType::Float);
  if (rows.numel() == 0) return rows;
  const Launch launch(anchor_lm);
  const Tensor starts = torch::stable::contiguous(offsets), places = torch::stable::contiguous(ids);
  const Tensor factors = torch::stable::contiguous(coefficients), anchors = torch::stable::contiguous(anchor_lm);
  checked_offsets(launch, "combine", starts, places, anchor_lm.size(0));
  combine_all(launch, "combine", Packed{data<const int64_t>(starts), data<const int32_t>(places)}, factors, anchors, rows);
  return rows;
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("combine", TORCH_BOX(&combine)); }

}  // namespace saltlm::cuda
