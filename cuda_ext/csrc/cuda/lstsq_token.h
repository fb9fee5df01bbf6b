// Least squares of one token on its support, for the well-conditioned case: c = e pinv(P_k) with K <= E, by a Cholesky
// factorisation of the scaled Gram matrix in float64 and iterative refinement with residuals computed from the rows.
// Where a check fails it returns false, and the CPU operator (QR, SVD) solves the token, so that ranks are decided in
// one place.
#pragma once

#include <cmath>

#include "../contract.h"
#include "team.h"

namespace saltlm::cuda {

constexpr int kPanel = 16;  // columns that are factorised between two updates of the remaining matrix

template <class T>
struct Token {
  const T* e;          // [W] the token's row
  const T* anchors;    // [A, W]
  const int32_t* ids;  // [K] rows of its support
  int K;
  int W;         // row width, padded with zeros to a multiple of 4 (rows are 16-byte aligned)
  double ridge;  // factor of the mean squared norm of the (centred) rows; 0 for none
  bool center;
};

// The linear system: M rows p_i + shift. The K centred rows have the null vector (1, ..., 1); an orthogonal change of
// basis turns them into M = K - 1 rows with the same rank, minimum-norm solution and ridge.
template <class T>
struct System {
  const Token<T>* token;
  const double* shift;  // [W], or null without centring
  int first;            // number of support rows that are skipped at the start
  int M;

  SALTLM_BOTH const T* row(int i) const {
    const int clamped = i < M ? i : M - 1;  // rows beyond the edge of a tile: computed and discarded
    return token->anchors + static_cast<int64_t>(token->ids[first + clamped]) * token->W;
  }
};

// index into a lower triangle stored by rows
SALTLM_BOTH int64_t packed(int64_t i, int64_t j) { return i * (i + 1) / 2 + j; }

// Number of doubles of memory that solve_token needs.
SALTLM_BOTH int64_t token_memory(int64_t K, int64_t W) { return packed(K, 0) + 5 * K + 3 * W; }

template <class T>
SALTLM_BOTH void load4(const T* p, double out[4]) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  } else {
    const double2 v = reinterpret_cast<const double2*>(p)[0], w = reinterpret_cast<const double2*>(p)[1];
    out[0] = v.x, out[1] = v.y, out[2] = w.x, out[3] = w.y;
  }
#else
  for (int i = 0; i < 4; ++i) out[i] = static_cast<double>(p[i]);
#endif
}

// Position of tile `t` in a lower triangle of tiles that are numbered by rows.
SALTLM_BOTH void tile_of(int64_t t, int* row, int* column) {
  int64_t i = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
  while (packed(i + 1, 0) <= t) ++i;
  while (packed(i, 0) > t) --i;
  *row = static_cast<int>(i);
  *column = static_cast<int>(t - packed(i, 0));
}

// gram [M(M+1)/2] = products of the system's rows. Each thread computes whole 4 x 4 tiles, so no barrier is needed, and
// each entry is summed in the order of the columns for every team size.
template <class Team, class T>
SALTLM_BOTH void compute_gram(const Team& team, const System<T>& system, double* gram) {
  const int tiles = (system.M + 3) / 4;
  for (int64_t t = team.rank(); t < packed(tiles, 0); t += team.size()) {
    int ti, tj;
    tile_of(t, &ti, &tj);
    const T *a[4], *b[4];
    for (int p = 0; p < 4; ++p) a[p] = system.row(4 * ti + p), b[p] = system.row(4 * tj + p);
    double sums[4][4] = {};
    for (int w = 0; w < system.token->W; w += 4) {
      double x[4][4], y[4][4];
      for (int p = 0; p < 4; ++p) load4(a[p] + w, x[p]), load4(b[p] + w, y[p]);
      if (system.shift != nullptr)
        for (int m = 0; m < 4; ++m)
          for (int p = 0; p < 4; ++p) x[p][m] += system.shift[w + m], y[p][m] += system.shift[w + m];
      for (int p = 0; p < 4; ++p)
        for (int q = 0; q < 4; ++q)
          for (int m = 0; m < 4; ++m) sums[p][q] += x[p][m] * y[q][m];
    }
    for (int p = 0; p < 4; ++p)
      for (int q = 0; q < 4; ++q) {
        const int i = 4 * ti + p, j = 4 * tj + q;
        if (i < system.M && j <= i) gram[packed(i, j)] = sums[p][q];
      }
  }
  team.sync();
}

