// The careful path of one row's least squares, for host and device: pivoted Householder QR, an estimate of the
// condition number, and a one-sided Jacobi SVD where the rank is in doubt. The fast path (Cholesky factorisation of the
// Gram matrix, in the kernels) falls back to it when its checks fail.
//
// All threads of a team execute the same calls. A Team has
//   rank(), size(), sync();
//   dot(a, b, n)            the same value for every thread, in a fixed order of summation
//   axpy(f, x, y, n)        y += f x
//   rotate(a, b, c, s, n)   (a, b) <- (c a - s b, s a + c b)
//   swap(a, b, n)
// Each of them ends with its results visible to the whole team. A CPU thread is a team of one.
//
// Matrices are row-major. X has n rows of length len >= n and leading dimension ld. The "columns" of the factorised
// matrix are the rows of X, so that every inner loop runs over contiguous values.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SALTLM_HD __host__ __device__
#else
#define SALTLM_HD
#endif

namespace saltlm {

struct Outcome {
  int64_t rank = 0;
  double condition = 0;  // largest over smallest kept singular value (0 for rank 0); an estimate on the QR path
};

// Work arrays of the careful path, n doubles each unless stated otherwise.
struct CarefulScratch {
  double* diagonal;  // diagonal of R
  double* tau;       // factors of the reflectors
  double* norms;     // column norms, then singular values squared
  double* right;     // max(n, len): the right-hand side while it is transformed
  double* vector;    // n: current vector of the estimates, later the solution before the permutation is undone
  double* other;     // n
  int64_t* order;    // n: order[i] is the original index of column i
  double* square;    // n x n: the matrix that the SVD rotates
};

// X^T = Q R with column pivoting. Afterwards X[i][j] holds R[j][i] for j < i, diagonal[i] is R[i][i], and X[i][i + 1
// ...] is the tail of reflector i (its head is 1).
template <class Team>
SALTLM_HD inline void pivoted_qr(Team& team, double* X, int64_t n, int64_t len, int64_t ld, const CarefulScratch& w) {
  for (int64_t i = 0; i < n; ++i) {
    const double norm = team.dot(X + i * ld, X + i * ld, len);
    if (team.rank() == 0) {
      w.norms[i] = norm;
      w.other[i] = norm;
      w.order[i] = i;
    }
  }
  team.sync();
  for (int64_t j = 0; j < n; ++j) {
    int64_t best = j;
    for (int64_t i = j + 1; i < n; ++i)
      if (w.norms[i] > w.norms[best]) best = i;
    team.sync();
    if (best != j) {
      team.swap(X + j * ld, X + best * ld, len);
      if (team.rank() == 0) {
        const int64_t moved = w.order[j];
        w.order[j] = w.order[best];
        w.order[best] = moved;
        w.norms[best] = w.norms[j];
        w.other[best] = w.other[j];
      }
      team.sync();
    }
    double* v = X + j * ld + j;
    const int64_t rest = len - j;
    const double head = v[0];
    const double norm = std::sqrt(team.dot(v, v, rest));
    if (norm == 0) {
      if (team.rank() == 0) w.diagonal[j] = w.tau[j] = 0;
      team.sync();
      continue;
    }
    const double beta = head >= 0 ? -norm : norm;
    const double inverse = 1 / (head - beta), tau = (beta - head) / beta;
    for (int64_t k = 1 + team.rank(); k < rest; k += team.size()) v[k] *= inverse;
    if (team.rank() == 0) {
      w.diagonal[j] = beta;
      w.tau[j] = tau;
      v[0] = 1;  // so that the reflector is one contiguous vector while it is applied
    }
    team.sync();
    for (int64_t i = j + 1; i < n; ++i) {
      double* column = X + i * ld + j;
      team.axpy(-tau * team.dot(v, column, rest), v, column, rest);
      // Norms are downdated, and recomputed once cancellation has destroyed half of the digits.
      double left = w.norms[i] - column[0] * column[0];
      const bool lost = left <= 1e-8 * w.other[i];
      if (lost) left = team.dot(column + 1, column + 1, rest - 1);
      team.sync();
      if (team.rank() == 0) {
        w.norms[i] = left;
        if (lost) w.other[i] = left;
      }
    }
    team.sync();
  }
}

// y <- Q^T y (forward) or Q y (backward) with the reflectors in X; y has len values.
template <class Team>
SALTLM_HD inline void apply_q(Team& team, const double* X, int64_t n, int64_t len, int64_t ld, const double* tau,
                              bool transposed, double* y) {
  for (int64_t step = 0; step < n; ++step) {
    const int64_t j = transposed ? step : n - 1 - step;
    const double* tail = X + j * ld + j + 1;
    const int64_t rest = len - j - 1;
    const double factor = tau[j] * (y[j] + team.dot(tail, y + j + 1, rest));
    team.sync();
    if (team.rank() == 0) y[j] -= factor;
    team.axpy(-factor, tail, y + j + 1, rest);
    team.sync();
  }
}

// x <- L^-1 x and x <- L^-T x. L = R^T is stored below X's diagonal, its diagonal separately.
template <class Team>
SALTLM_HD inline void solve_lower(Team& team, const double* X, int64_t n, int64_t ld, const double* diagonal,
                                  double* x) {
  for (int64_t i = 0; i < n; ++i) {
    const double value = (x[i] - team.dot(X + i * ld, x, i)) / diagonal[i];
    team.sync();
    if (team.rank() == 0) x[i] = value;
    team.sync();
  }
}

template <class Team>
SALTLM_HD inline void solve_lower_transposed(Team& team, const double* X, int64_t n, int64_t ld, const double* diagonal,
                                             double* x) {
  for (int64_t i = n - 1; i >= 0; --i) {
    const double value = x[i] / diagonal[i];
    team.sync();
    if (team.rank() == 0) x[i] = value;
    team.axpy(-value, X + i * ld, x, i);
    team.sync();
  }
}

// Estimates L's largest singular value (from below) by power iteration and its smallest (from above) by inverse
// iteration, both from a fixed start vector. A singular L gives smallest = 0.
template <class Team>
SALTLM_HD inline void estimate_extremes(Team& team, const double* X, int64_t n, int64_t ld, const double* diagonal,
                                        double* x, double* y, double* largest, double* smallest) {
  *smallest = 0;
  *largest = 0;
  for (int inverse = 0; inverse < 2; ++inverse) {
    // The start vector is irregular, so that it is unlikely to be orthogonal to a singular vector.
    for (int64_t i = team.rank(); i < n; i += team.size()) x[i] = 1 + 0.5 * static_cast<double>((i * 7919) % 101) / 101;
    team.sync();
    double growth = 0;
    for (int step = 0; step < 8; ++step) {
      const double norm = std::sqrt(team.dot(x, x, n));
      if (!(norm > 0) || !std::isfinite(norm)) {
        growth = norm;
        break;
      }
      for (int64_t i = team.rank(); i < n; i += team.size()) x[i] /= norm;
      team.sync();
      if (inverse) {
        solve_lower(team, X, n, ld, diagonal, x);
        solve_lower_transposed(team, X, n, ld, diagonal, x);
      } else {
        for (int64_t i = team.rank(); i < n; i += team.size()) y[i] = diagonal[i] * x[i];
        team.sync();
        for (int64_t i = 0; i < n; ++i) team.axpy(x[i], X + i * ld, y, i);
        for (int64_t i = 0; i < n; ++i) {
          const double value = team.dot(X + i * ld, y, i) + diagonal[i] * y[i];
          if (team.rank() == 0) x[i] = value;
        }
        team.sync();
      }
      growth = std::sqrt(team.dot(x, x, n));
    }
    if (!inverse) *largest = std::sqrt(growth);
    if (inverse && growth > 0 && std::isfinite(growth)) *smallest = 1 / std::sqrt(growth);
  }
}

// x = pinv(M) b. Rotates the rows of [M | b] until they are orthogonal: then row i is sigma_i v_i^T and b_i is u_i^T b,
// and x = sum row_i b_i / (sigma_i^2 + lambda) over the singular values above the tolerance, at most `max_rank` of
// them.
template <class Team>
SALTLM_HD inline Outcome jacobi_pinv(Team& team, double* M, int64_t n, double* b, double lambda, double relative,
                                     double norm_floor, int64_t max_rank, double* squares, double* x) {
  constexpr int kSweeps = 40;
  const double orthogonal = 1e-15 * std::sqrt(static_cast<double>(n));  // about the rounding error of the products
  for (int64_t i = 0; i < n; ++i) {
    const double square = team.dot(M + i * n, M + i * n, n);
    if (team.rank() == 0) squares[i] = square;
  }
  team.sync();
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool turned = false;
    double top = 0;
    for (int64_t i = 0; i < n; ++i) top = squares[i] > top ? squares[i] : top;
    const double negligible = top * 1e-34;  // Rows below 1e-17 of the largest are far below every tolerance.
    for (int64_t p = 0; p + 1 < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        if (squares[p] <= negligible || squares[q] <= negligible) continue;
        double* row_p = M + p * n;
        double* row_q = M + q * n;
        const double product = team.dot(row_p, row_q, n);
        if (std::fabs(product) <= orthogonal * std::sqrt(squares[p]) * std::sqrt(squares[q])) continue;
        turned = true;
        const double zeta = (squares[q] - squares[p]) / (2 * product);
        const double t = (zeta >= 0 ? 1 : -1) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta));
        const double c = 1 / std::sqrt(1 + t * t), s = c * t;
        team.rotate(row_p, row_q, c, s, n);
        const double square_p = team.dot(row_p, row_p, n), square_q = team.dot(row_q, row_q, n);
        team.sync();
        if (team.rank() == 0) {
          const double old = b[p];
          b[p] = c * old - s * b[q];
          b[q] = s * old + c * b[q];
          squares[p] = square_p;
          squares[q] = square_q;
        }
        team.sync();
      }
    }
    if (!turned) break;
  }
  double largest = norm_floor * norm_floor;
  for (int64_t i = 0; i < n; ++i) largest = squares[i] + lambda > largest ? squares[i] + lambda : largest;
  for (int64_t i = team.rank(); i < n; i += team.size()) x[i] = 0;
  team.sync();
  Outcome outcome;
  double smallest = largest, kept_largest = 0;
  const double cut = relative * std::sqrt(largest);
  for (int64_t i = 0; i < n; ++i) {
    const double square = squares[i] + lambda;
    if (!(std::sqrt(square) > cut)) continue;
    if (outcome.rank == max_rank) break;  // only if a ridge lifts rounding noise above the tolerance
    ++outcome.rank;
    smallest = square < smallest ? square : smallest;
    kept_largest = square > kept_largest ? square : kept_largest;
    team.axpy(b[i] / square, M + i * n, x, n);
  }
  outcome.condition = outcome.rank ? std::sqrt(kept_largest / smallest) : 0;
  return outcome;
}

