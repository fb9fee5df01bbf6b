// sparsemax_support on the CPU: a cheap product of unit vectors with a known error, a certified filter over it, then cosines
// of the few survivors in float64 and the exact sparsemax over those. The product is torch's of bfloat16 where the machine has
// matrix tiles for it (AMX), one of int16 on other x86-64 (no machine's float32 is as fast, and 15 bits leave few survivors
// too many; AVX-512's own bfloat16 instruction multiplies no more pairs at once than the int16 one, with 8 bits), torch's
// float32 product elsewhere.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "finder.h"

namespace saltlm::cpu {
namespace {

// float64 rows times a power of two each, so that squares neither overflow nor vanish; the cosines stay as they are.
Tensor tamed(const Tensor& rows) {
  if (rows.scalar_type() != ScalarType::Double) return rows;
  Tensor copy = torch::stable::clone(rows);
  double* data = copy.mutable_data_ptr<double>();
  const int64_t count = copy.size(0), width = copy.size(1);
  for (int64_t i = 0; i < count; ++i) {
    double peak = 0;
    for (int64_t e = 0; e < width; ++e) peak = std::max(peak, std::fabs(data[i * width + e]));
    if (!std::isfinite(peak) || peak == 0) continue;
    int exponent;
    std::frexp(peak, &exponent);
    for (int64_t e = 0; e < width; ++e) data[i * width + e] = std::ldexp(data[i * width + e], -exponent);
  }
  return copy;
}

// All rows by the integer product.
void find_by_integers(const Matrix& rows, const Anchors& anchors, int64_t most, Quota& quota,
                      std::vector<RowSupport>& found) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t count = static_cast<int64_t>(anchors.usable.size()), pairs = (rows.width + 1) / 2, lanes = kernels.lanes;
  const int64_t padded = (count + lanes - 1) / lanes * lanes, sifted = kernels.sieve_size(padded);
  std::vector<int16_t> panels(static_cast<size_t>(padded * pairs * 2), 0);
  std::vector<double> errors(static_cast<size_t>(count));
  for_rows((count + lanes - 1) / lanes, 16, "sparsemax_support", [&] {
    return [&, laps = start_laps()](int64_t begin, int64_t end) {
      kernels.quantize(anchors.matrix, anchors.usable.data(), begin * lanes, std::min(end * lanes, count),
                       anchors.inverse.data(), lanes, panels.data() + begin * lanes * pairs * 2, errors.data() + begin * lanes);
      lap(laps.get(), kPrepare);
      return true;
    };
  });
  const double anchor_error = *std::max_element(errors.begin(), errors.end());
  for_rows((rows.rows + kTile - 1) / kTile, 1, "sparsemax_support", [&] {
    return [&, finder = Finder(rows, anchors, most, quota), tile = std::vector<int16_t>(static_cast<size_t>(kTile * pairs * 2), 0),
            values = std::vector<float>(static_cast<size_t>(kTile * padded)),
            maxima = std::vector<float>(static_cast<size_t>(kTile * sifted))](int64_t begin, int64_t end) mutable {
      for (int64_t first = begin * kTile; first < std::min(end * kTile, rows.rows); first += kTile) {
        if (!quota.open(first)) break;
        const int64_t some = std::min(kTile, rows.rows - first);
        double inverse[kTile], error[kTile];
        const Matrix part{static_cast<const char*>(rows.data) + first * rows.width * (rows.is_double ? 8 : 4), rows.is_double,
                          some, rows.width};
        kernels.measure(part, 0, some, inverse, nullptr);
        kernels.quantize(part, nullptr, 0, some, inverse, 1, tile.data(), error);
        lap(finder.laps(), kPrepare);
        kernels.product(tile.data(), panels.data(), padded, pairs, values.data(), padded, maxima.data(), sifted);
        lap(finder.laps(), kProduct);
        for (int64_t i = 0; i < some; ++i) {
          if (!quota.open(first + i)) break;
          if (inverse[i] == 0) continue;
          // What each side's rounding took away, and 1e-6 for float64's and float32's roundings on the way.
          const double slack = error[i] + (1 + error[i]) * anchor_error + 1e-6;
          finder.find_sieved(first + i, inverse[i], values.data() + i * padded, maxima.data() + i * sifted, slack,
                             found[first + i]);
        }
      }
      return true;
    };
  });
}

enum class Product { kBfloat16, kInt16, kFloat32 };

// The fastest of the machine, or the one that SALTLM_CPU_PRODUCT names, for tests and comparison.
Product chosen_product() {
  const bool integers = similarity_kernels().lanes > 0;
  const char* asked = std::getenv("SALTLM_CPU_PRODUCT");
  if (asked == nullptr || *asked == 0)
    return fast_bfloat16() ? Product::kBfloat16 : integers ? Product::kInt16 : Product::kFloat32;
  if (std::strcmp(asked, "bfloat16") == 0) return Product::kBfloat16;
  if (std::strcmp(asked, "int16") == 0 && integers) return Product::kInt16;
  STD_TORCH_CHECK(std::strcmp(asked, "float32") == 0, "SALTLM_CPU_PRODUCT: found ", asked, "; expected bfloat16, float32",
                  integers ? " or int16" : " (this machine has no int16 product)");
  return Product::kFloat32;
}

std::tuple<Tensor, Tensor, Tensor> sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary,
                                                     int64_t max_support, double slack, int64_t most_entries) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack, most_entries);
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0), P = new_auxiliary.size(1);
  const Tensor rows_tensor = tamed(prepared(new_auxiliary)), anchors_tensor = tamed(prepared(anchor_auxiliary));
  const Matrix rows = as_matrix(rows_tensor);
  Anchors anchors{as_matrix(anchors_tensor), std::vector<double>(static_cast<size_t>(A)), {}};
  for_rows(A, 256, "sparsemax_support", [&] {
    return [&, laps = start_laps()](int64_t begin, int64_t end) {
      kernels.measure(anchors.matrix, begin, end, anchors.inverse.data(), nullptr);
      lap(laps.get(), kPrepare);
      return true;
    };
  });
  for (int64_t a = 0; a < A; ++a)
    if (anchors.inverse[a] != 0) anchors.usable.push_back(static_cast<int32_t>(a));
  std::vector<RowSupport> found(static_cast<size_t>(N));
  Quota quota(most_entries, N);
  if (N > 0 && P > 0 && !anchors.usable.empty()) {
    switch (chosen_product()) {
      case Product::kBfloat16:
        find_by_bfloats(new_auxiliary, rows, anchors, max_support, quota, found);
        break;
      case Product::kInt16:
        find_by_integers(rows, anchors, max_support, quota, found);
        break;
      case Product::kFloat32:
        find_by_floats(new_auxiliary, rows, anchors, max_support, slack, quota, found);
    }
  }
  const int64_t there = quota.end();
  Tensor offsets = zeros_on(new_auxiliary, {there + 1}, ScalarType::Long);
  int64_t* bounds = offsets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < there; ++i) bounds[i + 1] = bounds[i] + static_cast<int64_t>(found[i].ids.size());
  Tensor ids = empty_on(new_auxiliary, {bounds[there]}, ScalarType::Int);
  Tensor weights = empty_on(new_auxiliary, {bounds[there]}, ScalarType::Double);
  int32_t* all_ids = ids.mutable_data_ptr<int32_t>();
  double* all_weights = weights.mutable_data_ptr<double>();
  for (int64_t i = 0; i < there; ++i) {
    std::copy(found[i].ids.begin(), found[i].ids.end(), all_ids + bounds[i]);
    std::copy(found[i].weights.begin(), found[i].weights.end(), all_weights + bounds[i]);
  }
  return {offsets, ids, weights};
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) { m.impl("sparsemax_support", TORCH_BOX(&saltlm::cpu::sparsemax_support)); }