// Cholesky factorisation of h [M(M+1)/2], unit diagonal, in place below the diagonal. inverse_diagonal [M] gets the
// reciprocals of the factor's diagonal. Returns false, for the whole team, if a pivot is not above kSafePivot.
template <class Team>
SALTLM_BOTH bool factorize(const Team& team, double* h, int M, double* inverse_diagonal) {
  for (int start = 0; start < M; start += kPanel) {
    const int end = start + kPanel < M ? start + kPanel : M;
    // Subtracts the contribution of the finished columns [0, start) from the panel, in 4 x 4 tiles.
    const int across = (end - start + 3) / 4;
    const int64_t tiles = start == 0 ? 0 : static_cast<int64_t>((M - start + 3) / 4) * across;
    for (int64_t t = team.rank(); t < tiles; t += team.size()) {
      const int i0 = start + 4 * static_cast<int>(t / across), j0 = start + 4 * static_cast<int>(t % across);
      const double *a[4], *b[4];
      for (int p = 0; p < 4; ++p) {
        a[p] = h + packed(i0 + p < M ? i0 + p : M - 1, 0);
        b[p] = h + packed(j0 + p < M ? j0 + p : M - 1, 0);
      }
      double sums[4][4] = {};
      for (int k = 0; k < start; ++k)
        for (int p = 0; p < 4; ++p)
          for (int q = 0; q < 4; ++q) sums[p][q] += a[p][k] * b[q][k];
      for (int p = 0; p < 4; ++p)
        for (int q = 0; q < 4; ++q) {
          const int i = i0 + p, j = j0 + q;
          if (i < M && j < end && j <= i) h[packed(i, j)] -= sums[p][q];
        }
    }
    team.sync();
    // Column by column inside the panel, one thread per row. The diagonal entry itself is never overwritten, so every
    // thread computes the pivot from it.
    for (int j = start; j < end; ++j) {
      const double* row_j = h + packed(j, 0);
      double pivot = row_j[j];
      for (int k = start; k < j; ++k) pivot -= row_j[k] * row_j[k];
      if (!(pivot > kSafePivot)) return false;
      const double reciprocal = 1.0 / sqrt(pivot);
      for (int i = j + 1 + team.rank(); i < M; i += team.size()) {
        double* row_i = h + packed(i, 0);
        double remaining = row_i[j];
        for (int k = start; k < j; ++k) remaining -= row_i[k] * row_j[k];
        row_i[j] = remaining * reciprocal;
      }
      if (team.rank() == 0) inverse_diagonal[j] = reciprocal;
      team.sync();
    }
  }
  return true;
}

// Solves L L^T x = b in place: x [M] holds b on entry.
template <class Team>
SALTLM_BOTH void substitute(const Team& team, const double* h, const double* inverse_diagonal, int M, double* x) {
  for (int j = 0; j < M; ++j) {  // x[j] stays unscaled while other threads read it
    const double y = x[j] * inverse_diagonal[j];
    for (int i = j + 1 + team.rank(); i < M; i += team.size()) x[i] -= h[packed(i, j)] * y;
    team.sync();
  }
  for (int i = team.rank(); i < M; i += team.size()) x[i] *= inverse_diagonal[i];
  team.sync();
  for (int j = M - 1; j >= 0; --j) {
    const double y = x[j] * inverse_diagonal[j];
    for (int i = team.rank(); i < j; i += team.size()) x[i] -= h[packed(j, i)] * y;
    team.sync();
  }
  for (int i = team.rank(); i < M; i += team.size()) x[i] *= inverse_diagonal[i];
  team.sync();
}

