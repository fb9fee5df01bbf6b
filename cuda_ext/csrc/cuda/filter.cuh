// Approximate cosines of a block of rows with all anchors by one matrix product (bfloat16 on tensor cores where the
// device has them, otherwise float32), and the filter that selects the candidates of each row's support.
#pragma once

#include <array>
#include <cstdlib>
#include <cstring>

#include "launch.cuh"
#include "sparsemax_row.h"

namespace saltlm::cuda {

namespace {

constexpr int64_t kSimilarityBuffer = 128 * kMegabyte;
constexpr int64_t kMaxBlockRows = 1 << 16;  // rows of a block
// values above the first bound that are kept in shared memory; if there are more, the row is read again
constexpr int kListCapacity = 4096;
constexpr int64_t kAlignment = 8;  // tensor cores need widths and strides that are multiples of this

// Scales each row of a float64 matrix by a power of two, so that squares neither overflow nor underflow. Cosines stay
// the same, and a NaN stays in its row. One warp per row.
__global__ void scale_rows_kernel(double* matrix, int64_t rows, int64_t W) {
  const BlockTeam team{nullptr};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * team.groups();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * team.groups() + team.group(); i < rows; i += stride) {
    double* row = matrix + i * W;
    double max_abs = 0.0;
    for (int64_t w = team.lane(); w < W; w += 32) max_abs = fmax(max_abs, fabs(row[w]));
    for (int step = 16; step > 0; step >>= 1) max_abs = fmax(max_abs, __shfl_xor_sync(0xffffffffu, max_abs, step));
    if (!(max_abs > 0.0 && max_abs < HUGE_VAL)) continue;
    int exponent;
    frexp(max_abs, &exponent);
    for (int64_t w = team.lane(); w < W; w += 32) row[w] = ldexp(row[w], -exponent);
  }
}

// Unit rows, zero for a row that is zero or not finite: directions [rows, W] in float32, or bfloat16_directions
// [rows, stride] with rounding errors errors [rows]. inverse_norm [rows] = 1 / norm (0 for such a row), usable [rows]
// is 0 for such a row, else 1. One warp per row.
template <class T>
__global__ void normalize_kernel(const T* matrix, int64_t rows, int64_t W, float* directions,
                                 uint16_t* bfloat16_directions, int64_t stride, double* errors, double* inverse_norm,
                                 uint8_t* usable) {
  const BlockTeam team{nullptr};
  const int64_t step = static_cast<int64_t>(gridDim.x) * team.groups();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * team.groups() + team.group(); i < rows; i += step) {
    const T* row = matrix + i * W;
    double square = 0.0;
    for (int64_t w = team.lane(); w < W; w += 32) square += static_cast<double>(row[w]) * static_cast<double>(row[w]);
    square = team.lane_sum(square);
    const bool has_direction = square > 0.0 && square < HUGE_VAL;
    const double factor = has_direction ? 1.0 / sqrt(square) : 0.0;
    if (bfloat16_directions != nullptr) {
      const double error = round_to_bfloat16(team, row, factor, W, stride, bfloat16_directions + i * stride);
      if (team.lane() == 0) errors[i] = error;
    } else {
      for (int64_t w = team.lane(); w < W; w += 32)
        directions[i * W + w] = has_direction ? static_cast<float>(static_cast<double>(row[w]) * factor) : 0.0f;
    }
    if (team.lane() == 0) {
      inverse_norm[i] = factor;
      usable[i] = has_direction;
    }
  }
}

// The largest of `count` non-negative numbers, by one block.
__global__ void __launch_bounds__(kThreads) max_kernel(const double* values, int64_t count, double* maximum) {
  __shared__ double scratch[32];
  const BlockTeam team{scratch};
  double result = 0.0;
  for (int64_t i = team.rank(); i < count; i += team.size()) result = fmax(result, values[i]);
  result = team.max(result);
  if (team.rank() == 0) *maximum = result;
}

