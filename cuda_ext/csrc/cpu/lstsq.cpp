// support_lstsq and combine on the CPU. Rows are independent of each other and processed by several threads.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "order.h"
#include "parallel.h"
#include "stages.h"

namespace saltlm::cpu {
namespace {

// The kernels use these values as indices, so they are checked first.
void check_values(const char* op, const int64_t* offsets, int64_t rows, const int32_t* ids, int64_t entries,
                  int64_t anchors) {
  bool ascending = offsets[0] == 0 && offsets[rows] == entries;
  for (int64_t i = 0; i < rows; ++i) ascending = ascending && offsets[i] <= offsets[i + 1];
  STD_TORCH_CHECK(ascending, op, ", offsets: expected numbers ascending from 0 to ", entries, " (the count of ids)");
  bool inside = true;
  for (int64_t i = 0; i < entries; ++i) inside = inside && ids[i] >= 0 && ids[i] < anchors;
  STD_TORCH_CHECK(inside, op, ", ids: expected positions in [0, ", anchors, ")");
}

struct ThreadScratch {
  Arena arena;
  StageTimesPtr times = start_stage_times();
  ThreadScratch() { arena.times = times.get(); }
  ThreadScratch(ThreadScratch&& other) noexcept : arena(other.arena), times(std::move(other.times)) {
    other.arena = Arena();
  }
  ThreadScratch(const ThreadScratch&) = delete;
  ~ThreadScratch() {
    std::free(arena.data[0]);
    std::free(arena.data[1]);
  }
};

// Gram matrix of all anchors, for supports that leave out few of them. Summed in a fixed number of parts, so that it
// does not depend on the number of threads.
std::vector<double> full_gram(const Matrix& anchors) {
  constexpr int64_t kParts = 8;
  const SolveKernels& kernels = solve_kernels();
  const int64_t n = (anchors.width + 7) / 8 * 8, size = n * n;
  std::vector<double> parts(static_cast<size_t>(kParts * size));
  for_rows(kParts, 1, "support_lstsq", [&] {
    return [&, scratch = ThreadScratch()](int64_t begin, int64_t end) mutable {
      bool has_memory = true;
      for (int64_t part = begin; part < end; ++part)
        has_memory =
            has_memory && kernels.add_gram(anchors, anchors.rows * part / kParts, anchors.rows * (part + 1) / kParts,
                                           parts.data() + part * size, scratch.arena);
      end_stage(scratch.arena.times, kGram);
      return has_memory;
    };
  });
  for (int64_t part = 1; part < kParts; ++part)
    for (int64_t i = 0; i < size; ++i) parts[i] += parts[part * size + i];
  parts.resize(static_cast<size_t>(size));
  return parts;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> support_lstsq(const Tensor& new_plm, const Tensor& anchor_plm,
                                                         const Tensor& offsets, const Tensor& ids, double ridge,
                                                         bool center) {
  check_support_lstsq(new_plm, anchor_plm, offsets, ids, ridge);
  const SolveKernels& kernels = solve_kernels();
  const int64_t N = new_plm.size(0), A = anchor_plm.size(0), E = new_plm.size(1), entries = ids.size(0);
  const Tensor offsets_tensor = torch::stable::contiguous(offsets), ids_tensor = torch::stable::contiguous(ids);
  const int64_t* offsets_data = offsets_tensor.const_data_ptr<int64_t>();
  const int32_t* ids_data = ids_tensor.const_data_ptr<int32_t>();
  check_values("support_lstsq", offsets_data, N, ids_data, entries, A);

  Tensor coefficients = zeros_on(new_plm, {entries}, ScalarType::Double),
         rank = zeros_on(new_plm, {N}, ScalarType::Int), residual = empty_on(new_plm, {N}, ScalarType::Float),
         status = empty_on(new_plm, {N}, ScalarType::Byte);
  if (N == 0) return {coefficients, rank, residual, status};
  const Tensor new_rows = as_float_or_double(new_plm), anchors_tensor = as_float_or_double(anchor_plm);
  const Matrix anchors = as_matrix(anchors_tensor);
  std::vector<double> max_abs(static_cast<size_t>(A));
  for_rows(A, 256, "support_lstsq", [&] {
    return [&](int64_t begin, int64_t end) {
      row_kernels().max_abs(anchors, begin, end, max_abs.data());
      return true;
    };
  });
  // Whether a row's Gram matrix is computed from the complement depends on that row only, so the result does not depend
  // on the other rows of the batch.
  bool nearly_full = false;
  for (int64_t i = 0; i < N; ++i) {
    const int64_t K = offsets_data[i + 1] - offsets_data[i];
    nearly_full = nearly_full || (2 * K > A && K - (center ? 1 : 0) > E);
  }
  const bool finite = std::all_of(max_abs.begin(), max_abs.end(), [](double value) { return value * 0 == 0; });
  std::vector<double> gram;
  if (nearly_full && finite) gram = full_gram(anchors);
  const LstsqInput input{
      as_matrix(new_rows), anchors, max_abs.data(), ridge, center, gram.empty() ? nullptr : gram.data()};
  double* coefficients_data = coefficients.mutable_data_ptr<double>();
  int32_t* rank_data = rank.mutable_data_ptr<int32_t>();
  float* residual_data = residual.mutable_data_ptr<float>();
  uint8_t* status_data = status.mutable_data_ptr<uint8_t>();
  const std::vector<int64_t>& order = cached_order(offsets_data, ids_data, N, A);
  for_rows(N, 8, "support_lstsq", [&] {
    return [&, scratch = ThreadScratch()](int64_t begin, int64_t end) mutable {
      for (int64_t position = begin; position < end; ++position) {
        const int64_t i = order[static_cast<size_t>(position)];
        const LstsqRow row = kernels.solve(input, i, ids_data + offsets_data[i], offsets_data[i + 1] - offsets_data[i],
                                           coefficients_data + offsets_data[i], scratch.arena);
        if (row.out_of_memory) return false;
        rank_data[i] = row.rank;
        residual_data[i] = row.residual;
        status_data[i] = row.status;
      }
      return true;
    };
  });
  return {coefficients, rank, residual, status};
}

ScalarType combined_type(const Tensor& anchor_lm) {
  return anchor_lm.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor combine_into(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients, const Tensor& anchor_lm,
                    const Tensor& rows) {
  check_combine(offsets, ids, coefficients, anchor_lm);
  const RowKernels& kernels = row_kernels();
  const int64_t N = offsets.size(0) - 1, A = anchor_lm.size(0), D = anchor_lm.size(1);
  check_matrix("combine_into, rows", rows);
  check_same_device("combine_into, rows", rows, anchor_lm);
  const ScalarType type = combined_type(anchor_lm);
  STD_TORCH_CHECK(rows.size(0) == N && rows.size(1) == D && rows.is_contiguous() && rows.scalar_type() == type,
                  "combine_into, rows: expected a contiguous [", N, ", ", D, "] of the dtype that combine gives");
  const Tensor offsets_tensor = torch::stable::contiguous(offsets), ids_tensor = torch::stable::contiguous(ids),
               coefficients_tensor = torch::stable::contiguous(coefficients);
  const int64_t* offsets_data = offsets_tensor.const_data_ptr<int64_t>();
  const int32_t* ids_data = ids_tensor.const_data_ptr<int32_t>();
  const double* coefficients_data = coefficients_tensor.const_data_ptr<double>();
  check_values("combine", offsets_data, N, ids_data, ids.size(0), A);
  Tensor finite = empty_on(anchor_lm, {N}, ScalarType::Bool);
  bool* all_finite = finite.mutable_data_ptr<bool>();
  std::fill(all_finite, all_finite + N, true);
  if (N == 0 || D == 0) return finite;
  // The kernel widens bfloat16 while it reads, which avoids a copy of a large matrix. float16 is rare, so it is
  // converted.
  const bool is_bfloat16 = anchor_lm.scalar_type() == ScalarType::BFloat16, is_double = type == ScalarType::Double;
  const Tensor source = is_bfloat16 ? torch::stable::contiguous(anchor_lm) : as_float_or_double(anchor_lm);
  char* out = static_cast<char*>(rows.mutable_data_ptr());
  const void* data = source.const_data_ptr();
  const int element_type = is_bfloat16 ? 2 : is_double ? 1 : 0;
  const std::vector<int64_t>& order = cached_order(offsets_data, ids_data, N, A);
  for_rows(N, 16, "combine", [&] {
    return [&, times = start_stage_times(), sums = std::vector<double>(static_cast<size_t>(D + 64))](
               int64_t begin, int64_t end) mutable {
      for (int64_t position = begin; position < end; ++position) {
        const int64_t i = order[static_cast<size_t>(position)];
        all_finite[i] =
            kernels.combine(data, element_type, D, ids_data + offsets_data[i], coefficients_data + offsets_data[i],
                            offsets_data[i + 1] - offsets_data[i], sums.data(), out + i * D * (is_double ? 8 : 4));
      }
      end_stage(times.get(), kApply);
      return true;
    };
  });
  return finite;
}

Tensor combine(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients, const Tensor& anchor_lm) {
  check_combine(offsets, ids, coefficients, anchor_lm);
  Tensor rows = empty_on(anchor_lm, {offsets.size(0) - 1, anchor_lm.size(1)}, combined_type(anchor_lm));
  combine_into(offsets, ids, coefficients, anchor_lm, rows);
  return rows;
}

}  // namespace
}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CPU, m) {
  m.impl("support_lstsq", TORCH_BOX(&saltlm::cpu::support_lstsq));
  m.impl("combine", TORCH_BOX(&saltlm::cpu::combine));
  m.impl("combine_into", TORCH_BOX(&saltlm::cpu::combine_into));
}