// out [M] = the system's rows times v [W].
template <class Team, class T>
SALTLM_BOTH void rows_times(const Team& team, const System<T>& system, const double* v, double* out) {
  for (int i = team.group(); i < system.M; i += team.groups()) {
    const T* row = system.row(i);
    double dot = 0.0;
    for (int w = team.lane(); w < system.token->W; w += team.lanes())
      dot += (static_cast<double>(row[w]) + (system.shift != nullptr ? system.shift[w] : 0.0)) * v[w];
    dot = team.lane_sum(dot);
    if (team.lane() == 0) out[i] = dot;
  }
  team.sync();
}

// residual_row [W] = target - sum of c_i times the system's rows. Returns its squared norm.
template <class Team, class T>
SALTLM_BOTH double compute_residual(const Team& team, const System<T>& system, const double* target, const double* c,
                                    double* residual_row) {
  double squares = 0.0;
  for (int w = team.rank(); w < system.token->W; w += team.size()) {
    double sum = 0.0;
    for (int i = 0; i < system.M; ++i)
      sum += c[i] * (static_cast<double>(system.row(i)[w]) + (system.shift != nullptr ? system.shift[w] : 0.0));
    residual_row[w] = target[w] - sum;
    squares += residual_row[w] * residual_row[w];
  }
  return team.sum(squares);  // contains a barrier
}

// Norm of x [n], or of x / scale.
template <class Team>
SALTLM_BOTH double norm_of(const Team& team, const double* x, int n, const double* scale = nullptr) {
  double squares = 0.0;
  for (int i = team.rank(); i < n; i += team.size()) {
    const double value = scale != nullptr ? x[i] / scale[i] : x[i];
    squares += value * value;
  }
  return sqrt(team.sum(squares));
}

// step *= scaling, c += step, each rounded separately, so that the bits of the coefficients do not depend on whether
// the compiler fuses the two operations.
SALTLM_BOTH void add_scaled(double scaling, double* step, double* c) {
#ifdef __CUDA_ARCH__
  *step = __dmul_rn(*step, scaling);
  *c = __dadd_rn(*c, *step);
#else
  *step *= scaling;
  *c += *step;
#endif
}

// shift [W] and target [W] of the centred system.
template <class Team, class T>
SALTLM_BOTH void center_token(const Team& team, const Token<T>& token, double* shift, double* target) {
  const double root = sqrt(static_cast<double>(token.K));
  for (int w = team.rank(); w < token.W; w += team.size()) {
    double mean = 0.0;
    for (int k = 0; k < token.K; ++k)
      mean += static_cast<double>(token.anchors[static_cast<int64_t>(token.ids[k]) * token.W + w]);
    mean /= token.K;
    const double first_value = static_cast<double>(token.anchors[static_cast<int64_t>(token.ids[0]) * token.W + w]);
    shift[w] = (first_value - mean) / (root - 1.0) - mean;
    target[w] = static_cast<double>(token.e[w]) - mean;
  }
  team.sync();
}

// Scales the Gram matrix to a unit diagonal (scaling_i = 1 / sqrt(g_ii + lambda)) and factorises it. Returns false
// where a check fails.
template <class Team>
SALTLM_BOTH bool scale_and_factor(const Team& team, double* gram, int M, double lambda, double* scaling,
                                  double* inverse_diagonal) {
  double largest = 0.0, smallest = -HUGE_VAL, invalid = 0.0;
  for (int i = team.rank(); i < M; i += team.size()) {
    const double g = gram[packed(i, i)] + lambda;
    if (!(g > 0.0 && g < HUGE_VAL)) invalid = 1.0;
    largest = g > largest ? g : largest;
    smallest = -g > smallest ? -g : smallest;
    scaling[i] = 1.0 / sqrt(g);
  }
  if (team.sum(invalid) != 0.0) return false;
  largest = team.max(largest);
  smallest = -team.max(smallest);
  if (!(smallest > kMinNormRatio * kMinNormRatio * largest)) return false;
  for (int i = team.group(); i < M; i += team.groups())
    for (int j = team.lane(); j <= i; j += team.lanes())
      gram[packed(i, j)] = i == j ? 1.0 : gram[packed(i, j)] * scaling[i] * scaling[j];
  team.sync();
  return factorize(team, gram, M, inverse_diagonal);
}

