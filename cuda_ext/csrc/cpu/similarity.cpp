// sparsemax_support on the CPU: a fast product of unit vectors with a known error bound, a filter that uses the bound,
// float64 cosines of the few survivors, and the exact sparsemax over those. The product is torch's bfloat16 product
// where the machine has matrix tiles for it (AMX), an int16 product on other x86-64 machines, and torch's float32
// product on the others. The int16 product is faster than float32 on every x86-64, and its 15 bits leave few additional
// survivors; AVX-512's bfloat16 instruction has the same rate with only 8 bits.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "support_finder.h"

namespace saltlm::cpu {
namespace {

// Scales each row of a float64 matrix by a power of two, so that squares neither overflow nor underflow. Cosines stay
// the same.
Tensor scaled_to_unit_range(const Tensor& rows) {
  if (rows.scalar_type() != ScalarType::Double) return rows;
  Tensor copy = torch::stable::clone(rows);
  double* data = copy.mutable_data_ptr<double>();
  const int64_t count = copy.size(0), width = copy.size(1);
  for (int64_t i = 0; i < count; ++i) {
    double max_abs = 0;
    for (int64_t e = 0; e < width; ++e) max_abs = std::max(max_abs, std::fabs(data[i * width + e]));
    if (!std::isfinite(max_abs) || max_abs == 0) continue;
    int exponent;
    std::frexp(max_abs, &exponent);
    for (int64_t e = 0; e < width; ++e) data[i * width + e] = std::ldexp(data[i * width + e], -exponent);
  }
  return copy;
}

// Supports of all rows by the int16 product.
void find_supports_int16(const Matrix& rows, const Anchors& anchors, int64_t max_support, EntryBudget& budget,
                         std::vector<RowSupport>& supports) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t anchor_count = static_cast<int64_t>(anchors.usable.size()), pairs = (rows.width + 1) / 2,
                panel_width = kernels.panel_width;
  const int64_t padded = (anchor_count + panel_width - 1) / panel_width * panel_width,
                maxima_stride = kernels.maxima_size(padded);
  std::vector<int16_t> panels(static_cast<size_t>(padded * pairs * 2), 0);
  std::vector<double> errors(static_cast<size_t>(anchor_count));
  for_rows((anchor_count + panel_width - 1) / panel_width, 16, "sparsemax_support", [&] {
    return [&, times = start_stage_times()](int64_t begin, int64_t end) {
      kernels.to_int16(anchors.matrix, anchors.usable.data(), begin * panel_width,
                       std::min(end * panel_width, anchor_count), anchors.inverse_norm.data(), panel_width,
                       panels.data() + begin * panel_width * pairs * 2, errors.data() + begin * panel_width);
      end_stage(times.get(), kPrepare);
      return true;
    };
  });
  const double anchor_error = *std::max_element(errors.begin(), errors.end());
  for_rows((rows.rows + kTileRows - 1) / kTileRows, 1, "sparsemax_support", [&] {
    return [&, finder = SupportFinder(rows, anchors, max_support, budget),
            tile = std::vector<int16_t>(static_cast<size_t>(kTileRows * pairs * 2), 0),
            values = std::vector<float>(static_cast<size_t>(kTileRows * padded)),
            maxima = std::vector<float>(static_cast<size_t>(kTileRows * maxima_stride))](int64_t begin,
                                                                                         int64_t end) mutable {
      for (int64_t first = begin * kTileRows; first < std::min(end * kTileRows, rows.rows); first += kTileRows) {
        if (!budget.accepts(first)) break;
        const int64_t count = std::min(kTileRows, rows.rows - first);
        double inverse_norm[kTileRows], error[kTileRows];
        const Matrix part{static_cast<const char*>(rows.data) + first * rows.width * (rows.is_double ? 8 : 4),
                          rows.is_double, count, rows.width};
        kernels.normalize(part, 0, count, inverse_norm, nullptr);
        kernels.to_int16(part, nullptr, 0, count, inverse_norm, 1, tile.data(), error);
        end_stage(finder.times(), kPrepare);
        kernels.product_int16(tile.data(), panels.data(), padded, pairs, values.data(), padded, maxima.data(),
                              maxima_stride);
        end_stage(finder.times(), kProduct);
        for (int64_t i = 0; i < count; ++i) {
          if (!budget.accepts(first + i)) break;
          if (inverse_norm[i] == 0) continue;
          // The rounding errors of both sides, and 1e-6 for the rounding of float64 and float32 in between.
          const double slack = error[i] + (1 + error[i]) * anchor_error + 1e-6;
          finder.find_from_int16(first + i, inverse_norm[i], values.data() + i * padded,
                                 maxima.data() + i * maxima_stride, slack, supports[first + i]);
        }
      }
      return true;
    };
  });
}

enum class Product { kBfloat16, kInt16, kFloat32 };

// The fastest product of the machine, or the one named by SALTLM_CPU_PRODUCT, for tests and comparison.
Product chosen_product() {
  const bool has_int16 = similarity_kernels().panel_width > 0;
  const char* requested = std::getenv("SALTLM_CPU_PRODUCT");
  if (requested == nullptr || *requested == 0)
    return has_fast_bfloat16() ? Product::kBfloat16 : has_int16 ? Product::kInt16 : Product::kFloat32;
  if (std::strcmp(requested, "bfloat16") == 0) return Product::kBfloat16;
  if (std::strcmp(requested, "int16") == 0 && has_int16) return Product::kInt16;
  STD_TORCH_CHECK(std::strcmp(requested, "float32") == 0, "SALTLM_CPU_PRODUCT: found ", requested,
                  "; expected bfloat16, float32", has_int16 ? " or int16" : " (this machine has no int16 product)");
  return Product::kFloat32;
}

std::tuple<Tensor, Tensor, Tensor> sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary,
                                                     int64_t max_support, double slack, int64_t most_entries) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack, most_entries);
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0), P = new_auxiliary.size(1);
  const Tensor rows_tensor = scaled_to_unit_range(as_float_or_double(new_auxiliary)),
               anchors_tensor = scaled_to_unit_range(as_float_or_double(anchor_auxiliary));
  const Matrix rows = as_matrix(rows_tensor);
  Anchors anchors{as_matrix(anchors_tensor), std::vector<double>(static_cast<size_t>(A)), {}};
  for_rows(A, 256, "sparsemax_support", [&] {
    return [&, times = start_stage_times()](int64_t begin, int64_t end) {
      kernels.normalize(anchors.matrix, begin, end, anchors.inverse_norm.data(), nullptr);
      end_stage(times.get(), kPrepare);
      return true;
    };
  });
  for (int64_t a = 0; a < A; ++a)
    if (anchors.inverse_norm[a] != 0) anchors.usable.push_back(static_cast<int32_t>(a));
  std::vector<RowSupport> supports(static_cast<size_t>(N));
  EntryBudget budget(most_entries, N);
  if (N > 0 && P > 0 && !anchors.usable.empty()) {
    switch (chosen_product()) {
      case Product::kBfloat16:
        find_supports_bfloat16(new_auxiliary, rows, anchors, max_support, budget, supports);
        break;
      case Product::kInt16: find_supports_int16(rows, anchors, max_support, budget, supports); break;
      case Product::kFloat32: find_supports_float32(new_auxiliary, rows, anchors, max_support, slack, budget, supports);
    }
  }
  const int64_t row_count = budget.end_row();
  Tensor offsets = zeros_on(new_auxiliary, {row_count + 1}, ScalarType::Long);
  int64_t* offsets_data = offsets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < row_count; ++i)
    offsets_data[i + 1] = offsets_data[i] + static_cast<int64_t>(supports[i].ids.size());
  Tensor ids = empty_on(new_auxiliary, {offsets_data[row_count]}, ScalarType::Int);
  Tensor weights = empty_on(new_auxiliary, {offsets_data[row_count]}, ScalarType::Double);
  int32_t* ids_data = ids.mutable_data_ptr<int32_t>();
  double* weights_data = weights.mutable_data_ptr<double>();
  for (int64_t i = 0; i < row_count; ++i) {
    std::copy(supports[i].ids.begin(), supports[i].ids.end(), ids_data + offsets_data[i]);
    std::copy(supports[i].weights.begin(), supports[i].weights.end(), weights_data + offsets_data[i]);
  }
  return {offsets, ids, weights};
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) { m.impl("sparsemax_support", TORCH_BOX(&saltlm::cpu::sparsemax_support)); }
