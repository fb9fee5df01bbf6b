// sparsemax_support on CUDA. Rows are taken in blocks whose approximate cosines fit a bounded buffer and are filtered (filtered.cuh);
// then one thread block per row recomputes the survivors' cosines in float64, sorts and weighs them (sparsemax_row.h). Device memory
// is the buffer, at most three times as much for the survivors, and the result.
#include <tuple>
#include <vector>

#include "filtered.cuh"
#include "waiting.cuh"

namespace saltlm::cuda {

namespace {

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
  if (n > 0)
    support = settle_row(team, similarity + row * stride, usable, A, cuts[row], rows + row * W, row_inverse[row], anchors, inverse,
                         W, max_support, n, &counter, ids + start, cosines + start);
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

// Running sums of the first n counts on the device.
void run_sums(const Launch& launch, const Tensor& counts, int64_t n, const Tensor& starts) {
  scan_kernel<<<1, 1024, 0, launch.stream()>>>(data<const int32_t>(counts), n, data<int64_t>(starts));
  Launch::check("scan_kernel");
}

// The same of all; the last sum is returned too.
int64_t scan(const Launch& launch, const Tensor& counts, const Tensor& starts) {
  run_sums(launch, counts, counts.numel(), starts);
  int64_t total = 0;
  to_host(launch, &total, data<const int64_t>(starts) + counts.numel(), 1);
  return total;
}

struct Part {
  Tensor ids, weights;
};

// Supports of the rows [begin, begin + count); their sizes go to kept [count].
Part support_of_block(const Launch& launch, const Sides& sides, int64_t begin, int64_t count, int64_t max_support, double slack,
                      int32_t* all_kept) {
  const Measured &wanted = sides.wanted, &anchors = sides.anchors;
  const int64_t A = anchors.rows.size(0), W = anchors.rows.size(1);
  const Filtered block = filtered(launch, sides, begin, count, slack);
  const Tensor starts = empty_on(block.similarity, {count + 1}, ScalarType::Long);
  const auto blocks = static_cast<unsigned>(count);
  const int64_t survivors = scan(launch, block.counts, starts);
  const Tensor ids = empty_on(block.similarity, {survivors}, ScalarType::Int);
  const Tensor cosines = empty_on(block.similarity, {survivors}, ScalarType::Double);
  const auto settle = [&](auto zero) {
    using T = decltype(zero);
    settle_kernel<<<blocks, kThreads, 0, launch.stream()>>>(
        data<const float>(block.similarity), block.stride, data<const uint8_t>(anchors.usable), A, data<const double>(block.cuts),
        data<const int64_t>(starts), data<const T>(wanted.rows) + begin * W, data<const double>(wanted.inverse) + begin,
        data<const T>(anchors.rows), data<const double>(anchors.inverse), W, max_support, data<int32_t>(ids),
        data<double>(cosines), data<int32_t>(block.counts));
  };
  wanted.rows.scalar_type() == ScalarType::Double ? settle(double{}) : settle(float{});
  Launch::check("settle_kernel");
  const Tensor places = empty_on(block.similarity, {count + 1}, ScalarType::Long);
  const int64_t total = scan(launch, block.counts, places);
  const Part part{empty_on(block.similarity, {total}, ScalarType::Int), empty_on(block.similarity, {total}, ScalarType::Double)};
  pack_kernel<<<blocks, 128, 0, launch.stream()>>>(data<const int64_t>(starts), data<const int64_t>(places),
                                                   data<const int32_t>(ids), data<const double>(cosines),
                                                   data<int32_t>(part.ids), data<double>(part.weights));
  Launch::check("pack_kernel");
  check_cuda(cudaMemcpyAsync(all_kept + begin, data<const int32_t>(block.counts),
                             sizeof(int32_t) * static_cast<size_t>(count), cudaMemcpyDeviceToDevice, launch.stream()),
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
                                                     int64_t max_support, double slack, int64_t most_entries) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack, most_entries);
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0);
  const Launch launch(new_auxiliary);
  std::vector<Part> parts;
  Tensor offsets;
  int64_t total = 0, there = N;
  if (N > 0 && A > 0 && new_auxiliary.size(1) > 0) {
    const Sides sides(launch, new_auxiliary, anchor_auxiliary, by_tensor_cores(launch));
    const Tensor kept = empty_on(new_auxiliary, {N}, ScalarType::Int);
    const int64_t rows = sides.rows();
    for (int64_t begin = 0; begin < there; begin += rows) {
      const int64_t count = std::min(rows, N - begin);
      parts.push_back(support_of_block(launch, sides, begin, count, max_support, slack, data<int32_t>(kept)));
      total += parts.back().ids.numel();
      if (most_entries > 0 && total >= most_entries) there = begin + count;
    }
    offsets = empty_on(new_auxiliary, {there + 1}, ScalarType::Long);
    run_sums(launch, kept, there, offsets);
  } else {
    offsets = zeros_on(new_auxiliary, {N + 1}, ScalarType::Long);
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
