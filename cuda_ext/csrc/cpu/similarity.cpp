// sparsemax_support on the CPU: a cheap product of unit vectors with a known error, a certified filter over it, then cosines
// of the few survivors in float64 and the exact sparsemax over those. The product is one of int16 on x86-64 (no machine's
// float32 is as fast, and 15 bits leave few survivors too many), torch's float32 product elsewhere.
#include <algorithm>
#include <cmath>
#include <cstdlib>
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

// What every row needs of the anchors.
struct Anchors {
  Matrix matrix;
  std::vector<double> inverse;  // A
  std::vector<int32_t> usable;  // positions of the anchors with a direction: even a zero column would shift the threshold
};

// One thread's buffers, and the way from a row's approximate cosines to its support.
class Finder {
 public:
  Finder(const Matrix& rows, const Anchors& anchors, int64_t most)
      : rows_(rows), anchors_(anchors), most_(most), survivors_(anchors.usable.size()),
        candidates_(anchors.usable.size() + 64), maxima_(anchors.usable.size() / 64 + 1), exact_(anchors.usable.size()),
        scratch_(static_cast<size_t>(rows.width) + 64) {}

  void find(int64_t row, double inverse, const float* values, double slack, RowSupport& support) {
    const SimilarityKernels& kernels = similarity_kernels();
    const int64_t count = static_cast<int64_t>(anchors_.usable.size());
    const int64_t kept = kernels.survivors(values, count, slack, survivors_.data(), candidates_.data(), maxima_.data());
    for (int64_t k = 0; k < kept; ++k) survivors_[k] = anchors_.usable[survivors_[k]];
    kernels.cosines(rows_, row, inverse, anchors_.matrix, anchors_.inverse.data(), survivors_.data(), kept, exact_.data(),
                    scratch_.data());
    hits_.resize(static_cast<size_t>(kept));
    for (int64_t k = 0; k < kept; ++k) hits_[k] = {exact_[k], survivors_[k]};
    const int64_t size = settle(hits_, most_, support.weights);
    support.ids.resize(static_cast<size_t>(size));
    for (int64_t k = 0; k < size; ++k) support.ids[k] = hits_[k].id;
  }

 private:
  const Matrix& rows_;
  const Anchors& anchors_;
  int64_t most_;
  std::vector<int32_t> survivors_;
  std::vector<float> candidates_, maxima_;
  std::vector<double> exact_, scratch_;
  std::vector<Hit> hits_;
};

// All rows by the integer product.
void find_by_integers(const Matrix& rows, const Anchors& anchors, int64_t most, std::vector<RowSupport>& found) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t count = static_cast<int64_t>(anchors.usable.size()), pairs = (rows.width + 1) / 2, lanes = kernels.lanes;
  const int64_t padded = (count + lanes - 1) / lanes * lanes;
  std::vector<int16_t> panels(static_cast<size_t>(padded * pairs * 2), 0);
  std::vector<double> errors(static_cast<size_t>(count));
  for_rows((count + lanes - 1) / lanes, 16, "sparsemax_support", [&] {
    return [&](int64_t begin, int64_t end) {
      kernels.quantize(anchors.matrix, anchors.usable.data(), begin * lanes, std::min(end * lanes, count),
                       anchors.inverse.data(), lanes, panels.data() + begin * lanes * pairs * 2, errors.data() + begin * lanes);
      return true;
    };
  });
  const double anchor_error = *std::max_element(errors.begin(), errors.end());
  for_rows((rows.rows + kTile - 1) / kTile, 1, "sparsemax_support", [&] {
    return [&, finder = Finder(rows, anchors, most), tile = std::vector<int16_t>(static_cast<size_t>(kTile * pairs * 2), 0),
            values = std::vector<float>(static_cast<size_t>(kTile * padded))](int64_t begin, int64_t end) mutable {
      for (int64_t first = begin * kTile; first < std::min(end * kTile, rows.rows); first += kTile) {
        const int64_t some = std::min(kTile, rows.rows - first);
        double inverse[kTile], error[kTile];
        const Matrix part{static_cast<const char*>(rows.data) + first * rows.width * (rows.is_double ? 8 : 4), rows.is_double,
                          some, rows.width};
        kernels.measure(part, 0, some, inverse, nullptr);
        kernels.quantize(part, nullptr, 0, some, inverse, 1, tile.data(), error);
        kernels.product(tile.data(), panels.data(), padded, pairs, values.data(), padded);
        for (int64_t i = 0; i < some; ++i) {
          if (inverse[i] == 0) continue;
          // What each side's rounding took away, and 1e-6 for float64's and float32's roundings on the way.
          const double slack = error[i] + (1 + error[i]) * anchor_error + 1e-6;
          finder.find(first + i, inverse[i], values.data() + i * padded, slack, found[first + i]);
        }
      }
      return true;
    };
  });
}

