// Least squares of one token on its support, for the well-conditioned case: c = e pinv(P_k) with K <= E, through the
// scaled Cholesky factorisation of the Gram matrix in float64, refined with residuals computed from the rows
// themselves. What this cannot settle beyond doubt returns false and is solved by the CPU operator (QR, SVD), so that
// rank decisions are made in one place.
#pragma once

#include <cmath>

#include "team.h"

namespace saltlm::cuda {

// As in ops.h, which says why. Settled here: only what those tests pass with room.
constexpr double kPivotWithRoom = 1e-5;  // below it the condition number is estimated, which is the CPU's business
constexpr double kLeastNormRatio = 1e-6;
constexpr double kFirstStep = 1e-4;
constexpr double kLastStep = 1e-10;
constexpr double kNoise = 1e-14;  // of the token's length: a step that small is rounding
constexpr int kSteps = 4;
constexpr int kPanel = 16;  // columns that the factorisation settles between two updates of the rest

template <class T>
struct Token {
  const T* e;            // [W] the token's own row
  const T* anchors;      // [A, W]
  const int32_t* ids;    // [K] rows of its support
  int K;
  int W;                 // row width, padded with zeros to a multiple of 4 (rows are 16-byte aligned)
  double ridge;          // times the mean squared norm of the (centred) rows; 0 is none
  bool center;
};

// The system that is solved: M rows p_i + shift. Centred rows have the null vector 1; an orthogonal change of basis
// turns the K centred rows into M = K - 1 that carry the same rank, minimum norm and ridge.
template <class T>
struct System {
  const Token<T>* token;
  const double* shift;  // [W], or null without centring
  int first;            // support rows before it are not in the system
  int M;

