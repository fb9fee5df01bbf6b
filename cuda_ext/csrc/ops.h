// The operators' contract: argument checks, shapes, status codes and tolerances, the same for every device.
// Letters: N new rows, A anchors, K one row's support size, P auxiliary width, E width of the PLM rows, D width of the
// source model's rows.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <optional>

namespace saltlm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What became of a row; the order is that of saltlm.ops.STATUSES.
enum Status : uint8_t { kFullRank = 0, kIllConditioned = 1, kRankDeficient = 2, kNoSupport = 3, kNonFinite = 4 };

// The residual reported where no coefficients were found (they are zero then): nothing of the row is explained.
constexpr float kNothingExplained = 1.0f;

// float64's own unit; the rank is the number of singular values above max(K, E) * kEpsilon * (the largest one), which is
// the default of torch.linalg.pinv. With centring the largest plain row norm counts as a singular value there, because
// the centred rows carry rounding errors of that size.
constexpr double kEpsilon = 2.220446049250313e-16;
// A full-rank support whose condition number (largest over smallest singular value) is above this is reported as
// ill-conditioned. The compiled kernels estimate the number, so within a factor of a few of it either status may come out.
constexpr double kIllCondition = 1e4;
// The Cholesky factorisation of the unit-diagonal Gram matrix is trusted only with pivots above this, ...
constexpr double kPivot = 1e-8;
// ... with row norms within this ratio of each other (scaling would hide that a tiny row is below pinv's tolerance) ...
constexpr double kNormRatio = 1e-6;
// ... and when the first correction computed from the rows themselves is this small. Refinement goes on until a
// correction is below kConverged; one that never gets there is handed to the QR / SVD path.
constexpr double kFirstCorrection = 1e-4;
constexpr double kConverged = 1e-10;
constexpr int kRefinements = 4;

inline bool is_real(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// A matrix of reals on `device_of`'s device; `what` names operator and argument in the message.
inline void check_matrix(const char* what, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 2, what, ": expected a matrix, found ", tensor.dim(), " dimensions");
  STD_TORCH_CHECK(is_real(tensor.scalar_type()), what,
                  ": expected float32, float64, bfloat16 or float16, found scalar type ",
                  static_cast<int>(tensor.scalar_type()));
}

inline void check_vector(const char* what, const Tensor& tensor, ScalarType type, const char* type_name) {
  STD_TORCH_CHECK(tensor.dim() == 1, what, ": expected a vector, found ", tensor.dim(), " dimensions");
  STD_TORCH_CHECK(tensor.scalar_type() == type, what, ": expected ", type_name, ", found scalar type ",
                  static_cast<int>(tensor.scalar_type()));
}

inline void check_same_device(const char* what, const Tensor& tensor, const Tensor& other) {
  STD_TORCH_CHECK(tensor.device() == other.device(), what, ": expected the device of the first argument");
}

// ids are int32, so A stays below 2^31; every offset is int64.
inline void check_rows(const char* what, int64_t rows) {
  STD_TORCH_CHECK(rows < (int64_t{1} << 31) - 1, what, ": expected fewer than 2^31 - 1 rows, found ", rows);
}

inline void check_sparsemax_support(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary, int64_t max_support,
                                    double slack, int64_t most_entries) {
  check_matrix("sparsemax_support, new_auxiliary", new_auxiliary);
  check_matrix("sparsemax_support, anchor_auxiliary", anchor_auxiliary);
  check_same_device("sparsemax_support, anchor_auxiliary", anchor_auxiliary, new_auxiliary);
  check_rows("sparsemax_support, new_auxiliary", new_auxiliary.size(0));
  check_rows("sparsemax_support, anchor_auxiliary", anchor_auxiliary.size(0));
  STD_TORCH_CHECK(new_auxiliary.scalar_type() == anchor_auxiliary.scalar_type(),
                  "sparsemax_support, anchor_auxiliary: expected the dtype of new_auxiliary");
  STD_TORCH_CHECK(new_auxiliary.size(1) == anchor_auxiliary.size(1),
                  "sparsemax_support, anchor_auxiliary: expected width ", new_auxiliary.size(1), ", found ",
                  anchor_auxiliary.size(1));
  STD_TORCH_CHECK(max_support >= 0, "sparsemax_support, max_support: expected >= 0 (0 is no cap), found ", max_support);
  STD_TORCH_CHECK(slack >= 0 && slack < 1, "sparsemax_support, slack: expected a number in [0, 1), found ", slack);
  STD_TORCH_CHECK(most_entries >= 0, "sparsemax_support, most_entries: expected >= 0 (0 is any number), found ", most_entries);
}

// The checks of shape only: that offsets ascend from 0 to nnz and ids lie in [0, A) needs the values, so each device
// checks those itself (check_offsets and check_ids on the CPU) before any kernel reads through them.
inline void check_support(const char* op, const Tensor& offsets, const Tensor& ids, const Tensor& first) {
  check_vector(op, offsets, ScalarType::Long, "int64 offsets");
  check_vector(op, ids, ScalarType::Int, "int32 ids");
  STD_TORCH_CHECK(offsets.numel() >= 1, op, ": expected N + 1 offsets, found none");
  check_same_device(op, offsets, first);
  check_same_device(op, ids, first);
}