// All rows by torch's float32 product, in blocks.
void find_by_floats(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t most, double slack,
                    std::vector<RowSupport>& found) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = rows.rows, P = rows.width, A = anchors.matrix.rows, count = static_cast<int64_t>(anchors.usable.size());
  Tensor directions = empty_on(like, {A, P}, ScalarType::Float);
  float* direction = directions.mutable_data_ptr<float>();
  std::vector<double> inverse(static_cast<size_t>(std::max(A, N)));
  kernels.measure(anchors.matrix, 0, A, inverse.data(), direction);
  for (int64_t place = 0; place < count; ++place)
    if (anchors.usable[place] != place)
      std::copy_n(direction + anchors.usable[place] * P, P, direction + place * P);
  const Tensor columns = torch::stable::transpose(torch::stable::narrow(directions, 0, 0, count), 0, 1);
  const int64_t block = std::min(N, std::clamp<int64_t>(kBlockBytes / (count * 4), 16, kMostRows));
  Tensor block_directions = empty_on(like, {block, P}, ScalarType::Float);
  for (int64_t start = 0; start < N; start += block) {
    const int64_t some = std::min(block, N - start);
    Tensor part = torch::stable::narrow(block_directions, 0, 0, some);
    kernels.measure(rows, start, start + some, inverse.data(), part.mutable_data_ptr<float>() - start * P);
    const Tensor product = torch::stable::matmul(part, columns);
    STD_TORCH_CHECK(product.scalar_type() == ScalarType::Float,
                    "sparsemax_support: the float32 product came back in another dtype; switch autocast off");
    const float* values = product.const_data_ptr<float>();
    for_rows(some, 8, "sparsemax_support", [&] {
      return [&, finder = Finder(rows, anchors, most)](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; ++i)
          if (inverse[start + i] != 0)
            finder.find(start + i, inverse[start + i], values + i * count, slack, found[start + i]);
        return true;
      };
    });
  }
}

std::tuple<Tensor, Tensor, Tensor> sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary,
                                                     int64_t max_support, double slack) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack);
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0), P = new_auxiliary.size(1);
  Tensor offsets = zeros_on(new_auxiliary, {N + 1}, ScalarType::Long);
  const Tensor rows_tensor = tamed(prepared(new_auxiliary)), anchors_tensor = tamed(prepared(anchor_auxiliary));
  const Matrix rows = as_matrix(rows_tensor);
  Anchors anchors{as_matrix(anchors_tensor), std::vector<double>(static_cast<size_t>(A)), {}};
  for_rows(A, 256, "sparsemax_support", [&] {
    return [&](int64_t begin, int64_t end) {
      kernels.measure(anchors.matrix, begin, end, anchors.inverse.data(), nullptr);
      return true;
    };
  });
  for (int64_t a = 0; a < A; ++a)
    if (anchors.inverse[a] != 0) anchors.usable.push_back(static_cast<int32_t>(a));
  std::vector<RowSupport> found(static_cast<size_t>(N));
  if (N > 0 && P > 0 && !anchors.usable.empty()) {
    // SALTLM_FLOAT_PRODUCT=1 takes the way of other machines, for tests and comparison.
    if (kernels.lanes > 0 && std::getenv("SALTLM_FLOAT_PRODUCT") == nullptr)
      find_by_integers(rows, anchors, max_support, found);
    else
      find_by_floats(new_auxiliary, rows, anchors, max_support, slack, found);
  }
  int64_t* bounds = offsets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < N; ++i) bounds[i + 1] = bounds[i] + static_cast<int64_t>(found[i].ids.size());
  Tensor ids = empty_on(new_auxiliary, {bounds[N]}, ScalarType::Int);
  Tensor weights = empty_on(new_auxiliary, {bounds[N]}, ScalarType::Double);
  int32_t* all_ids = ids.mutable_data_ptr<int32_t>();
  double* all_weights = weights.mutable_data_ptr<double>();
  for (int64_t i = 0; i < N; ++i) {
    std::copy(found[i].ids.begin(), found[i].ids.end(), all_ids + bounds[i]);
    std::copy(found[i].weights.begin(), found[i].weights.end(), all_weights + bounds[i]);
  }
  return {offsets, ids, weights};
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) { m.impl("sparsemax_support", TORCH_BOX(&saltlm::cpu::sparsemax_support)); }
