// combine on CUDA (combine.cuh).
#include "combine.cuh"
#include "waiting.cuh"

namespace saltlm::cuda {

Tensor combine(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients, const Tensor& anchor_lm) {
  check_combine(offsets, ids, coefficients, anchor_lm);
  const Launch launch(anchor_lm);
  const Tensor starts = torch::stable::contiguous(offsets), places = torch::stable::contiguous(ids);
  const Tensor factors = torch::stable::contiguous(coefficients), anchors = torch::stable::contiguous(anchor_lm);
  checked_offsets(launch, "combine", starts, places, anchor_lm.size(0));
  const Packed supports{data<const int64_t>(starts), data<const int32_t>(places)};
  return combine_all(launch, "combine", supports, factors, anchors, offsets.size(0) - 1);
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("combine", TORCH_BOX(&combine)); }

}  // namespace saltlm::cuda
