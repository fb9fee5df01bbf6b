// pursue on the CPU. Rows are independent of each other and processed by several threads.
#include <algorithm>
#include <vector>

#include "parallel.h"

namespace saltlm::cpu {
namespace {

std::tuple<Tensor, Tensor> pursue(const Tensor& products, const Tensor& gram, const Tensor& squares,
                                  int64_t max_picks) {
  check_pursue(products, gram, squares, max_picks);
  const int64_t N = products.size(0), A = products.size(1);
  Tensor picks = zeros_on(products, {N, max_picks}, ScalarType::Int), size = zeros_on(products, {N}, ScalarType::Int);
  if (N == 0 || A == 0) return {picks, size};
  const Tensor products_tensor = torch::stable::contiguous(products), gram_tensor = torch::stable::contiguous(gram),
               squares_tensor = torch::stable::contiguous(squares);
  const float* products_data = products_tensor.const_data_ptr<float>();
  const float* gram_data = gram_tensor.const_data_ptr<float>();
  const double* squares_data = squares_tensor.const_data_ptr<double>();
  int32_t* picks_data = picks.mutable_data_ptr<int32_t>();
  int32_t* size_data = size.mutable_data_ptr<int32_t>();
  const int64_t padded = (A + kPursuitPanel - 1) / kPursuitPanel * kPursuitPanel;
  const int64_t scratch =
      padded * (max_picks + kPursuitInterleave) + (max_picks + kPursuitGuesses + 2) * kPursuitCandidates;
  for_rows(N, 4, "pursue", [&] {
    return [&, row_products = std::vector<float>(static_cast<size_t>(padded)),
            row_scratch = std::vector<float>(static_cast<size_t>(scratch))](int64_t begin, int64_t end) mutable {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(products_data + i * A, A, row_products.begin());
        std::fill(row_products.begin() + A, row_products.end(), 0.0f);
        size_data[i] =
            static_cast<int32_t>(pursuit_kernels().pursue(gram_data, A, squares_data[i], max_picks, row_products.data(),
                                                          row_scratch.data(), picks_data + i * max_picks));
      }
      return true;
    };
  });
  return {picks, size};
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) { m.impl("pursue", TORCH_BOX(&saltlm::cpu::pursue)); }
