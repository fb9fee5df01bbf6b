// Supports by the two products that torch computes for sparsemax_support, in blocks of rows.
#include "support_finder.h"

namespace saltlm::cpu {
namespace {

constexpr int64_t kBlockBytes = int64_t{8} << 20;  // one block of the float32 product: fits the outer cache
constexpr int64_t kMaxBlockRows = 1024;
// torch repacks all anchors into tiles for each bfloat16 product, so a block has at least this many rows.
constexpr int64_t kBfloat16BlockBytes = int64_t{24} << 20, kMinBfloat16Rows = 256;
constexpr int64_t kTileDepth = 32;  // bfloat16 values in one row of a tile: widths are padded to whole tiles

Tensor checked_product(const Tensor& rows, const Tensor& columns, ScalarType type) {
  const ProcessStageTimer timer(kProduct);
  Tensor product = torch::stable::matmul(rows, columns);
  STD_TORCH_CHECK(product.scalar_type() == type,
                  "sparsemax_support: the product came back in another dtype; switch autocast off");
  return product;
}

// Bound on |product - cosine| for the bfloat16 product of two unit vectors r and a with cosine z = <r, a>. R and A are
// r and a rounded to bfloat16. x = |R - r| and y = |A - a| were measured in float64 when they were rounded (at most
// 2^-8 each, since bfloat16 has 8 significant bits; about 0.4 of that in practice). Three errors add up:
//   inputs: |<R, A> - z| = |<R - r, A> + <r, A - a>| <= x (1 + y) + y, for |r| = |a| = 1;
//   sum:    products of two bfloat16 values are exact in float32. In any order of summation, each of P + 1 terms takes
//   part
//           in at most P + 1 roundings of 2^-24, and 2^-23 covers the products of those as well:
//           (P + 1) 2^-23 sum |R_i A_i| <= (P + 1) 2^-23 |R| |A|, with |R| <= 1 + x and |A| <= 1 + y;
//   result: one rounding to bfloat16, 2^-8 of a value that is at most |R| |A|.
// 1e-6 covers the rest: rounding in float64, the product of the last two errors, and values and products below 2^-126,
// which tiles treat as zero.
double bfloat16_error_bound(double x, double y, int64_t width) {
  return x * (1 + y) + y + (0x1p-8 + static_cast<double>(width + 1) * 0x1p-23) * (1 + x) * (1 + y) + 1e-6;
}

}  // namespace

void find_supports_float32(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t max_support,
                           double slack, EntryBudget& budget, std::vector<RowSupport>& supports) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = rows.rows, P = rows.width, A = anchors.matrix.rows,
                anchor_count = static_cast<int64_t>(anchors.usable.size());
  Tensor directions = empty_on(like, {A, P}, ScalarType::Float);
  float* direction = directions.mutable_data_ptr<float>();
  std::vector<double> inverse_norm(static_cast<size_t>(std::max(A, N)));
  kernels.normalize(anchors.matrix, 0, A, inverse_norm.data(), direction);
  for (int64_t position = 0; position < anchor_count; ++position)
    if (anchors.usable[position] != position)
      std::copy_n(direction + anchors.usable[position] * P, P, direction + position * P);
  const Tensor columns = torch::stable::transpose(torch::stable::narrow(directions, 0, 0, anchor_count), 0, 1);
  const int64_t block = std::min(N, std::clamp<int64_t>(kBlockBytes / (anchor_count * 4), 16, kMaxBlockRows));
  Tensor block_directions = empty_on(like, {block, P}, ScalarType::Float);
  for (int64_t start = 0; start < N && budget.accepts(start); start += block) {
    const int64_t count = std::min(block, N - start);
    Tensor part = torch::stable::narrow(block_directions, 0, 0, count);
    kernels.normalize(rows, start, start + count, inverse_norm.data(), part.mutable_data_ptr<float>() - start * P);
    const Tensor product = checked_product(part, columns, ScalarType::Float);
    const float* values = product.const_data_ptr<float>();
    for_rows(count, 8, "sparsemax_support", [&] {
      return [&, finder = SupportFinder(rows, anchors, max_support, budget)](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; ++i)
          if (budget.accepts(start + i) && inverse_norm[start + i] != 0)
            finder.find(start + i, inverse_norm[start + i], values + i * anchor_count, slack, supports[start + i]);
        return true;
      };
    });
  }
}

void find_supports_bfloat16(const Tensor& like, const Matrix& rows, const Anchors& anchors, int64_t max_support,
                            EntryBudget& budget, std::vector<RowSupport>& supports) {
  const SimilarityKernels& kernels = similarity_kernels();
  const int64_t N = rows.rows, anchor_count = static_cast<int64_t>(anchors.usable.size());
  const int64_t width = (rows.width + kTileDepth - 1) / kTileDepth * kTileDepth;
  Tensor directions = empty_on(like, {anchor_count, width}, ScalarType::BFloat16);
  uint16_t* direction = static_cast<uint16_t*>(directions.mutable_data_ptr());
  std::vector<double> errors(static_cast<size_t>(anchor_count));
  for_rows(anchor_count, 256, "sparsemax_support", [&] {
    return [&, times = start_stage_times()](int64_t begin, int64_t end) {
      kernels.to_bfloat16(anchors.matrix, anchors.usable.data(), begin, end, anchors.inverse_norm.data(), width,
                          direction + begin * width, errors.data() + begin);
      end_stage(times.get(), kPrepare);
      return true;
    };
  });
  const double anchor_error = *std::max_element(errors.begin(), errors.end());
  const Tensor columns = torch::stable::transpose(directions, 0, 1);
  const int64_t block =
      std::min(N, std::clamp(kBfloat16BlockBytes / (anchor_count * 2), kMinBfloat16Rows, kMaxBlockRows));
  Tensor block_directions = empty_on(like, {block, width}, ScalarType::BFloat16);
  uint16_t* block_direction = static_cast<uint16_t*>(block_directions.mutable_data_ptr());
  std::vector<double> inverse_norm(static_cast<size_t>(N)), error(static_cast<size_t>(block));
  for (int64_t start = 0; start < N && budget.accepts(start); start += block) {
    const int64_t count = std::min(block, N - start);
    for_rows(count, 16, "sparsemax_support", [&] {
      return [&, times = start_stage_times()](int64_t begin, int64_t end) {
        kernels.normalize(rows, start + begin, start + end, inverse_norm.data(), nullptr);
        kernels.to_bfloat16(rows, nullptr, start + begin, start + end, inverse_norm.data(), width,
                            block_direction + begin * width, error.data() + begin);
        end_stage(times.get(), kPrepare);
        return true;
      };
    });
    const Tensor product =
        checked_product(torch::stable::narrow(block_directions, 0, 0, count), columns, ScalarType::BFloat16);
    const uint16_t* values = static_cast<const uint16_t*>(product.const_data_ptr());
    for_rows(count, 8, "sparsemax_support", [&] {
      return [&, finder = SupportFinder(rows, anchors, max_support, budget)](int64_t begin, int64_t end) mutable {
        for (int64_t i = begin; i < end; ++i)
          if (budget.accepts(start + i) && inverse_norm[start + i] != 0)
            finder.find(start + i, inverse_norm[start + i], values + i * anchor_count,
                        bfloat16_error_bound(error[i], anchor_error, width), supports[start + i]);
        return true;
      };
    });
  }
}

}  // namespace saltlm::cpu
