// Small dense linear algebra of the fast path: Gram matrices, a blocked Cholesky factorisation, and its solves.
// Included by kernels_solve.cpp only. Sizes are padded to multiples of eight (`padded`); the padding is an identity
// matrix.
#pragma once

#include "lanes.h"

namespace {

constexpr int64_t kPanel = 8;

template <int J>
inline void gram_tile(const double* X, int64_t ldx, int64_t length, int64_t i, int64_t j, double* G, int64_t ldg) {
  double out[4][J];
  dots<4, J>(X + i * ldx, ldx, X + j * ldx, ldx, length, out);
  for (int u = 0; u < 4; ++u)
    for (int v = 0; v < J; ++v) G[(i + u) * ldg + j + v] += out[u][v];
}

// Adds the lower triangle of X X^T to G, for n rows (n a multiple of 4). Twelve sums stay in registers at a time.
void add_row_products(const double* X, int64_t n, int64_t ldx, int64_t length, double* G, int64_t ldg) {
  for (int64_t i = 0; i < n; i += 4) {
    int64_t j = 0;
    for (; j + 3 <= i + 4; j += 3) gram_tile<3>(X, ldx, length, i, j, G, ldg);
    if (i + 4 - j == 2)
      gram_tile<2>(X, ldx, length, i, j, G, ldg);
    else if (i + 4 - j == 1)
      gram_tile<1>(X, ldx, length, i, j, G, ldg);
  }
}

// A Cholesky factor L in the lower triangle of `matrix`, and the inverses of its 8 x 8 diagonal blocks.
struct Factor {
  double* matrix;   // n x ld
  double* inverse;  // n x 8: row i of the inverse of its diagonal block
  int64_t n, ld;    // n is a multiple of 8
  double smallest_pivot;
};

// Factorises in place. Returns false if a pivot is NaN or not above `min_pivot`.
bool factorize(Factor& f, double min_pivot) {
  double* G = f.matrix;
  const int64_t n = f.n, ld = f.ld;
  f.smallest_pivot = 1;
  for (int64_t j0 = 0; j0 < n; j0 += kPanel) {
    if (j0 > 0) {
      for (int64_t i = j0; i < n; i += 4) {
        for (int64_t j = 0; j < kPanel; j += 2) {
          double out[4][2];
          dots<4, 2>(G + i * ld, ld, G + (j0 + j) * ld, ld, j0, out);
          for (int u = 0; u < 4; ++u)
            for (int v = 0; v < 2; ++v) G[(i + u) * ld + j0 + j + v] -= out[u][v];
        }
      }
    }
    double* D = G + j0 * ld + j0;
    double* V = f.inverse + j0 * kPanel;
    double reciprocal[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = D[i * ld + j];
        for (int64_t k = 0; k < j; ++k) sum -= D[i * ld + k] * D[j * ld + k];
        if (i == j) {
          if (!(sum > min_pivot)) return false;
          if (sum < f.smallest_pivot) f.smallest_pivot = sum;
          D[i * ld + i] = __builtin_sqrt(sum);
          reciprocal[i] = 1 / D[i * ld + i];
        } else {
          D[i * ld + j] = sum * reciprocal[j];
        }
      }
    }
    // The rows below are multiplied by the inverse of the diagonal block, which avoids a chain of dependent divisions.
    for (int64_t i = 0; i < kPanel; ++i) {
      for (int64_t j = 0; j < kPanel; ++j) {
        double sum = i == j;
        for (int64_t k = j; k < i; ++k) sum -= D[i * ld + k] * V[k * kPanel + j];
        V[i * kPanel + j] = j <= i ? sum * reciprocal[i] : 0;
      }
    }
    double transposed[kPanel * kPanel];
    for (int64_t i = 0; i < kPanel; ++i)
      for (int64_t j = 0; j < kPanel; ++j) transposed[j * kPanel + i] = V[i * kPanel + j];
    for (int64_t i = j0 + kPanel; i < n; ++i) {
      double* row = G + i * ld + j0;
      Lanes out[kPanel / kLanes] = {};
      for (int64_t k = 0; k < kPanel; ++k)
        for (int64_t l = 0; l < kPanel / kLanes; ++l) out[l] += row[k] * load(transposed + k * kPanel + l * kLanes);
      for (int64_t l = 0; l < kPanel / kLanes; ++l) store(row + l * kLanes, out[l]);
    }
  }
  return true;
}

// x <- (L L^T)^-1 x.
void solve(const Factor& f, double* x) {
  const int64_t ld = f.ld;
  for (int64_t j0 = 0; j0 < f.n; j0 += kPanel) {
    double right[kPanel];
    for (int64_t i = 0; i < kPanel; i += 4) {
      double out[4][1];
      dots<4, 1>(f.matrix + (j0 + i) * ld, ld, x, 0, j0, out);
      for (int u = 0; u < 4; ++u) right[i + u] = x[j0 + i + u] - out[u][0];
    }
    const double* V = f.inverse + j0 * kPanel;
    for (int64_t i = 0; i < kPanel; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < kPanel; ++k) sum += V[i * kPanel + k] * right[k];
      x[j0 + i] = sum;
    }
  }
  for (int64_t j0 = f.n - kPanel; j0 >= 0; j0 -= kPanel) {
    const double* V = f.inverse + j0 * kPanel;
    double left[kPanel] = {};
    for (int64_t k = 0; k < kPanel; ++k)
      for (int64_t i = 0; i < kPanel; ++i) left[i] += V[k * kPanel + i] * x[j0 + k];
    for (int64_t i = 0; i < kPanel; ++i) x[j0 + i] = left[i];
    for (int64_t i = 0; i < kPanel; i += 4) {
      const double* row = f.matrix + (j0 + i) * ld;
      for (int64_t e = 0; e < j0; e += kLanes)
        store(x + e, load(x + e) - left[i] * load(row + e) - left[i + 1] * load(row + ld + e) -
                         left[i + 2] * load(row + 2 * ld + e) - left[i + 3] * load(row + 3 * ld + e));
    }
  }
}

// y += sign * sum_k factor_k row_k over `count` rows in their order, four at a time. n is a multiple of kLanes.
void add_rows(const double* rows, int64_t ld, int64_t n, const double* factors, int64_t count, double sign, double* y) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const double* row = rows + k * ld;
    const double f0 = sign * factors[k], f1 = sign * factors[k + 1], f2 = sign * factors[k + 2],
                 f3 = sign * factors[k + 3];
    for (int64_t e = 0; e < n; e += kLanes)
      store(y + e, load(y + e) + f0 * load(row + e) + f1 * load(row + ld + e) + f2 * load(row + 2 * ld + e) +
                       f3 * load(row + 3 * ld + e));
  }
  for (; k < count; ++k) axpy(sign * factors[k], rows + k * ld, y, n);
}

// out_k = <row_k, y> for `count` rows, count a multiple of 4.
void rows_times(const double* rows, int64_t ld, int64_t n, int64_t count, const double* y, double* out) {
  for (int64_t k = 0; k < count; k += 4) {
    double sums[4][1];
    dots<4, 1>(rows + k * ld, ld, y, 0, n, sums);
    for (int u = 0; u < 4; ++u) out[k + u] = sums[u][0];
  }
}

}  // namespace
