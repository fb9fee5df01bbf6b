// The schemas. They are private: saltlm.ops is the one caller, it checks arguments with friendlier messages and chunks.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(saltlm, m) {
  // max_support 0 is no cap. Once supports hold most_entries (0: any number) together, later rows are left out: offsets has
  // 1 + the rows that are there, at least one of N > 0. slack bounds |float32 product of normalised rows - true cosine| for the device's current
  // product precision; a kernel that makes its own product with a bound of its own may ignore it.
  m.def(
      "sparsemax_support(Tensor new_auxiliary, Tensor anchor_auxiliary, int max_support, float slack,"
      " int most_entries) -> (Tensor offsets, Tensor ids, Tensor weights)");
  // ridge 0 is none.
  m.def(
      "support_lstsq(Tensor new_plm, Tensor anchor_plm, Tensor offsets, Tensor ids, float ridge, bool center)"
      " -> (Tensor coefficients, Tensor rank, Tensor residual, Tensor status)");
  m.def("combine(Tensor offsets, Tensor ids, Tensor coefficients, Tensor anchor_lm) -> Tensor");
  // The same into `rows`, contiguous and of combine's dtype. On CPUs alone: fresh memory costs a third of the sums there.
  m.def("combine_into(Tensor offsets, Tensor ids, Tensor coefficients, Tensor anchor_lm, Tensor(a!) rows) -> Tensor");
  // The three in one, on CUDA devices alone, without waiting for the device: rows of supports of up to `capacity` anchors, and the
  // same coefficients on anchor_output [A, D'], D' = 0 for none. size is -1 where a support does not fit, status 255 and the rows
  // zero where a token is left over.
  m.def(
      "salt_rows_fixed(Tensor new_auxiliary, Tensor anchor_auxiliary, Tensor new_plm, Tensor anchor_plm, Tensor anchor_lm,"
      " Tensor anchor_output, int max_support, float slack, int capacity, float ridge, bool center)"
      " -> (Tensor rows, Tensor output_rows, Tensor size, Tensor rank, Tensor residual, Tensor status)");
  // Orthogonal matching pursuit from the products of N rows with A anchors, the anchors' Gram matrix and the rows' squared
  // norms. size -1 leaves a row to a more careful way.
  m.def("pursue(Tensor products, Tensor gram, Tensor squares, int most) -> (Tensor picks, Tensor size)");
  // The instruction-set level of the CPU kernels: base, avx2, avx512 or amx (avx512, and bfloat16 products on tiles).
  m.def("cpu_level() -> str");
  // Seconds of processor time that each stage of the CPU kernels took since the last call, in the order of
  // saltlm.ops_profile.STAGES; they are counted from here on if `on`.
  m.def("cpu_stages(bool on) -> float[]");
}
