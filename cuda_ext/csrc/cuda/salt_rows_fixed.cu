// salt_rows_fixed on CUDA: supports, least squares and rows of a batch without once waiting for the device, so that a CUDA graph may
// capture it. Every size follows from the shapes of the arguments: a row's survivors and its support have a room each, and a row
// that needs more, or that only the CPU can settle, is left over. What it settles has the bits that the three operators give.
#include <tuple>

#include "combine.cuh"
#include "filtered.cuh"
#include "lstsq.cuh"

namespace saltlm::cuda {

namespace {

constexpr int64_t kSurvivors = 1024;  // room for a row's survivors, or four times its capacity if that is more

// sizes [rows] and ids [rows, capacity] of the supports that fit, else kDoesNotFit. room_ids and room_cosines are [rows, room].
template <class T>
__global__ void __launch_bounds__(kThreads)
    settle_in_room_kernel(const float* similarity, int64_t stride, const uint8_t* usable, int64_t A, const double* cuts,
                          const int32_t* survivors, const T* rows, const double* row_inverse, const T* anchors,
                          const double* inverse, int64_t W, int64_t max_support, int64_t room, int32_t* room_ids,
                          double* room_cosines, int64_t capacity, int32_t* ids, int32_t* sizes) {
  __shared__ double scratch[32];
  __shared__ int counter;
  const BlockTeam team{scratch};
  const int64_t row = blockIdx.x;
  const int support = support_in_room(team, similarity + row * stride, usable, A, cuts[row], rows + row * W, row_inverse[row],
                                      anchors, inverse, W, max_support, survivors[row], &counter, room, room_ids + row * room,
                                      room_cosines + row * room, capacity, ids + row * capacity);
  if (team.rank() == 0) sizes[row] = support;
}

// Supports of all rows.
void supports_in_room(const Launch& launch, const Tensor& new_auxiliary, const Tensor& anchor_auxiliary, int64_t max_support,
                      double slack, int64_t capacity, const Tensor& ids, const Tensor& sizes) {
  const Sides sides(launch, new_auxiliary, anchor_auxiliary, by_tensor_cores(launch));
  const Measured &wanted = sides.wanted, &anchors = sides.anchors;
  const int64_t N = wanted.rows.size(0), A = anchors.rows.size(0), W = anchors.rows.size(1);
  const int64_t rows = std::min(N, sides.rows()), room = std::min(A, std::max(kSurvivors, 4 * capacity));
  const Tensor room_ids = empty_on(new_auxiliary, {rows, room}, ScalarType::Int);
  const Tensor room_cosines = empty_on(new_auxiliary, {rows, room}, ScalarType::Double);
  for (int64_t begin = 0; begin < N; begin += rows) {
    const int64_t count = std::min(rows, N - begin);
    const Filtered block = filtered(launch, sides, begin, count, slack);
    const auto settle = [&](auto zero) {
      using T = decltype(zero);
      settle_in_room_kernel<<<static_cast<unsigned>(count), kThreads, 0, launch.stream()>>>(
          data<const float>(block.similarity), block.stride, data<const uint8_t>(anchors.usable), A,
          data<const double>(block.cuts), data<const int32_t>(block.counts), data<const T>(wanted.rows) + begin * W,
          data<const double>(wanted.inverse) + begin, data<const T>(anchors.rows), data<const double>(anchors.inverse), W,
          max_support, room, data<int32_t>(room_ids), data<double>(room_cosines), capacity,
          data<int32_t>(ids) + begin * capacity, data<int32_t>(sizes) + begin);
    };
    wanted.rows.scalar_type() == ScalarType::Double ? settle(double{}) : settle(float{});
    Launch::check("settle_in_room_kernel");
  }
}

// The supports of settled tokens alone: the others' rows become zeros.
struct Settled : Roomy {
  const uint8_t* status;

  SALTLM_BOTH int64_t size(int64_t n) const { return status[n] == kFullRank ? Roomy::size(n) : 0; }
};

Tensor zero_rows(const Tensor& anchor_lm, int64_t N) {
  return zeros_on(anchor_lm, {N, anchor_lm.size(1)}, combined_type(anchor_lm));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> salt_rows_fixed(
    const Tensor& new_auxiliary, const Tensor& anchor_auxiliary, const Tensor& new_plm, const Tensor& anchor_plm,
    const Tensor& anchor_lm, const Tensor& anchor_output, int64_t max_support, double slack, int64_t capacity, double ridge,
    bool center) {
  check_salt_rows_fixed(new_auxiliary, anchor_auxiliary, new_plm, anchor_plm, anchor_lm, anchor_output, max_support, slack,
                        capacity, ridge);
  const int64_t N = new_plm.size(0), A = anchor_plm.size(0), E = new_plm.size(1);
  const Launch launch(new_plm);
  const Tensor sizes = zeros_on(new_plm, {N}, ScalarType::Int), rank = zeros_on(new_plm, {N}, ScalarType::Int);
  const Tensor residual = torch::stable::full({N}, kNothingExplained, ScalarType::Float, std::nullopt, new_plm.device());
  Tensor status = empty_on(new_plm, {N}, ScalarType::Byte);
  if (N > 0) torch::stable::fill_(status, kPending);
  if (N == 0 || A == 0 || new_auxiliary.size(1) == 0)
    return {zero_rows(anchor_lm, N), zero_rows(anchor_output, N), sizes, rank, residual, status};
  const Tensor ids = empty_on(new_plm, {N, capacity}, ScalarType::Int);
  const Tensor coefficients = empty_on(new_plm, {N, capacity}, ScalarType::Double);
  supports_in_room(launch, new_auxiliary, anchor_auxiliary, max_support, slack, capacity, ids, sizes);
  const Roomy supports{data<const int32_t>(sizes), data<const int32_t>(ids), capacity};
  const Outputs out{data<double>(coefficients), data<int32_t>(rank), data<float>(residual), data<uint8_t>(status)};
  const int largest = static_cast<int>(std::min<int64_t>(capacity, E + (center ? 1 : 0)));
  const Tensor wanted = widened(launch, new_plm), anchors = widened(launch, anchor_plm);
  if (wanted.scalar_type() == ScalarType::Double)
    solve_all<double>(launch, wanted, anchors, supports, largest, ridge, center, out);
  else
    solve_all<float>(launch, wanted, anchors, supports, largest, ridge, center, out);
  const Settled settled{supports, out.status};
  const auto rows_of = [&](const Tensor& targets) {
    return combine_all(launch, "salt_rows_fixed", settled, coefficients, torch::stable::contiguous(targets), N);
  };
  return {rows_of(anchor_lm), rows_of(anchor_output), sizes, rank, residual, status};
}

STABLE_TORCH_LIBRARY_IMPL(saltlm, CUDA, m) { m.impl("salt_rows_fixed", TORCH_BOX(&salt_rows_fixed)); }

}  // namespace saltlm::cuda