// Least squares on the careful path. wide: the n rows of X are the support's rows, `target` has len values, c gets n
// values. Otherwise X is the support transposed (n = E rows of length K), `target` has n values, c gets len values.
// relative: max(K, E) * kEpsilon. norm_floor: a norm that counts as a singular value in the tolerance (0 for none).
// lambda: the ridge term. X is overwritten.
template <class Team>
SALTLM_HD inline Outcome careful_lstsq(Team& team, double* X, int64_t n, int64_t len, int64_t ld, bool wide,
                                       const double* target, double lambda, double relative, double norm_floor,
                                       const CarefulScratch& w, double* c) {
  pivoted_qr(team, X, n, len, ld, w);
  double largest, smallest;
  estimate_extremes(team, X, n, ld, w.diagonal, w.vector, w.other, &largest, &smallest);
  // wide: minimise |R x - Q^T e|, with x the permuted coefficients. tall: R^T d = e (permuted), coefficients = Q d.
  const int64_t right_size = wide ? len : n;
  for (int64_t i = team.rank(); i < right_size; i += team.size()) w.right[i] = wide ? target[i] : target[w.order[i]];
  team.sync();
  if (wide) apply_q(team, X, n, len, ld, w.tau, true, w.right);
  Outcome outcome;
  // The smallest singular value is estimated from above, so full rank is accepted only with a margin of 1,000.
  const double top = largest > norm_floor ? largest : norm_floor;
  if (lambda == 0 && smallest > 1e3 * relative * top) {
    for (int64_t i = team.rank(); i < n; i += team.size()) w.vector[i] = w.right[i];
    team.sync();
    if (wide)
      solve_lower_transposed(team, X, n, ld, w.diagonal, w.vector);
    else
      solve_lower(team, X, n, ld, w.diagonal, w.vector);
    outcome.rank = n;
    outcome.condition = largest / smallest;
  } else {
    // M = R for wide, R^T for tall: x = pinv(M) right.
    for (int64_t index = team.rank(); index < n * n; index += team.size()) {
      const int64_t i = index / n, j = index % n;
      const int64_t low = wide ? j : i, high = wide ? i : j;  // R[high][low], high <= low
      w.square[index] = high == low ? w.diagonal[i] : high < low ? X[low * ld + high] : 0;
    }
    team.sync();
    outcome = jacobi_pinv(team, w.square, n, w.right, lambda, relative, norm_floor, n, w.norms, w.vector);
  }
  if (wide) {
    for (int64_t i = team.rank(); i < n; i += team.size()) c[w.order[i]] = w.vector[i];
  } else {
    for (int64_t i = team.rank(); i < len; i += team.size()) c[i] = i < n ? w.vector[i] : 0;
    team.sync();
    apply_q(team, X, n, len, ld, w.tau, false, c);
  }
  team.sync();
  return outcome;
}

}  // namespace saltlm