  SALTLM_BOTH const T* row(int i) const {
    const int clamped = i < M ? i : M - 1;  // the edge of a tile: computed and thrown away
    return token->anchors + static_cast<int64_t>(token->ids[first + clamped]) * token->W;
  }
};

SALTLM_BOTH int64_t packed(int64_t i, int64_t j) { return i * (i + 1) / 2 + j; }  // lower triangle by rows

// Doubles of memory that solve_token needs.
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

// Tile `t` of a lower triangle of tiles, counted by rows.
SALTLM_BOTH void tile_of(int64_t t, int* row, int* column) {
  int64_t i = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
  while (packed(i + 1, 0) <= t) ++i;
  while (packed(i, 0) > t) --i;
  *row = static_cast<int>(i);
  *column = static_cast<int>(t - packed(i, 0));
}

// gram [M(M+1)/2] = the products of the system's rows. Each thread owns whole 4 x 4 tiles: no barrier, and each entry's
// additions are in the order of the columns, whatever the team.
template <class Team, class T>
SALTLM_BOTH void gram_of(const Team& team, const System<T>& system, double* gram) {
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

// Cholesky factorisation of h [M(M+1)/2], unit diagonal, in place below the diagonal; inverse [M] gets the reciprocals
// of the factor's diagonal. False, for the whole team, when a pivot is not above kPivotWithRoom.
template <class Team>
SALTLM_BOTH bool factor(const Team& team, double* h, int M, double* inverse) {
  for (int start = 0; start < M; start += kPanel) {
    const int end = start + kPanel < M ? start + kPanel : M;
    // What the finished columns [0, start) take from the panel, in 4 x 4 tiles.
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
    // Column by column inside the panel, a thread per row. The diagonal entry itself is never overwritten, so every
    // thread can work out the pivot from it.
    for (int j = start; j < end; ++j) {
      const double* row_j = h + packed(j, 0);
      double pivot = row_j[j];
      for (int k = start; k < j; ++k) pivot -= row_j[k] * row_j[k];
      if (!(pivot > kPivotWithRoom)) return false;
      const double reciprocal = 1.0 / sqrt(pivot);
      for (int i = j + 1 + team.rank(); i < M; i += team.size()) {
        double* row_i = h + packed(i, 0);
        double rest = row_i[j];
        for (int k = start; k < j; ++k) rest -= row_i[k] * row_j[k];
        row_i[j] = rest * reciprocal;
      }
      if (team.rank() == 0) inverse[j] = reciprocal;
      team.sync();
    }
  }
  return true;
}

// x [M] becomes the solution of L L^T x = x.
template <class Team>
SALTLM_BOTH void substitute(const Team& team, const double* h, const double* inverse, int M, double* x) {
  for (int j = 0; j < M; ++j) {  // x[j] stays unscaled while others read it
    const double y = x[j] * inverse[j];
    for (int i = j + 1 + team.rank(); i < M; i += team.size()) x[i] -= h[packed(i, j)] * y;
    team.sync();
  }
  for (int i = team.rank(); i < M; i += team.size()) x[i] *= inverse[i];
  team.sync();
  for (int j = M - 1; j >= 0; --j) {
    const double y = x[j] * inverse[j];
    for (int i = team.rank(); i < j; i += team.size()) x[i] -= h[packed(j, i)] * y;
    team.sync();
  }
  for (int i = team.rank(); i < M; i += team.size()) x[i] *= inverse[i];
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

// rest [W] = target - sum of c_i times the system's rows; returns its squared norm.
template <class Team, class T>
SALTLM_BOTH double rest_of(const Team& team, const System<T>& system, const double* target, const double* c,
                           double* rest) {
  double squares = 0.0;
  for (int w = team.rank(); w < system.token->W; w += team.size()) {
    double sum = 0.0;
    for (int i = 0; i < system.M; ++i)
      sum += c[i] * (static_cast<double>(system.row(i)[w]) + (system.shift != nullptr ? system.shift[w] : 0.0));
    rest[w] = target[w] - sum;
    squares += rest[w] * rest[w];
  }
  return team.sum(squares);  // a barrier too
}

// Length of x [n], or of x / scale.
template <class Team>
SALTLM_BOTH double norm_of(const Team& team, const double* x, int n, const double* scale = nullptr) {
  double squares = 0.0;
  for (int i = team.rank(); i < n; i += team.size()) {
    const double value = scale != nullptr ? x[i] / scale[i] : x[i];
    squares += value * value;
  }
  return sqrt(team.sum(squares));
}

// step *= d, c += step, each rounded: fused or not as a compiler likes, two kernels with this code would give other bits.
SALTLM_BOTH void add_scaled(double d, double* step, double* c) {
#ifdef __CUDA_ARCH__
  *step = __dmul_rn(*step, d);
  *c = __dadd_rn(*c, *step);
#else
  *step *= d;
  *c += *step;
#endif
}

// shift [W] and target [W] of the centred problem.
template <class Team, class T>
SALTLM_BOTH void center_token(const Team& team, const Token<T>& token, double* shift, double* target) {
  const double root = sqrt(static_cast<double>(token.K));
  for (int w = team.rank(); w < token.W; w += team.size()) {
    double mean = 0.0;
    for (int k = 0; k < token.K; ++k)
      mean += static_cast<double>(token.anchors[static_cast<int64_t>(token.ids[k]) * token.W + w]);
    mean /= token.K;
    const double head = static_cast<double>(token.anchors[static_cast<int64_t>(token.ids[0]) * token.W + w]);
    shift[w] = (head - mean) / (root - 1.0) - mean;
    target[w] = static_cast<double>(token.e[w]) - mean;
  }
  team.sync();
}

// Scales the Gram matrix to unit diagonal (d_i = 1 / sqrt(g_ii + lambda)) and factors it; false when it is not settled.
template <class Team>
SALTLM_BOTH bool scale_and_factor(const Team& team, double* gram, int M, double lambda, double* d, double* inverse) {
  double largest = 0.0, least = -HUGE_VAL, strange = 0.0;
  for (int i = team.rank(); i < M; i += team.size()) {
    const double g = gram[packed(i, i)] + lambda;
    if (!(g > 0.0 && g < HUGE_VAL)) strange = 1.0;
    largest = g > largest ? g : largest;
    least = -g > least ? -g : least;
    d[i] = 1.0 / sqrt(g);
  }
  if (team.sum(strange) != 0.0) return false;
  largest = team.max(largest);
  least = -team.max(least);
  if (!(least > kLeastNormRatio * kLeastNormRatio * largest)) return false;
  for (int i = team.group(); i < M; i += team.groups())
    for (int j = team.lane(); j <= i; j += team.lanes())
      gram[packed(i, j)] = i == j ? 1.0 : gram[packed(i, j)] * d[i] * d[j];
  team.sync();
  return factor(team, gram, M, inverse);
}

// coefficients [K] of the plain rows and the relative residual, or false when the CPU has to settle the token.
// `memory` holds token_memory(K, W) doubles of the team.
template <class Team, class T>
SALTLM_BOTH bool solve_token(const Team& team, const Token<T>& token, double* memory, double* coefficients,
                             float* residual) {
  const int M = token.center ? token.K - 1 : token.K;
  if (M < 1 || M > token.W) return false;
  double* target = memory;
  double* rest = target + token.W;
  double* shift = rest + token.W;
  double *c = shift + token.W, *step = c + token.K, *d = step + token.K, *inverse = d + token.K;
  double* plain = inverse + token.K;
  double* gram = plain + token.K;
  if (token.center) {
    center_token(team, token, shift, target);
  } else {
    for (int w = team.rank(); w < token.W; w += team.size()) target[w] = static_cast<double>(token.e[w]);
    team.sync();
  }
  const System<T> system{&token, token.center ? shift : nullptr, token.center ? 1 : 0, M};
  gram_of(team, system, gram);
  double lambda = 0.0;
  for (int i = team.rank(); i < M; i += team.size()) lambda += gram[packed(i, i)];
  lambda = team.sum(lambda) * token.ridge / token.K;
  if (!scale_and_factor(team, gram, M, lambda, d, inverse)) return false;

  for (int i = team.rank(); i < M; i += team.size()) c[i] = 0.0;
  team.sync();
  const double noise = kNoise * norm_of(team, target, token.W);
  bool settled = false;
  for (int turn = 0; turn <= kSteps && !settled; ++turn) {
    // turn 0 solves, the later ones correct: the right side is always P (target - P^T c) - lambda c
    rest_of(team, system, target, c, rest);
    rows_times(team, system, rest, step);
    for (int i = team.rank(); i < M; i += team.size()) step[i] = (step[i] - lambda * c[i]) * d[i];
    team.sync();
    substitute(team, gram, inverse, M, step);
    for (int i = team.rank(); i < M; i += team.size()) {
      add_scaled(d[i], &step[i], &c[i]);
    }
    team.sync();
    // in units of the rows' lengths, so that a tiny row with a huge coefficient does not speak for all
    const double moved = norm_of(team, step, M, d), size = norm_of(team, c, M, d);
    if (!(moved < HUGE_VAL && size < HUGE_VAL)) return false;
    if (turn > 0 && moved > kFirstStep * size + noise) return false;
    settled = turn > 0 && moved <= kLastStep * size + noise;
  }
  if (!settled) return false;

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
  const double length = norm_of(team, target, token.W);
  const double left = sqrt(rest_of(team, System<T>{&token, nullptr, 0, token.K}, target, plain, rest));
  for (int k = team.rank(); k < token.K; k += team.size()) coefficients[k] = plain[k];
  if (team.rank() == 0) *residual = length > 0.0 ? static_cast<float>(left / length) : 0.0f;
  return true;
}

}  // namespace saltlm::cuda