// The filter of one row per block. Row i of `similarity` begins at i * stride. The error of the cosines is bounded by
// `slack`, or for bfloat16 directions by their rounding errors `errors` [rows] and `anchor_error` [1].
__global__ void __launch_bounds__(kThreads)
    filter_kernel(const float* similarity, int64_t stride, const uint8_t* row_usable, const uint8_t* usable, int64_t A,
                  double slack, const double* errors, const double* anchor_error, int64_t P, double* min_cosines,
                  int32_t* counts) {
  __shared__ double scratch[32];
  __shared__ float thread_maxima[kThreads];
  __shared__ float list[kListCapacity];
  __shared__ int counter;
  const BlockTeam team{scratch};
  const int64_t row = blockIdx.x;
  RowFilter result{0.0, 0};
  if (row_usable[row]) {
    const double error_bound = errors == nullptr ? slack : bfloat16_error_bound(errors[row], *anchor_error, P);
    result = filter_row(team, similarity + row * stride, usable, A, error_bound, thread_maxima, list, kListCapacity,
                        &counter);
  }
  if (team.rank() == 0) {
    min_cosines[row] = result.min_cosine;
    counts[row] = result.survivors;
  }
}

// Whether the filter's product uses bfloat16: on every device with tensor cores for it, unless SALTLM_CUDA_PRODUCT says
// float32.
bool use_tensor_cores(const Launch& launch) {
  const char* requested = std::getenv("SALTLM_CUDA_PRODUCT");
  const bool is_set = requested != nullptr && *requested != 0,
             use_bfloat16 = is_set && std::strcmp(requested, "bfloat16") == 0;
  STD_TORCH_CHECK(!is_set || use_bfloat16 || std::strcmp(requested, "float32") == 0, "SALTLM_CUDA_PRODUCT: found ",
                  is_set ? requested : "", "; expected bfloat16 or float32");
  return is_set ? use_bfloat16 : launch.attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
}

// Bytes of one block's cosines. SALTLM_CUDA_BUFFER_MB sets another size: a smaller buffer may stay in the device's
// cache, a larger one reads the anchors less often.
int64_t similarity_buffer() {
  const char* requested = std::getenv("SALTLM_CUDA_BUFFER_MB");
  if (requested == nullptr || *requested == 0) return kSimilarityBuffer;
  char* end = nullptr;
  const long megabytes = std::strtol(requested, &end, 10);
  STD_TORCH_CHECK(*end == 0 && megabytes >= 1 && megabytes <= 65536, "SALTLM_CUDA_BUFFER_MB: found ", requested,
                  "; expected a whole number in [1, 65536]");
  return megabytes * kMegabyte;
}

struct NormalizedRows {
  Tensor rows, directions, inverse_norm, usable, errors;
  bool use_bfloat16;
};

// `padding_rows` rows of zeros follow the directions.
NormalizedRows normalize_rows(const Launch& launch, const Tensor& matrix, bool use_bfloat16, int64_t padding_rows) {
  const bool is_double = matrix.scalar_type() == ScalarType::Double;
  Tensor rows = padded_rows(launch, matrix);
  const int64_t count = rows.size(0), W = rows.size(1);
  const auto blocks =
      static_cast<unsigned>(std::clamp<int64_t>((count + kThreads / 32 - 1) / (kThreads / 32), 1, 1 << 16));
  if (is_double && count > 0) {
    rows = torch::stable::clone(rows);  // the original may be the caller's memory
    scale_rows_kernel<<<blocks, kThreads, 0, launch.stream()>>>(data<double>(rows), count, W);
    Launch::check("scale_rows_kernel");
  }
  const int64_t stride = use_bfloat16 ? (W + kAlignment - 1) / kAlignment * kAlignment : W;
  NormalizedRows result{
      rows,
      empty_on(rows, {count + padding_rows, stride}, use_bfloat16 ? ScalarType::BFloat16 : ScalarType::Float),
      empty_on(rows, {count}, ScalarType::Double),
      empty_on(rows, {count}, ScalarType::Byte),
      empty_on(rows, {use_bfloat16 ? count : 0}, ScalarType::Double),
      use_bfloat16};
  if (count == 0) return result;
  if (padding_rows > 0) {
    const auto size = static_cast<size_t>(stride) * (use_bfloat16 ? sizeof(uint16_t) : sizeof(float));
    check_cuda(cudaMemsetAsync(data<char>(result.directions) + static_cast<size_t>(count) * size, 0,
                               static_cast<size_t>(padding_rows) * size, launch.stream()),
               "padding of the anchors");
  }
  const auto launch_kernel = [&](auto zero) {
    using T = decltype(zero);
    normalize_kernel<<<blocks, kThreads, 0, launch.stream()>>>(
        data<const T>(rows), count, W, use_bfloat16 ? nullptr : data<float>(result.directions),
        use_bfloat16 ? data<uint16_t>(result.directions) : nullptr, stride,
        use_bfloat16 ? data<double>(result.errors) : nullptr, data<double>(result.inverse_norm),
        data<uint8_t>(result.usable));
  };
  is_double ? launch_kernel(double{}) : launch_kernel(float{});
  Launch::check("normalize_kernel");
  return result;
}