inline void check_plm(const Tensor& new_plm, const Tensor& anchor_plm, double ridge) {
  check_matrix("support_lstsq, new_plm", new_plm);
  check_matrix("support_lstsq, anchor_plm", anchor_plm);
  check_same_device("support_lstsq, anchor_plm", anchor_plm, new_plm);
  check_rows("support_lstsq, new_plm", new_plm.size(0));
  check_rows("support_lstsq, anchor_plm", anchor_plm.size(0));
  STD_TORCH_CHECK(new_plm.scalar_type() == anchor_plm.scalar_type(),
                  "support_lstsq, anchor_plm: expected the dtype of new_plm");
  STD_TORCH_CHECK(new_plm.size(1) == anchor_plm.size(1), "support_lstsq, anchor_plm: expected width ", new_plm.size(1),
                  ", found ", anchor_plm.size(1));
  STD_TORCH_CHECK(std::isfinite(ridge) && ridge >= 0, "support_lstsq, ridge: expected a finite number >= 0 (0 is none), found ",
                  ridge);
}

inline void check_support_lstsq(const Tensor& new_plm, const Tensor& anchor_plm, const Tensor& offsets,
                                const Tensor& ids, double ridge) {
  check_plm(new_plm, anchor_plm, ridge);
  check_support("support_lstsq", offsets, ids, new_plm);
  STD_TORCH_CHECK(offsets.size(0) == new_plm.size(0) + 1, "support_lstsq, offsets: expected ", new_plm.size(0) + 1,
                  " values, found ", offsets.size(0));
}

inline void check_combine(const Tensor& offsets, const Tensor& ids, const Tensor& coefficients,
                          const Tensor& anchor_lm) {
  check_matrix("combine, anchor_lm", anchor_lm);
  check_support("combine", offsets, ids, anchor_lm);
  check_vector("combine, coefficients", coefficients, ScalarType::Double, "float64");
  check_same_device("combine, coefficients", coefficients, anchor_lm);
  check_rows("combine, anchor_lm", anchor_lm.size(0));
  STD_TORCH_CHECK(coefficients.size(0) == ids.size(0), "combine, coefficients: expected ", ids.size(0),
                  " values (one for each id), found ", coefficients.size(0));
}

// The largest room for a row's support in salt_rows_fixed.
constexpr int64_t kCapacityLimit = 1024;

inline void check_salt_rows_fixed(const Tensor& new_auxiliary, const Tensor& anchor_auxiliary, const Tensor& new_plm,
                                  const Tensor& anchor_plm, const Tensor& anchor_lm, const Tensor& anchor_output,
                                  int64_t max_support, double slack, int64_t capacity, double ridge) {
  check_sparsemax_support(new_auxiliary, anchor_auxiliary, max_support, slack, 0);
  check_plm(new_plm, anchor_plm, ridge);
  check_same_device("salt_rows_fixed, new_plm", new_plm, new_auxiliary);
  STD_TORCH_CHECK(new_plm.size(0) == new_auxiliary.size(0), "salt_rows_fixed, new_plm: expected ", new_auxiliary.size(0),
                  " rows, found ", new_plm.size(0));
  const auto check_anchors = [&](const char* what, const Tensor& tensor) {
    check_matrix(what, tensor);
    check_same_device(what, tensor, new_auxiliary);
    STD_TORCH_CHECK(tensor.size(0) == anchor_auxiliary.size(0), what, ": expected ", anchor_auxiliary.size(0), " rows, found ",
                    tensor.size(0));
  };
  check_anchors("salt_rows_fixed, anchor_plm", anchor_plm);
  check_anchors("salt_rows_fixed, anchor_lm", anchor_lm);
  check_anchors("salt_rows_fixed, anchor_output", anchor_output);
  STD_TORCH_CHECK(capacity >= 1 && capacity <= kCapacityLimit, "salt_rows_fixed, capacity: expected a number in [1, ",
                  kCapacityLimit, "], found ", capacity);
}

// The most picks of a pursuit.
constexpr int64_t kPursuitLimit = 256;

inline void check_pursue(const Tensor& products, const Tensor& gram, const Tensor& squares, int64_t most) {
  check_matrix("pursue, products", products);
  check_matrix("pursue, gram", gram);
  STD_TORCH_CHECK(products.scalar_type() == ScalarType::Float && gram.scalar_type() == ScalarType::Float,
                  "pursue, products and gram: expected float32");
  check_vector("pursue, squares", squares, ScalarType::Double, "float64");
  check_same_device("pursue, gram", gram, products);
  check_same_device("pursue, squares", squares, products);
  check_rows("pursue, products", products.size(0));
  STD_TORCH_CHECK(gram.size(0) == products.size(1) && gram.size(1) == products.size(1), "pursue, gram: expected ",
                  products.size(1), " rows and columns, found ", gram.size(0), " and ", gram.size(1));
  STD_TORCH_CHECK(squares.size(0) == products.size(0), "pursue, squares: expected ", products.size(0), " values, found ",
                  squares.size(0));
  STD_TORCH_CHECK(most >= 1 && most <= kPursuitLimit, "pursue, most: expected a number in [1, ", kPursuitLimit, "], found ",
                  most);
}

inline Tensor empty_on(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

inline Tensor zeros_on(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

}  // namespace saltlm
