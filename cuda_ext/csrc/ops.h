// Argument checks of the operators, the same for every device. Numeric contract: contract.h.
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

#include "contract.h"

namespace saltlm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_real(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// Checks for a matrix of real numbers; `what` names operator and argument in the message.
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

// Ids are int32, so A must be below 2^31. Offsets are int64.
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
  STD_TORCH_CHECK(most_entries >= 0, "sparsemax_support, most_entries: expected >= 0 (0 is any number), found ",
                  most_entries);
}

// Checks types and shapes only. Whether the offsets ascend from 0 to nnz and the ids lie in [0, A) depends on the
// values, which each device checks (check_values on the CPU, checked_offsets on CUDA) before a kernel reads through
// them.
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
  STD_TORCH_CHECK(std::isfinite(ridge) && ridge >= 0,
                  "support_lstsq, ridge: expected a finite number >= 0 (0 is none), found ", ridge);
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
  STD_TORCH_CHECK(squares.size(0) == products.size(0), "pursue, squares: expected ", products.size(0),
                  " values, found ", squares.size(0));
  STD_TORCH_CHECK(most >= 1 && most <= kMaxPicks, "pursue, most: expected a number in [1, ", kMaxPicks, "], found ",
                  most);
}

inline Tensor empty_on(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

inline Tensor zeros_on(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
}

}  // namespace saltlm
