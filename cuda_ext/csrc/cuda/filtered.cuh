// Approximate cosines of blocks of rows with all anchors, one matrix product each (of bfloat16 on tensor cores where the device
// has them, else of float32), and the filter over them. Nothing here waits for the device.
#pragma once

#include <array>
#include <cstdlib>
#include <cstring>

#include "launch.cuh"
#include "sparsemax_row.h"

namespace saltlm::cuda {

namespace {

constexpr int64_t kSimilarityBuffer = 128 * kMegabyte;
constexpr int64_t kMostRows = 1 << 16;  // of a block
constexpr int kListed = 4096;           // values that may be above the first bound before the row is read again
constexpr int64_t kAligned = 8;         // tensor cores want widths and strides that are multiples of this

// Each row of a float64 matrix times a power of two, so that squares neither overflow nor vanish; cosines stay as they
// are, and a NaN stays in its row. One warp per row.
__global__ void tame_kernel(double* matrix, int64_t rows, int64_t W) {
  const BlockTeam team{nullptr};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * team.groups();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * team.groups() + team.group(); i < rows; i += stride) {
    double* row = matrix + i * W;
    double peak = 0.0;
    for (int64_t w = team.lane(); w < W; w += 32) peak = fmax(peak, fabs(row[w]));
    for (int step = 16; step > 0; step >>= 1) peak = fmax(peak, __shfl_xor_sync(0xffffffffu, peak, step));
    if (!(peak > 0.0 && peak < HUGE_VAL)) continue;
    int exponent;
    frexp(peak, &exponent);
    for (int64_t w = team.lane(); w < W; w += 32) row[w] = ldexp(row[w], -exponent);
  }
}

// Unit rows (zero for a row that is zero or not finite): directions [rows, W] in float32, or narrow [rows, stride] in bfloat16
// with errors [rows]; inverse [rows] = 1 / length (zero likewise), usable [rows] = 0 or 1. One warp per row.
template <class T>
__global__ void measure_kernel(const T* matrix, int64_t rows, int64_t W, float* directions, uint16_t* narrow, int64_t stride,
                               double* errors, double* inverse, uint8_t* usable) {
  const BlockTeam team{nullptr};
  const int64_t step = static_cast<int64_t>(gridDim.x) * team.groups();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * team.groups() + team.group(); i < rows; i += step) {
    const T* row = matrix + i * W;
    double square = 0.0;
    for (int64_t w = team.lane(); w < W; w += 32) square += static_cast<double>(row[w]) * static_cast<double>(row[w]);
    square = team.lane_sum(square);
    const bool good = square > 0.0 && square < HUGE_VAL;
    const double factor = good ? 1.0 / sqrt(square) : 0.0;
    if (narrow != nullptr) {
      const double error = narrow_row(team, row, factor, W, stride, narrow + i * stride);
      if (team.lane() == 0) errors[i] = error;
    } else {
      for (int64_t w = team.lane(); w < W; w += 32)
        directions[i * W + w] = good ? static_cast<float>(static_cast<double>(row[w]) * factor) : 0.0f;
    }
    if (team.lane() == 0) {
      inverse[i] = factor;
      usable[i] = good;
    }
  }
}

// The largest of `count` numbers that are not negative, by one block.
__global__ void __launch_bounds__(kThreads) largest_kernel(const double* values, int64_t count, double* largest) {
  __shared__ double scratch[32];
  const BlockTeam team{scratch};
  double found = 0.0;
  for (int64_t i = team.rank(); i < count; i += team.size()) found = fmax(found, values[i]);
  found = team.max(found);
  if (team.rank() == 0) *largest = found;
}

// `errors` [rows] and `anchor_error` [1] of directions in bfloat16 say how far the cosines are off, else `slack` does. Cosines of
// a row begin `stride` after those of the row before.
__global__ void __launch_bounds__(kThreads)
    filter_kernel(const float* similarity, int64_t stride, const uint8_t* row_usable, const uint8_t* usable, int64_t A,
                  double slack, const double* errors, const double* anchor_error, int64_t P, double* cuts, int32_t* counts) {
  __shared__ double scratch[32];
  __shared__ float peaks[kThreads];
  __shared__ float list[kListed];
  __shared__ int counter;
  const BlockTeam team{scratch};
  const int64_t row = blockIdx.x;
  RowFilter found{0.0, 0};
  if (row_usable[row]) {
    const double off = errors == nullptr ? slack : narrow_slack(errors[row], *anchor_error, P);
    found = filter_row(team, similarity + row * stride, usable, A, off, peaks, list, kListed, &counter);
  }
  if (team.rank() == 0) {
    cuts[row] = found.cut;
    counts[row] = found.survivors;
  }
}

// Whether the filter's product is of bfloat16: on every device with tensor cores for it, unless SALTLM_CUDA_PRODUCT says float32.
bool by_tensor_cores(const Launch& launch) {
  const char* asked = std::getenv("SALTLM_CUDA_PRODUCT");
  const bool named = asked != nullptr && *asked != 0, narrow = named && std::strcmp(asked, "bfloat16") == 0;
  STD_TORCH_CHECK(!named || narrow || std::strcmp(asked, "float32") == 0, "SALTLM_CUDA_PRODUCT: found ", named ? asked : "",
                  "; expected bfloat16 or float32");
  return named ? narrow : launch.attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
}