// Computes the coefficients [K] of the rows (not of the centred ones) and the relative residual. Returns false if the
// CPU has to solve the token. `memory` holds token_memory(K, W) doubles of the team.
template <class Team, class T>
SALTLM_BOTH bool solve_token(const Team& team, const Token<T>& token, double* memory, double* coefficients,
                             float* residual) {
  const int M = token.center ? token.K - 1 : token.K;
  if (M < 1 || M > token.W) return false;
  double* target = memory;
  double* residual_row = target + token.W;
  double* shift = residual_row + token.W;
  double *c = shift + token.W, *step = c + token.K, *scaling = step + token.K, *inverse_diagonal = scaling + token.K;
  double* plain = inverse_diagonal + token.K;
  double* gram = plain + token.K;
  if (token.center) {
    center_token(team, token, shift, target);
  } else {
    for (int w = team.rank(); w < token.W; w += team.size()) target[w] = static_cast<double>(token.e[w]);
    team.sync();
  }
  const System<T> system{&token, token.center ? shift : nullptr, token.center ? 1 : 0, M};
  compute_gram(team, system, gram);
  double lambda = 0.0;
  for (int i = team.rank(); i < M; i += team.size()) lambda += gram[packed(i, i)];
  lambda = team.sum(lambda) * token.ridge / token.K;
  if (!scale_and_factor(team, gram, M, lambda, scaling, inverse_diagonal)) return false;

  for (int i = team.rank(); i < M; i += team.size()) c[i] = 0.0;
  team.sync();
  const double noise = kCorrectionNoise * norm_of(team, target, token.W);
  bool converged = false;
  for (int iteration = 0; iteration <= kMaxRefinements && !converged; ++iteration) {
    // Iteration 0 solves, later ones correct. The right-hand side is always P (target - P^T c) - lambda c.
    compute_residual(team, system, target, c, residual_row);
    rows_times(team, system, residual_row, step);
    for (int i = team.rank(); i < M; i += team.size()) step[i] = (step[i] - lambda * c[i]) * scaling[i];
    team.sync();
    substitute(team, gram, inverse_diagonal, M, step);
    for (int i = team.rank(); i < M; i += team.size()) {
      add_scaled(scaling[i], &step[i], &c[i]);
    }
    team.sync();
    // Norms in units of the rows' norms, so that a tiny row with a huge coefficient does not dominate.
    const double correction_norm = norm_of(team, step, M, scaling), solution_norm = norm_of(team, c, M, scaling);
    if (!(correction_norm < HUGE_VAL && solution_norm < HUGE_VAL)) return false;
    if (iteration > 0 && correction_norm > kMaxFirstCorrection * solution_norm + noise) return false;
    converged = iteration > 0 && correction_norm <= kConverged * solution_norm + noise;
  }
  if (!converged) return false;

  if (token.center) {
    double total = 0.0;
    for (int i = team.rank(); i < M; i += team.size()) total += c[i];
    total = team.sum(total);
    const double K = token.K, root = sqrt(K);
    for (int k = team.rank(); k < token.K; k += team.size())
      plain[k] = 1.0 / K + (k == 0 ? total / root : c[k - 1] - total / (root * (root - 1.0)));
    for (int w = team.rank(); w < token.W; w += team.size()) target[w] = static_cast<double>(token.e[w]);
  } else {
    for (int k = team.rank(); k < token.K; k += team.size()) plain[k] = c[k];
  }
  team.sync();
  const double target_norm = norm_of(team, target, token.W);
  const double residual_norm =
      sqrt(compute_residual(team, System<T>{&token, nullptr, 0, token.K}, target, plain, residual_row));
  for (int k = team.rank(); k < token.K; k += team.size()) coefficients[k] = plain[k];
  if (team.rank() == 0) *residual = target_norm > 0.0 ? static_cast<float>(residual_norm / target_norm) : 0.0f;
  return true;
}

}  // namespace saltlm::cuda
