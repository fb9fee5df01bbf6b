// sparsemax_support on the CPU. Blocks of rows: a float32 product of unit vectors, a certified filter over it, then cosines
// of the few survivors in float64 and the exact sparsemax over those.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace saltlm::cpu {
namespace {

constexpr int64_t kBlockBytes = int64_t{8} << 20;  // one block of the product: stays in the outer cache
constexpr int64_t kMostRows = 1024;

struct Hit {
  double cosine;
  int32_t id;
};

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

// Sparsemax over the hits' cosines: sorts them, keeps the support (at most `most`, nearest first), and returns its size;
// weights[i] belongs to hits[i].
int64_t settle(std::vector<Hit>& hits, int64_t most, std::vector<double>& weights) {
  std::sort(hits.begin(), hits.end(),
            [](const Hit& a, const Hit& b) { return a.cosine > b.cosine || (a.cosine == b.cosine && a.id < b.id); });
  const int64_t count = static_cast<int64_t>(hits.size());
  double sum = 0, tau = 0;
  int64_t size = 0;
  while (size < count && (most == 0 || size < most)) {
    const double longer = sum + hits[size].cosine;
    if (!(1 + static_cast<double>(size + 1) * hits[size].cosine > longer)) break;
    sum = longer;
    ++size;
    tau = (sum - 1) / static_cast<double>(size);
  }
  weights.clear();
  for (int64_t i = 0; i < size && hits[i].cosine - tau > 0; ++i) weights.push_back(hits[i].cosine - tau);
  return static_cast<int64_t>(weights.size());
}

struct RowSupport {
  std::vector<int32_t> ids;
  std::vector<double> weights;
};

std::tuple<Tensor, Tensor, Tensor> sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary,
                                                     int64_t max_support, double slack) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack);
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0), P = new_auxiliary.size(1);
  Tensor offsets = zeros_on(new_auxiliary, {N + 1}, ScalarType::Long);
  if (N == 0 || A == 0 || P == 0)
    return {offsets, empty_on(new_auxiliary, {0}, ScalarType::Int), empty_on(new_auxiliary, {0}, ScalarType::Double)};

  const Tensor rows_tensor = tamed(prepared(new_auxiliary)), anchors_tensor = tamed(prepared(anchor_auxiliary));
  const Matrix rows = as_matrix(rows_tensor), anchors = as_matrix(anchors_tensor);
  std::vector<double> row_inverse(static_cast<size_t>(N)), anchor_inverse(static_cast<size_t>(A));
  Tensor directions = empty_on(new_auxiliary, {A, P}, ScalarType::Float);
  float* direction = directions.mutable_data_ptr<float>();
  for_rows(A, 256, "sparsemax_support", [&] {
    return [&](int64_t begin, int64_t end) {
      kernels.measure(anchors, begin, end, anchor_inverse.data(), direction);
      return true;
    };
  });
  // Anchors without a direction leave the problem: even a zero column would shift the threshold.
  std::vector<int32_t> usable;
  usable.reserve(static_cast<size_t>(A));
  for (int64_t a = 0; a < A; ++a) {
    if (anchor_inverse[a] == 0) continue;
    const int64_t place = static_cast<int64_t>(usable.size());
    if (place != a) std::copy(direction + a * P, direction + (a + 1) * P, direction + place * P);
    usable.push_back(static_cast<int32_t>(a));
  }
  const int64_t U = static_cast<int64_t>(usable.size());
  int64_t* bounds = offsets.mutable_data_ptr<int64_t>();
  std::vector<int32_t> all_ids;
  std::vector<double> all_weights;
  if (U > 0) {
    const Tensor columns = torch::stable::transpose(torch::stable::narrow(directions, 0, 0, U), 0, 1);
    const int64_t block = std::clamp<int64_t>(kBlockBytes / (U * 4), 16, kMostRows);
    Tensor block_directions = empty_on(new_auxiliary, {std::min(block, N), P}, ScalarType::Float);
    std::vector<RowSupport> found(static_cast<size_t>(std::min(block, N)));
    for (int64_t start = 0; start < N; start += block) {
      const int64_t count = std::min(block, N - start);
      Tensor part = torch::stable::narrow(block_directions, 0, 0, count);
      float* part_data = part.mutable_data_ptr<float>();
      kernels.measure(rows, start, start + count, row_inverse.data(), part_data - start * P);
      const Tensor product = torch::stable::matmul(part, columns);
      STD_TORCH_CHECK(product.scalar_type() == ScalarType::Float,
                      "sparsemax_support: the float32 product came back in another dtype; switch autocast off");
      const float* cosines = product.const_data_ptr<float>();
      for_rows(count, 8, "sparsemax_support", [&] {
        return [&, survivors = std::vector<int32_t>(U), candidates = std::vector<float>(U + 64),
                maxima = std::vector<float>(U / 64 + 1), exact = std::vector<double>(U),
                scratch = std::vector<double>(P + 64), hits = std::vector<Hit>()](int64_t begin, int64_t end) mutable {
          for (int64_t i = begin; i < end; ++i) {
            RowSupport& support = found[i];
            support.ids.clear();
            support.weights.clear();
            if (row_inverse[start + i] == 0) continue;
            const int64_t kept = kernels.survivors(cosines + i * U, U, slack, survivors.data(), candidates.data(), maxima.data());
            for (int64_t k = 0; k < kept; ++k) survivors[k] = usable[survivors[k]];
            kernels.cosines(rows, start + i, row_inverse[start + i], anchors, anchor_inverse.data(), survivors.data(), kept,
                            exact.data(), scratch.data());
            hits.resize(static_cast<size_t>(kept));
            for (int64_t k = 0; k < kept; ++k) hits[k] = {exact[k], survivors[k]};
            const int64_t size = settle(hits, max_support, support.weights);
            for (int64_t k = 0; k < size; ++k) support.ids.push_back(hits[k].id);
          }
          return true;
        };
      });
      for (int64_t i = 0; i < count; ++i) {
        all_ids.insert(all_ids.end(), found[i].ids.begin(), found[i].ids.end());
        all_weights.insert(all_weights.end(), found[i].weights.begin(), found[i].weights.end());
        bounds[start + i + 1] = static_cast<int64_t>(all_ids.size());
      }
    }
  }
  const int64_t total = static_cast<int64_t>(all_ids.size());
  Tensor ids = empty_on(new_auxiliary, {total}, ScalarType::Int), weights = empty_on(new_auxiliary, {total}, ScalarType::Double);
  std::copy(all_ids.begin(), all_ids.end(), ids.mutable_data_ptr<int32_t>());
  std::copy(all_weights.begin(), all_weights.end(), weights.mutable_data_ptr<double>());
  return {offsets, ids, weights};
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) { m.impl("sparsemax_support", TORCH_BOX(&saltlm::cpu::sparsemax_support)); }