// Cosines of directions in float32. The sums are float32 for bfloat16 inputs too, because a bfloat16 result would allow
// torch to round partial sums to bfloat16.
Tensor cosine_product(const Tensor& directions, const Tensor& columns, bool use_bfloat16) {
  if (!use_bfloat16) return torch::stable::matmul(directions, columns);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(directions), torch::stable::detail::from(columns),
                                    torch::stable::detail::from(ScalarType::Float)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// New rows and anchors, normalised for the same product, and the largest rounding error of the anchors [1].
struct Problem {
  NormalizedRows new_rows, anchors;
  Tensor anchor_error;

  Problem(const Launch& launch, const Tensor& new_auxiliary, const Tensor& anchor_auxiliary, bool use_bfloat16)
      : new_rows(normalize_rows(launch, new_auxiliary, use_bfloat16, 0)),
        anchors(normalize_rows(launch, anchor_auxiliary, use_bfloat16,
                               use_bfloat16 ? (kAlignment - anchor_auxiliary.size(0) % kAlignment) % kAlignment : 0)),
        anchor_error(empty_on(new_auxiliary, {1}, ScalarType::Double)) {
    if (!use_bfloat16) return;
    max_kernel<<<1, kThreads, 0, launch.stream()>>>(data<const double>(anchors.errors), anchors.rows.size(0),
                                                    data<double>(anchor_error));
    Launch::check("max_kernel");
  }

  // Number of rows of a block whose cosines fit the buffer.
  int64_t rows() const {
    return std::clamp<int64_t>(similarity_buffer() / (4 * anchors.rows.size(0)), 1, kMaxBlockRows);
  }
};

// A block of rows after the filter: cosines [count, stride], and for each row the bound that its survivors exceed and
// the number of survivors.
struct FilteredBlock {
  Tensor similarity, min_cosines, counts;
  int64_t stride;
};

FilteredBlock filter_block(const Launch& launch, const Problem& problem, int64_t begin, int64_t count, double slack) {
  const auto& [new_rows, anchors, anchor_error] = problem;
  Tensor directions = new_rows.directions;
  directions = torch::stable::narrow(directions, 0, begin, count);
  const Tensor similarity = torch::stable::contiguous(
      cosine_product(directions, torch::stable::transpose(anchors.directions, 0, 1), new_rows.use_bfloat16));
  // Under autocast the product has another dtype, with an error that `slack` does not cover.
  STD_TORCH_CHECK(similarity.scalar_type() == ScalarType::Float,
                  "sparsemax_support: expected a float32 product; turn autocast off around this operator");
  const FilteredBlock result{similarity, empty_on(similarity, {count}, ScalarType::Double),
                             empty_on(similarity, {count}, ScalarType::Int), similarity.size(1)};
  filter_kernel<<<static_cast<unsigned>(count), kThreads, 0, launch.stream()>>>(
      data<const float>(similarity), result.stride, data<const uint8_t>(new_rows.usable) + begin,
      data<const uint8_t>(anchors.usable), anchors.rows.size(0), slack,
      new_rows.use_bfloat16 ? data<const double>(new_rows.errors) + begin : nullptr,
      new_rows.use_bfloat16 ? data<const double>(anchor_error) : nullptr, new_rows.directions.size(1),
      data<double>(result.min_cosines), data<int32_t>(result.counts));
  Launch::check("filter_kernel");
  return result;
}

}  // namespace

}  // namespace saltlm::cuda