// Bytes of one block's cosines. SALTLM_CUDA_BUFFER_MB asks for another size: a smaller one may stay in the device's cache, a larger
// one reads the anchors less often.
int64_t similarity_buffer() {
  const char* asked = std::getenv("SALTLM_CUDA_BUFFER_MB");
  if (asked == nullptr || *asked == 0) return kSimilarityBuffer;
  char* end = nullptr;
  const long megabytes = std::strtol(asked, &end, 10);
  STD_TORCH_CHECK(*end == 0 && megabytes >= 1 && megabytes <= 65536, "SALTLM_CUDA_BUFFER_MB: found ", asked,
                  "; expected a whole number in [1, 65536]");
  return megabytes * kMegabyte;
}

struct Measured {
  Tensor rows, directions, inverse, usable, errors;
  bool narrow;
};

// `more` rows of zeros follow the directions.
Measured measure(const Launch& launch, const Tensor& matrix, bool narrow, int64_t more) {
  const bool wide = matrix.scalar_type() == ScalarType::Double;
  Tensor rows = widened(launch, matrix);
  const int64_t count = rows.size(0), W = rows.size(1);
  const auto blocks = static_cast<unsigned>(std::clamp<int64_t>((count + kThreads / 32 - 1) / (kThreads / 32), 1, 1 << 16));
  if (wide && count > 0) {
    rows = torch::stable::clone(rows);  // perhaps the caller's own memory
    tame_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<double>(rows), count, W);
    Launch::check("tame_kernel");
  }
  const int64_t stride = narrow ? (W + kAligned - 1) / kAligned * kAligned : W;
  Measured result{rows, empty_on(rows, {count + more, stride}, narrow ? ScalarType::BFloat16 : ScalarType::Float),
                  empty_on(rows, {count}, ScalarType::Double), empty_on(rows, {count}, ScalarType::Byte),
                  empty_on(rows, {narrow ? count : 0}, ScalarType::Double), narrow};
  if (count == 0) return result;
  if (more > 0) {
    const auto size = static_cast<size_t>(stride) * (narrow ? sizeof(uint16_t) : sizeof(float));
    check_cuda(cudaMemsetAsync(data<char>(result.directions) + static_cast<size_t>(count) * size, 0,
                               static_cast<size_t>(more) * size, launch.stream()),
               "padding of the anchors");
  }
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    measure_kernel<<<blocks, kThreads, 0, launch.stream()>>>(
        data<const T>(rows), count, W, narrow ? nullptr : data<float>(result.directions),
        narrow ? data<uint16_t>(result.directions) : nullptr, stride, narrow ? data<double>(result.errors) : nullptr,
        data<double>(result.inverse), data<uint8_t>(result.usable));
  };
  wide ? run(double{}) : run(float{});
  Launch::check("measure_kernel");
  return result;
}

// Cosines of directions in float32, whose sums are float32's in either case: torch may round the partial sums of a bfloat16
// product to bfloat16 where the result is.
Tensor product_of(const Tensor& directions, const Tensor& columns, bool narrow) {
  if (!narrow) return torch::stable::matmul(directions, columns);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(directions), torch::stable::detail::from(columns),
                                    torch::stable::detail::from(ScalarType::Float)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Anchors, with the largest of their errors [1], and rows, all measured for one product.
struct Sides {
  Measured wanted, anchors;
  Tensor anchor_error;

  Sides(const Launch& launch, const Tensor& new_auxiliary, const Tensor& anchor_auxiliary, bool narrow)
      : wanted(measure(launch, new_auxiliary, narrow, 0)),
        anchors(measure(launch, anchor_auxiliary, narrow,
                        narrow ? (kAligned - anchor_auxiliary.size(0) % kAligned) % kAligned : 0)),
        anchor_error(empty_on(new_auxiliary, {1}, ScalarType::Double)) {
    if (!narrow) return;
    largest_kernel<<<1, kThreads, 0, launch.stream()>>>(data<const double>(anchors.errors), anchors.rows.size(0),
                                                        data<double>(anchor_error));
    Launch::check("largest_kernel");
  }

  // How many rows a block has, so that its cosines fit the buffer.
  int64_t rows() const { return std::clamp<int64_t>(similarity_buffer() / (4 * anchors.rows.size(0)), 1, kMostRows); }
};

// A block of rows after the filter: cosines [count, stride], and for each row the bound that survivors are above and their number.
struct Filtered {
  Tensor similarity, cuts, counts;
  int64_t stride;
};

Filtered filtered(const Launch& launch, const Sides& sides, int64_t begin, int64_t count, double slack) {
  const auto& [wanted, anchors, anchor_error] = sides;
  Tensor directions = wanted.directions;
  directions = torch::stable::narrow(directions, 0, begin, count);
  const Tensor similarity = torch::stable::contiguous(
      product_of(directions, torch::stable::transpose(anchors.directions, 0, 1), wanted.narrow));
  // Under autocast the product comes in another type, with an error that `slack` does not cover.
  STD_TORCH_CHECK(similarity.scalar_type() == ScalarType::Float,
                  "sparsemax_support: expected a float32 product; turn autocast off around this operator");
  const Filtered result{similarity, empty_on(similarity, {count}, ScalarType::Double),
                        empty_on(similarity, {count}, ScalarType::Int), similarity.size(1)};
  filter_kernel<<<static_cast<unsigned>(count), kThreads, 0, launch.stream()>>>(
      data<const float>(similarity), result.stride, data<const uint8_t>(wanted.usable) + begin,
      data<const uint8_t>(anchors.usable), anchors.rows.size(0), slack,
      wanted.narrow ? data<const double>(wanted.errors) + begin : nullptr,
      wanted.narrow ? data<const double>(anchor_error) : nullptr, wanted.directions.size(1), data<double>(result.cuts),
      data<int32_t>(result.counts));
  Launch::check("filter_kernel");
  return result;
}

}  // namespace

}  // namespace saltlm::cuda
