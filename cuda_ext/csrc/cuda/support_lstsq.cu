// support_lstsq on CUDA: one thread block per token settles the well-conditioned ones (lstsq_token.h), the CPU operator
// the others, so that ranks and statuses are decided in one place.
#include <algorithm>
#include <tuple>

#include "lstsq.cuh"
#include "pending.cuh"

namespace saltlm::cuda {

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
    const Packed supports{data<const int64_t>(starts), data<const int32_t>(places)};
    if (rows.scalar_type() == ScalarType::Double)
      solve_all<double>(launch, rows, anchors, supports, largest, ridge, center, out);
    else
      solve_all<float>(launch, rows, anchors, supports, largest, ridge, center, out);
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
