// The numeric contract of the operators: status codes, tolerances and limits, the same for CPU and CUDA.
//
// This header includes nothing of torch or CUDA, so that the kernels, the device maths and the argument checks can all
// include it. The Python side keeps the status names (saltlm.operators.results.STATUSES, in the order of the codes) and the
// reference implementation's tolerances (saltlm.operators.reference); tests/operators/test_contract.py compares them with this file.
#pragma once

#include <cstdint>

namespace saltlm {

// Result of one row's least squares.
enum Status : uint8_t {
  kFullRank = 0,
  kIllConditioned = 1,  // full rank, but the condition number is above kIllCondition
  kRankDeficient = 2,
  kNoSupport = 3,  // empty support, or only zero rows
  kNonFinite = 4,  // a NaN or infinity in the row, in a row of its support, or in the coefficients
};

// The residual |e - c P| / |e| of a row without coefficients (they are zero then).
constexpr float kNothingExplained = 1.0f;

// The machine epsilon of float64. The rank is the number of singular values above max(K, E) * kEpsilon * (the largest
// one), which is the default of torch.linalg.pinv. With centring, the largest norm of a row before centring counts as a
// singular value in this rule, because the centred rows contain rounding errors of that size.
constexpr double kEpsilon = 2.220446049250313e-16;

// A full-rank support is reported as ill-conditioned if its condition number (largest over smallest singular value) is
// above this. The kernels estimate the number, so within a small factor of it either status is possible.
constexpr double kIllCondition = 1e4;

// Acceptance of the fast solution (Cholesky factorisation of the Gram matrix, then iterative refinement with residuals
// computed from the rows). All pivots of the Gram matrix, scaled to a unit diagonal, must be above this, ...
constexpr double kMinPivot = 1e-8;
// ... the ratio of the smallest to the largest row norm must be above this (the scaling would hide that a tiny row is
// below pinv's tolerance), ...
constexpr double kMinNormRatio = 1e-6;
// ... and the first correction must be at most this share of the solution.
constexpr double kMaxFirstCorrection = 1e-4;
// Refinement ends when a correction is at most this share of the solution. If it does not end within kMaxRefinements
// corrections, the careful path (QR, SVD; solve.h) solves the row.
constexpr double kConverged = 1e-10;
constexpr int kMaxRefinements = 4;
// A correction of this share of the right-hand side's norm is rounding error.
constexpr double kCorrectionNoise = 1e-14;
// With all pivots above this the support is well-conditioned. Otherwise the CPU estimates the condition number; the
// CUDA kernel leaves the row to the CPU.
constexpr double kSafePivot = 1e-5;

// The largest number of picks of `pursue`.
constexpr int64_t kMaxPicks = 256;

}  // namespace saltlm
