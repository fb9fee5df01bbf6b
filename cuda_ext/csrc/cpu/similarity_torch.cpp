// The two products that torch makes for sparsemax_support, block by block.
#include "finder.h"

namespace saltlm::cpu {
namespace {

constexpr int64_t kBlockBytes = int64_t{8} << 20;  // one block of the float32 product: stays in the outer cache
constexpr int64_t kMostRows = 1024;
// The bfloat16 product lays out all anchors anew for its tiles in each block, so a block has at least so many rows.
constexpr int64_t kNarrowBytes = int64_t{24} << 20, kLeastNarrowRows = 256;
constexpr int64_t kTileDepth = 32;  // bfloat16 values in one row of a tile: widths are padded to whole tiles

Tensor multiplied(const Tensor& rows, const Tensor& columns, ScalarType type) {
  const ProcessLap lap(kProduct);
  Tensor product = torch::stable::matmul(rows, columns);
  STD_TORCH_CHECK(product.scalar_type() == type,
                  "sparsemax_support: the product came back in another dtype; switch autocast off");
  return product;
}

// How far a value of the bfloat16 product can be from the true cosine z = <r, a> of two directions. Rounded to bfloat16 they
// are R and A, and x = |R - r|, y = |A - a| were measured in float64 when they were rounded (at most 2^-8 each, since
// bfloat16 has 8 significant bits; about 0.4 of that in practice). Three errors add up:
//   the inputs':  |<R, A> - z| = |<R - r, A> + <r, A - a>| <= x (1 + y) + y, for |r| = |a| = 1;
//   the sum's:    products of two bfloat16 values are exact in float32, and in whatever order and pairs P + 1 of them are
//                 added up, each takes part in at most P + 1 roundings of 2^-24 (2^-23 leaves as much again for the products
//                 of those): (P + 1) 2^-23 sum |R_i A_i| <= (P + 1) 2^-23 |R| |A|, with |R| <= 1 + x, |A| <= 1 + y;
//   the result's: one rounding to bfloat16, 2^-8 of a value that is no larger than that |R| |A|.
// 1e-6 covers the rest: float64's own roundings, the second-order product of the last two, and tiles' taking values and
// products below 2^-126 for zero.
double narrow_slack(double x, double y, int64_t width) {
  return x * (1 + y) + y + (0x1p-8 + static_cast<double>(width + 1) * 0x1p-23) * (1 + x) * (1 + y) + 1e-6;
}

}  // namespace

void find_by_floats(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t most, double slack, Quota& quota,
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
  for (int64_t start = 0; start < N && quota.open(start); start += block) {
    const int64_t some = std::min(block, N - start);
    Tensor part = torch::stable::narrow(block_directions, 0, 0, some);
    kernels.measure(rows, start, start + some, inverse.data(), part.mutable_data_ptr<float>() - start * P);
    const Tensor product = multiplied(part, columns, ScalarType::Float);
    const float* values = product.const_data_ptr<float>();
    for_rows(some, 8, "sparsemax_support", [&] {
      return [&, finder = Finder(rows, anchors, most, quota)](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; ++i)
          if (quota.open(start + i) && inverse[start + i] != 0)
            finder.find(start + i, inverse[start + i], values + i * count, slack, found[start + i]);
        return true;
      };
    });
  }
}

void find_by_bfloats(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t most, Quota& quota,
                     std::vector<RowSupport>& found) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = rows.rows, count = static_cast<int64_t>(anchors.usable.size());
  const int64_t width = (rows.width + kTileDepth - 1) / kTileDepth * kTileDepth;
  Tensor directions = empty_on(like, {count, width}, ScalarType::BFloat16);
  uint16_t* direction = static_cast<uint16_t*>(directions.mutable_data_ptr());
  std::vector<double> errors(static_cast<size_t>(count));
  for_rows(count, 256, "sparsemax_support", [&] {
    return [&, laps = start_laps()](int64_t begin, int64_t end) {
      kernels.narrow(anchors.matrix, anchors.usable.data(), begin, end, anchors.inverse.data(), width,
                     direction + begin * width, errors.data() + begin);
      lap(laps.get(), kPrepare);
      return true;
    };
  });
  const double anchor_error = *std::max_element(errors.begin(), errors.end());
  const Tensor columns = torch::stable::transpose(directions, 0, 1);
  const int64_t block = std::min(N, std::clamp(kNarrowBytes / (count * 2), kLeastNarrowRows, kMostRows));
  Tensor block_directions = empty_on(like, {block, width}, ScalarType::BFloat16);
  uint16_t* block_direction = static_cast<uint16_t*>(block_directions.mutable_data_ptr());
  std::vector<double> inverse(static_cast<size_t>(N)), error(static_cast<size_t>(block));
  for (int64_t start = 0; start < N && quota.open(start); start += block) {
    const int64_t some = std::min(block, N - start);
    for_rows(some, 16, "sparsemax_support", [&] {
      return [&, laps = start_laps()](int64_t begin, int64_t end) {
        kernels.measure(rows, start + begin, start + end, inverse.data(), nullptr);
        kernels.narrow(rows, nullptr, start + begin, start + end, inverse.data(), width, block_direction + begin * width,
                       error.data() + begin);
        lap(laps.get(), kPrepare);
        return true;
      };
    });
    const Tensor product =
        multiplied(torch::stable::narrow(block_directions, 0, 0, some), columns, ScalarType::BFloat16);
    const uint16_t* values = static_cast<const uint16_t*>(product.const_data_ptr());
    for_rows(some, 8, "sparsemax_support", [&] {
      return [&, finder = Finder(rows, anchors, most, quota)](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; ++i)
          if (quota.open(start + i) && inverse[start + i] != 0)
            finder.find(start + i, inverse[start + i], values + i * count, narrow_slack(error[i], anchor_error, width),
                        found[start + i]);
        return true;
      };
    });
  }
}

}  // namespace saltlm::cpu
