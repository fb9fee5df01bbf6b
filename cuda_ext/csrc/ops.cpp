// The schemas. They are private: saltlm.operators.ops calls them, after checks with more helpful messages, in chunks of rows.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(saltlm, m) {
  // max_support: 0 for no cap. most_entries: a bound on the total number of entries (0 for none). Once the supports
  // reach it, later rows are left out; offsets has 1 + (number of rows done) values, and at least one row is done if N
  // > 0. slack: bound on |float32 product of normalised rows - true cosine| at the device's current product precision.
  // A kernel whose product has an error bound of its own ignores it.
  m.def(
      "sparsemax_support(Tensor new_auxiliary, Tensor anchor_auxiliary, int max_support, float slack,"
      " int most_entries) -> (Tensor offsets, Tensor ids, Tensor weights)");
  // ridge: 0 for none.
  m.def(
      "support_lstsq(Tensor new_plm, Tensor anchor_plm, Tensor offsets, Tensor ids, float ridge, bool center)"
      " -> (Tensor coefficients, Tensor rank, Tensor residual, Tensor status)");
  m.def("combine(Tensor offsets, Tensor ids, Tensor coefficients, Tensor anchor_lm) -> Tensor");
  // Writes to `rows`, contiguous and of the dtype that `combine` returns; returns bool [N], which rows are finite. On
  // the CPU only, where page faults of newly allocated memory would cost a third of the time of the sums.
  m.def("combine_into(Tensor offsets, Tensor ids, Tensor coefficients, Tensor anchor_lm, Tensor(a!) rows) -> Tensor");
  // Orthogonal matching pursuit, given the products of N rows with A anchors, the anchors' Gram matrix and the rows'
  // squared norms. size: number of picks of each row, or -1 if float32 is not precise enough for it.
  m.def("pursue(Tensor products, Tensor gram, Tensor squares, int max_picks) -> (Tensor picks, Tensor size)");
  // The instruction-set level of the CPU kernels: base, avx2, avx512 or amx (avx512 with bfloat16 products on AMX
  // tiles).
  m.def("cpu_level() -> str");
  // Processor time in seconds of each stage of the CPU kernels since the last call, in the order of
  // saltlm.operators.profile.STAGES. `enable`: whether time is measured from now on.
  m.def("cpu_stages(bool enable) -> float[]");
}
