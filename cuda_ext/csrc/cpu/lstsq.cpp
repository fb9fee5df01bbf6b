// support_lstsq and combine on the CPU: every row alone, on whichever thread is free.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "order.h"
#include "parallel.h"
#include "stages.h"

namespace saltlm::cpu {
namespace {

// The kernels read rows by these numbers, so nothing else may reach them.
void check_values(const char* op, const int64_t* offsets, int64_t rows, const int32_t* ids, int64_t count, int64_t anchors) {
  bool ascending = offsets[0] == 0 && offsets[rows] == count;
  for (int64_t i = 0; i < rows; ++i) ascending = ascending && offsets[i] <= offsets[i + 1];
  STD_TORCH_CHECK(ascending, op, ", offsets: expected numbers ascending from 0 to ", count, " (the count of ids)");
  bool inside = true;
  for (int64_t i = 0; i < count; ++i) inside = inside && ids[i] >= 0 && ids[i] < anchors;
  STD_TORCH_CHECK(inside, op, ", ids: expected positions in [0, ", anchors, ")");
}

struct OwnedArena {
  Arena arena;
  OwnedLaps laps = start_laps();
  OwnedArena() { arena.laps = laps.get(); }
  OwnedArena(OwnedArena&& other) noexcept : arena(other.arena), laps(std::move(other.laps)) { other.arena = Arena(); }
  OwnedArena(const OwnedArena&) = delete;
  ~OwnedArena() {
    std::free(arena.data[0]);
    std::free(arena.data[1]);
  }
};

// Gram matrix of all anchors, for supports that leave out few. Summed in a fixed number of parts, whatever the threads.
std::vector<double> whole_gram(const Matrix& anchors) {
  constexpr int64_t kParts = 8;
  const SolveKernels& kernels = solve_kernels();
  const int64_t n = (anchors.width + 7) / 8 * 8, size = n * n;
  std::vector<double> parts(static_cast<size_t>(kParts * size));
  for_rows(kParts, 1, "support_lstsq", [&] {
    return [&, owned = OwnedArena()](int64_t begin, int64_t end) mutable {
      bool fine = true;
      for (int64_t part = begin; part < end; ++part)
        fine = fine && kernels.add_gram(anchors, anchors.rows * part / kParts, anchors.rows * (part + 1) / kParts,
                                        parts.data() + part * size, owned.arena);
      lap(owned.arena.laps, kGram);
      return fine;
    };
  });
  for (int64_t part = 1; part < kParts; ++part)
    for (int64_t i = 0; i < size; ++i) parts[i] += parts[part * size + i];
  parts.resize(static_cast<size_t>(size));
  return parts;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> support_lstsq(const Tensor& new_plm, const Tensor& anchor_plm,
                                                         const Tensor& offsets, const Tensor& ids, double ridge, bool center) {
  check_support_lstsq(new_plm, anchor_plm, offsets, ids, ridge);
  const SolveKernels& kernels = solve_kernels();
  const int64_t N = new_plm.size(0), A = anchor_plm.size(0), E = new_plm.size(1), count = ids.size(0);
  const Tensor offsets_tensor = torch::stable::contiguous(offsets), ids_tensor = torch::stable::contiguous(ids);
  const int64_t* bounds = offsets_tensor.const_data_ptr<int64_t>();
  const int32_t* all_ids = ids_tensor.const_data_ptr<int32_t>();
  check_values("support_lstsq", bounds, N, all_ids, count, A);

  Tensor coefficients = zeros_on(new_plm, {count}, ScalarType::Double), rank = zeros_on(new_plm, {N}, ScalarType::Int),
         residual = empty_on(new_plm, {N}, ScalarType::Float), status = empty_on(new_plm, {N}, ScalarType::Byte);
  if (N == 0) return {coefficients, rank, residual, status};
  const Tensor wanted = prepared(new_plm), anchors_tensor = prepared(anchor_plm);
  const Matrix anchors = as_matrix(anchors_tensor);
  std::vector<double> peaks(static_cast<size_t>(A));
  for_rows(A, 256, "support_lstsq", [&] {
    return [&](int64_t begin, int64_t end) {
      row_kernels().peaks(anchors, begin, end, peaks.data());
      return true;
    };
  });
  // Whether a row's Gram matrix is taken from the complement depends on that row alone, so as not to depend on the batch.
  bool nearly_full = false;
  for (int64_t i = 0; i < N; ++i) {
    const int64_t K = bounds[i + 1] - bounds[i];
    nearly_full = nearly_full || (2 * K > A && K - (center ? 1 : 0) > E);
  }
  const bool finite = std::all_of(peaks.begin(), peaks.end(), [](double peak) { return peak * 0 == 0; });
  std::vector<double> gram;
  if (nearly_full && finite) gram = whole_gram(anchors);
  const LstsqInput input{as_matrix(wanted), anchors, peaks.data(), ridge, center, gram.empty() ? nullptr : gram.data()};
  double* c = coefficients.mutable_data_ptr<double>();
  int32_t* ranks = rank.mutable_data_ptr<int32_t>();
  float* residuals = residual.mutable_data_ptr<float>();
  uint8_t* statuses = status.mutable_data_ptr<uint8_t>();
  const std::vector<int64_t>& order = kept_order(bounds, all_ids, N, A);
  for_rows(N, 8, "support_lstsq", [&] {
    return [&, owned = OwnedArena()](int64_t begin, int64_t end) mutable {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t i = order[static_cast<size_t>(at)];
        const LstsqRow row = kernels.solve(input, i, all_ids + bounds[i], bounds[i + 1] - bounds[i], c + bounds[i], owned.arena);
        if (row.out_of_memory) return false;
        ranks[i] = row.rank;
        residuals[i] = row.residual;
        statuses[i] = row.status;
      }
      return true;
    };
  });
  return {coefficients, rank, residual, status};
}

ScalarType combined_type(const Tensor& anchor_lm) {
  return anchor_lm.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor combine_into(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients, const Tensor& anchor_lm, Tensor rows) {
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
  const int64_t* bounds = offsets_tensor.const_data_ptr<int64_t>();
  const int32_t* all_ids = ids_tensor.const_data_ptr<int32_t>();
  const double* c = coefficients_tensor.const_data_ptr<double>();
  check_values("combine", bounds, N, all_ids, ids.size(0), A);
  Tensor finite = empty_on(anchor_lm, {N}, ScalarType::Bool);
  bool* fine = finite.mutable_data_ptr<bool>();
  std::fill(fine, fine + N, true);
  if (N == 0 || D == 0) return finite;
  // bfloat16 is widened on the way in the kernel, so that no copy of a large matrix is made; float16 is rare enough.
  const bool narrow = anchor_lm.scalar_type() == ScalarType::BFloat16, wide = type == ScalarType::Double;
  const Tensor source = narrow ? torch::stable::contiguous(anchor_lm) : prepared(anchor_lm);
  char* out = static_cast<char*>(rows.mutable_data_ptr());
  const void* data = source.const_data_ptr();
  const int kind = narrow ? 2 : wide ? 1 : 0;
  const std::vector<int64_t>& order = kept_order(bounds, all_ids, N, A);
  for_rows(N, 16, "combine", [&] {
    return [&, laps = start_laps(), sums = std::vector<double>(static_cast<size_t>(D + 64))](int64_t begin, int64_t end) mutable {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t i = order[static_cast<size_t>(at)];
        fine[i] = kernels.combine(data, kind, D, all_ids + bounds[i], c + bounds[i], bounds[i + 1] - bounds[i], sums.data(),
                                  out + i * D * (wide ? 8 : 4));
      }
      lap(laps.get(), kApply);
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
