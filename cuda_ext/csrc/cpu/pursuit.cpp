// pursue on the CPU: every row alone, on whichever thread is free.
#include <algorithm>
#include <vector>

#include "parallel.h"

namespace saltlm::cpu {
namespace {

std::tuple<Tensor, Tensor> pursue(const Tensor& products, const Tensor& gram, const Tensor& squares, int64_t most) {
  check_pursue(products, gram, squares, most);
  const int64_t N = products.size(0), A = products.size(1);
  Tensor picks = zeros_on(products, {N, most}, ScalarType::Int), size = zeros_on(products, {N}, ScalarType::Int);
  if (N == 0 || A == 0) return {picks, size};
  const Tensor products_tensor = torch::stable::contiguous(products), gram_tensor = torch::stable::contiguous(gram),
               squares_tensor = torch::stable::contiguous(squares);
  const float* all_products = products_tensor.const_data_ptr<float>();
  const float* all_gram = gram_tensor.const_data_ptr<float>();
  const double* all_squares = squares_tensor.const_data_ptr<double>();
  int32_t* all_picks = picks.mutable_data_ptr<int32_t>();
  int32_t* sizes = size.mutable_data_ptr<int32_t>();
  const int64_t padded = (A + kPursuitPanel - 1) / kPursuitPanel * kPursuitPanel;
  const int64_t scratch = padded * (most + kPursuitTogether) + (most + kPursuitGuesses + 2) * kPursuitCandidates;
  for_rows(N, 4, "pursue", [&] {
    return [&, own = std::vector<float>(static_cast<size_t>(padded)),
            work = std::vector<float>(static_cast<size_t>(scratch))](int64_t begin, int64_t end) mutable {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(all_products + i * A, A, own.begin());
        std::fill(own.begin() + A, own.end(), 0.0f);
        sizes[i] = static_cast<int32_t>(
            pursuit_kernels().pursue(all_gram, A, all_squares[i], most, own.data(), work.data(), all_picks + i * most));
      }
      return true;
    };
  });
  return {picks, size};
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) { m.impl("pursue", TORCH_BOX(&saltlm::cpu::pursue)); }
