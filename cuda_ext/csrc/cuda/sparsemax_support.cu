// sparsemax_support on CUDA. Rows are taken in blocks whose approximate cosines fit a bounded buffer (one matrix product
// each, of bfloat16 on tensor cores where the device has them, else of float32); then one thread block per row filters,
// recomputes the survivors' cosines in float64, sorts and weighs them (sparsemax_row.h). Device memory is the buffer, at most three times as much for the survivors, and the result.
#include <array>
#include <cstdlib>
#include <cstring>
#include <tuple>

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

// starts [count + 1] = running sums of counts, by one block.
__global__ void __launch_bounds__(1024) scan_kernel(const int32_t* counts, int64_t count, int64_t* starts) {
  __shared__ int64_t sums[1024];
  const int rank = static_cast<int>(threadIdx.x);
  int64_t before = 0;
  for (int64_t base = 0; base < count; base += 1024) {
    sums[rank] = base + rank < count ? counts[base + rank] : 0;
    __syncthreads();
    for (int step = 1; step < 1024; step *= 2) {
      const int64_t other = rank >= step ? sums[rank - step] : 0;
      __syncthreads();
      sums[rank] += other;
      __syncthreads();
    }
    if (base + rank < count) starts[base + rank + 1] = before + sums[rank];
    before += sums[1023];
    __syncthreads();
  }
  if (rank == 0) starts[0] = 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    settle_kernel(const float* similarity, int64_t stride, const uint8_t* usable, int64_t A, const double* cuts,
                  const int64_t* starts, const T* rows, const double* row_inverse, const T* anchors, const double* inverse,
                  int64_t W, int64_t max_support, int32_t* ids, double* cosines, int32_t* kept) {
  __shared__ double scratch[32];
  __shared__ int counter;
  const BlockTeam team{scratch};
  const int64_t row = blockIdx.x, start = starts[row];
  const int n = static_cast<int>(starts[row + 1] - start);
  int support = 0;
  if (n > 0) {
    collect_row(team, similarity + row * stride, usable, A, cuts[row], &counter, ids + start, n);
    cosines_row(team, rows + row * W, row_inverse[row], anchors, inverse, W, ids + start, n, cosines + start);
    sort_row(team, cosines + start, ids + start, n);
    support = weigh_row(team, cosines + start, n, max_support);
  }
  if (team.rank() == 0) kept[row] = support;
}

// The first `kept` entries of every row's survivors, one row after the other.
__global__ void pack_kernel(const int64_t* from, const int64_t* to, const int32_t* ids, const double* weights,
                            int32_t* packed_ids, double* packed_weights) {
  const int64_t row = blockIdx.x, source = from[row], target = to[row], count = to[row + 1] - target;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    packed_ids[target + i] = ids[source + i];
    packed_weights[target + i] = weights[source + i];
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

// Running sums of counts [n] on the device; the last one is returned too.
int64_t scan(const Launch& launch, const Tensor& counts, const Tensor& starts) {
  scan_kernel<<<1, 1024, 0, launch.stream()>>>(data<const int32_t>(counts), counts.numel(), data<int64_t>(starts));
  Launch::check("scan_kernel");
  int64_t total = 0;
  launch.to_host(&total, data<const int64_t>(starts) + counts.numel(), 1);
  return total;
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

struct Part {
  Tensor ids, weights;
};

// Supports of the rows [begin, begin + count); their sizes go to kept [count]. `anchor_error` [1] is the largest of the anchors'.
Part support_of_block(const Launch& launch, const Measured& wanted, const Measured& anchors, const Tensor& anchor_error,
                      int64_t begin, int64_t count, int64_t max_support, double slack, int32_t* all_kept) {
  const int64_t A = anchors.rows.size(0), W = anchors.rows.size(1);
  Tensor directions = wanted.directions;
  directions = torch::stable::narrow(directions, 0, begin, count);
  const Tensor similarity = torch::stable::contiguous(
      product_of(directions, torch::stable::transpose(anchors.directions, 0, 1), wanted.narrow));
  const int64_t stride = similarity.size(1);
  // Under autocast the product comes in another type, with an error that `slack` does not cover.
  STD_TORCH_CHECK(similarity.scalar_type() == ScalarType::Float,
                  "sparsemax_support: expected a float32 product; turn autocast off around this operator");
  const Tensor cuts = empty_on(similarity, {count}, ScalarType::Double);
  const Tensor counts = empty_on(similarity, {count}, ScalarType::Int);
  const Tensor starts = empty_on(similarity, {count + 1}, ScalarType::Long);
  const auto blocks = static_cast<unsigned>(count);
  const float* s = data<const float>(similarity);
  filter_kernel<<<blocks, kThreads, 0, launch.stream()>>>(
      s, stride, data<const uint8_t>(wanted.usable) + begin, data<const uint8_t>(anchors.usable), A, slack,
      wanted.narrow ? data<const double>(wanted.errors) + begin : nullptr,
      wanted.narrow ? data<const double>(anchor_error) : nullptr, wanted.directions.size(1), data<double>(cuts),
      data<int32_t>(counts));
  Launch::check("filter_kernel");
  const int64_t survivors = scan(launch, counts, starts);
  const Tensor ids = empty_on(similarity, {survivors}, ScalarType::Int);
  const Tensor cosines = empty_on(similarity, {survivors}, ScalarType::Double);
  const auto settle = [&](auto zero) {
    using T = decltype(zero);
    settle_kernel<<<blocks, kThreads, 0, launch.stream()>>>(
        s, stride, data<const uint8_t>(anchors.usable), A, data<const double>(cuts), data<const int64_t>(starts),
        data<const T>(wanted.rows) + begin * W, data<const double>(wanted.inverse) + begin, data<const T>(anchors.rows),
        data<const double>(anchors.inverse), W, max_support, data<int32_t>(ids), data<double>(cosines),
        data<int32_t>(counts));
  };
  wanted.rows.scalar_type() == ScalarType::Double ? settle(double{}) : settle(float{});
  Launch::check("settle_kernel");
  const Tensor places = empty_on(similarity, {count + 1}, ScalarType::Long);
  const int64_t total = scan(launch, counts, places);
  const Part part{empty_on(similarity, {total}, ScalarType::Int), empty_on(similarity, {total}, ScalarType::Double)};
  pack_kernel<<<blocks, 128, 0, launch.stream()>>>(data<const int64_t>(starts), data<const int64_t>(places),
                                                   data<const int32_t>(ids), data<const double>(cosines),
                                                   data<int32_t>(part.ids), data<double>(part.weights));
  Launch::check("pack_kernel");
  check_cuda(cudaMemcpyAsync(all_kept + begin, data<const int32_t>(counts), sizeof(int32_t) * static_cast<size_t>(count),
                             cudaMemcpyDeviceToDevice, launch.stream()),
             "copy of the support sizes");
  return part;
}

template <class T>
void append(const Launch& launch, const Tensor& part, const Tensor& whole, int64_t at) {
  check_cuda(cudaMemcpyAsync(data<T>(whole) + at, data<const T>(part), sizeof(T) * static_cast<size_t>(part.numel()),
                             cudaMemcpyDeviceToDevice, launch.stream()),
             "copy of the supports");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary,
                                                     int64_t max_support, double slack) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack);
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0);
  const Launch launch(new_auxiliary);
  const Tensor offsets = zeros_on(new_auxiliary, {N + 1}, ScalarType::Long);
  std::vector<Part> parts;
  int64_t total = 0;
  if (N > 0 && A > 0 && new_auxiliary.size(1) > 0) {
    const bool narrow = by_tensor_cores(launch);
    const int64_t more = narrow ? (kAligned - A % kAligned) % kAligned : 0;
    const Measured wanted = measure(launch, new_auxiliary, narrow, 0),
                   anchors = measure(launch, anchor_auxiliary, narrow, more);
    const Tensor anchor_error = empty_on(new_auxiliary, {1}, ScalarType::Double);
    if (narrow) {
      largest_kernel<<<1, kThreads, 0, launch.stream()>>>(data<const double>(anchors.errors), A, data<double>(anchor_error));
      Launch::check("largest_kernel");
    }
    const Tensor kept = empty_on(new_auxiliary, {N}, ScalarType::Int);
    const int64_t rows = std::clamp<int64_t>(kSimilarityBuffer / (4 * A), 1, kMostRows);
    for (int64_t begin = 0; begin < N; begin += rows) {
      const int64_t count = std::min(rows, N - begin);
      parts.push_back(
          support_of_block(launch, wanted, anchors, anchor_error, begin, count, max_support, slack, data<int32_t>(kept)));
    }
    total = scan(launch, kept, offsets);
  }
  const Tensor ids = empty_on(new_auxiliary, {total}, ScalarType::Int);
  const Tensor weights = empty_on(new_auxiliary, {total}, ScalarType::Double);
  int64_t at = 0;
  for (const Part& part : parts) {
    if (part.ids.numel() == 0) continue;
    append<int32_t>(launch, part.ids, ids, at);
    append<double>(launch, part.weights, weights, at);
    at += part.ids.numel();
  }
  return {offsets, ids, weights};
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("sparsemax_support", TORCH_BOX(&sparsemax_support)); }

}  // namespace saltlm::cuda
