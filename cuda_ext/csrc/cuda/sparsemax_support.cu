// sparsemax_support on CUDA. Rows are processed in blocks whose approximate cosines fit a bounded buffer and are
// filtered (filter.cuh). Then one thread block per row recomputes the survivors' cosines in float64, sorts and weighs
// them (sparsemax_row.h). Device memory: the buffer, at most three times as much for the survivors, and the result.
#include <tuple>
#include <vector>

#include "filter.cuh"

namespace saltlm::cuda {

namespace {

// starts [count + 1] = prefix sums of counts, by one block.
__global__ void __launch_bounds__(1024) prefix_sum_kernel(const int32_t* counts, int64_t count, int64_t* starts) {
  __shared__ int64_t sums[1024];
  const int rank = static_cast<int>(threadIdx.x);
  int64_t sum_before = 0;
  for (int64_t base = 0; base < count; base += 1024) {
    sums[rank] = base + rank < count ? counts[base + rank] : 0;
    __syncthreads();
    for (int step = 1; step < 1024; step *= 2) {
      const int64_t previous = rank >= step ? sums[rank - step] : 0;
      __syncthreads();
      sums[rank] += previous;
      __syncthreads();
    }
    if (base + rank < count) starts[base + rank + 1] = sum_before + sums[rank];
    sum_before += sums[1023];
    __syncthreads();
  }
  if (rank == 0) starts[0] = 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    exact_support_kernel(const float* similarity, int64_t stride, const uint8_t* usable, int64_t A,
                         const double* min_cosines, const int64_t* starts, const T* rows,
                         const double* row_inverse_norm, const T* anchors, const double* inverse_norm, int64_t W,
                         int64_t max_support, int32_t* ids, double* cosines, int32_t* sizes) {
  __shared__ double scratch[32];
  __shared__ int counter;
  const BlockTeam team{scratch};
  const int64_t row = blockIdx.x, start = starts[row];
  const int n = static_cast<int>(starts[row + 1] - start);
  int support = 0;
  if (n > 0)
    support = exact_support(team, similarity + row * stride, usable, A, min_cosines[row], rows + row * W,
                            row_inverse_norm[row], anchors, inverse_norm, W, max_support, n, &counter, ids + start,
                            cosines + start);
  if (team.rank() == 0) sizes[row] = support;
}

// Copies the first sizes[row] entries of every row's survivors to consecutive memory.
__global__ void pack_kernel(const int64_t* source_starts, const int64_t* packed_starts, const int32_t* ids,
                            const double* weights, int32_t* packed_ids, double* packed_weights) {
  const int64_t row = blockIdx.x, source = source_starts[row], target = packed_starts[row],
                count = packed_starts[row + 1] - target;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    packed_ids[target + i] = ids[source + i];
    packed_weights[target + i] = weights[source + i];
  }
}

// Prefix sums of the first n counts, on the device.
void device_prefix_sum(const Launch& launch, const Tensor& counts, int64_t n, const Tensor& starts) {
  prefix_sum_kernel<<<1, 1024, 0, launch.stream()>>>(data<const int32_t>(counts), n, data<int64_t>(starts));
  Launch::check("prefix_sum_kernel");
}

// Prefix sums of all counts; returns the total.
int64_t prefix_sum(const Launch& launch, const Tensor& counts, const Tensor& starts) {
  device_prefix_sum(launch, counts, counts.numel(), starts);
  int64_t total = 0;
  copy_to_host(launch, &total, data<const int64_t>(starts) + counts.numel(), 1);
  return total;
}

struct BlockSupports {
  Tensor ids, weights;
};

// Supports of the rows [begin, begin + count). Their sizes are written to all_sizes [begin .. begin + count).
BlockSupports supports_of_block(const Launch& launch, const Problem& problem, int64_t begin, int64_t count,
                                int64_t max_support, double slack, int32_t* all_sizes) {
  const NormalizedRows &new_rows = problem.new_rows, &anchors = problem.anchors;
  const int64_t A = anchors.rows.size(0), W = anchors.rows.size(1);
  const FilteredBlock block = filter_block(launch, problem, begin, count, slack);
  const Tensor starts = empty_on(block.similarity, {count + 1}, ScalarType::Long);
  const auto blocks = static_cast<unsigned>(count);
  const int64_t survivors = prefix_sum(launch, block.counts, starts);
  const Tensor ids = empty_on(block.similarity, {survivors}, ScalarType::Int);
  const Tensor cosines = empty_on(block.similarity, {survivors}, ScalarType::Double);
  const auto launch_kernel = [&](auto zero) {
    using T = decltype(zero);
    exact_support_kernel<<<blocks, kThreads, 0, launch.stream()>>>(
        data<const float>(block.similarity), block.stride, data<const uint8_t>(anchors.usable), A,
        data<const double>(block.min_cosines), data<const int64_t>(starts), data<const T>(new_rows.rows) + begin * W,
        data<const double>(new_rows.inverse_norm) + begin, data<const T>(anchors.rows),
        data<const double>(anchors.inverse_norm), W, max_support, data<int32_t>(ids), data<double>(cosines),
        data<int32_t>(block.counts));
  };
  new_rows.rows.scalar_type() == ScalarType::Double ? launch_kernel(double{}) : launch_kernel(float{});
  Launch::check("exact_support_kernel");
  const Tensor packed_starts = empty_on(block.similarity, {count + 1}, ScalarType::Long);
  const int64_t total = prefix_sum(launch, block.counts, packed_starts);
  const BlockSupports block_supports{empty_on(block.similarity, {total}, ScalarType::Int),
                                     empty_on(block.similarity, {total}, ScalarType::Double)};
  pack_kernel<<<blocks, 128, 0, launch.stream()>>>(
      data<const int64_t>(starts), data<const int64_t>(packed_starts), data<const int32_t>(ids),
      data<const double>(cosines), data<int32_t>(block_supports.ids), data<double>(block_supports.weights));
  Launch::check("pack_kernel");
  check_cuda(cudaMemcpyAsync(all_sizes + begin, data<const int32_t>(block.counts),
                             sizeof(int32_t) * static_cast<size_t>(count), cudaMemcpyDeviceToDevice, launch.stream()),
             "copy of the support sizes");
  return block_supports;
}

template <class T>
void append_to(const Launch& launch, const Tensor& part, const Tensor& whole, int64_t position) {
  check_cuda(cudaMemcpyAsync(data<T>(whole) + position, data<const T>(part),
                             sizeof(T) * static_cast<size_t>(part.numel()), cudaMemcpyDeviceToDevice, launch.stream()),
             "copy of the supports");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary,
                                                     int64_t max_support, double slack, int64_t most_entries) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack, most_entries);
  const int64_t N = new_auxiliary.size(0), A = anchor_auxiliary.size(0);
  const Launch launch(new_auxiliary);
  std::vector<BlockSupports> all_supports;
  Tensor offsets;
  int64_t total = 0, row_count = N;
  if (N > 0 && A > 0 && new_auxiliary.size(1) > 0) {
    const Problem problem(launch, new_auxiliary, anchor_auxiliary, use_tensor_cores(launch));
    const Tensor sizes = empty_on(new_auxiliary, {N}, ScalarType::Int);
    const int64_t rows = problem.rows();
    for (int64_t begin = 0; begin < row_count; begin += rows) {
      const int64_t count = std::min(rows, N - begin);
      all_supports.push_back(
          supports_of_block(launch, problem, begin, count, max_support, slack, data<int32_t>(sizes)));
      total += all_supports.back().ids.numel();
      if (most_entries > 0 && total >= most_entries) row_count = begin + count;
    }
    offsets = empty_on(new_auxiliary, {row_count + 1}, ScalarType::Long);
    device_prefix_sum(launch, sizes, row_count, offsets);
  } else {
    offsets = zeros_on(new_auxiliary, {N + 1}, ScalarType::Long);
  }
  const Tensor ids = empty_on(new_auxiliary, {total}, ScalarType::Int);
  const Tensor weights = empty_on(new_auxiliary, {total}, ScalarType::Double);
  int64_t position = 0;
  for (const BlockSupports& block_supports : all_supports) {
    if (block_supports.ids.numel() == 0) continue;
    append_to<int32_t>(launch, block_supports.ids, ids, position);
    append_to<double>(launch, block_supports.weights, weights, position);
    position += block_supports.ids.numel();
  }
  return {offsets, ids, weights};
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("sparsemax_support", TORCH_BOX(&sparsemax_support)); }

}  // namespace saltlm::cuda
