// The CUDA kernels' maths of one row on the host, for test_device_maths.py: the same headers with a team of one thread,
// or of several threads that meet at a barrier like those of a thread block.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "../../cuda_ext/csrc/cuda/lstsq_token.h"
#include "../../cuda_ext/csrc/cuda/sparsemax_row.h"

namespace {

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t turn = turn_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++turn_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return turn_ != turn; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  int size_, arrived_ = 0;
  int64_t turn_ = 0;
};

struct ThreadTeam {
  int rank_, size_;
  Barrier* barrier;
  double* scratch;

  int rank() const { return rank_; }
  int size() const { return size_; }
  void sync() const { barrier->wait(); }
  int lane() const { return 0; }
  int lanes() const { return 1; }
  int group() const { return rank_; }
  int groups() const { return size_; }
  double lane_sum(double x) const { return x; }
  int append(int* counter) const { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
  template <class Fold>
  double fold(double x, const Fold& join) const {
    scratch[rank_] = x;
    sync();
    double result = scratch[0];
    for (int i = 1; i < size_; ++i) result = join(result, scratch[i]);
    sync();
    return result;
  }
  double sum(double x) const {
    return fold(x, [](double a, double b) { return a + b; });
  }
  double max(double x) const {
    return fold(x, [](double a, double b) { return a > b ? a : b; });
  }
};

// Calls body(team) on `threads` threads; 0 selects the team that needs no barrier.
template <class Body>
void by_team(int threads, const Body& body) {
  if (threads == 0) return body(saltlm::cuda::SerialTeam{});
  Barrier barrier(threads);
  std::vector<double> scratch(static_cast<size_t>(threads));
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i)
    all.emplace_back([&, i] { body(ThreadTeam{i, threads, &barrier, scratch.data()}); });
  for (std::thread& thread : all) thread.join();
}

}  // namespace

// Support of one row, from the approximate cosines s [A] and the exact ones of x [P] with anchors [A, P]. `survivors`
// gets the number of anchors that passed the filter. Returns the support size; ids and weights have room for A values.
extern "C" int sparsemax_row(int threads, const float* s, const uint8_t* valid, int64_t A, double slack, int capacity,
                             const double* x, double inverse, const double* anchors, const double* inverses, int64_t P,
                             int64_t max_support, int32_t* ids, double* weights, int* survivors) {
  std::vector<float> thread_maxima(static_cast<size_t>(threads > 0 ? threads : 1)), list(static_cast<size_t>(capacity));
  int counter = 0, support = 0;
  by_team(threads, [&](const auto& team) {
    const auto filtered =
        saltlm::cuda::filter_row(team, s, valid, A, slack, thread_maxima.data(), list.data(), capacity, &counter);
    const int n = filtered.survivors;
    int size = 0;
    if (n > 0)
      size = saltlm::cuda::exact_support(team, s, valid, A, filtered.min_cosine, x, inverse, anchors, inverses, P,
                                         max_support, n, &counter, ids, weights);
    if (team.rank() == 0) *survivors = n, support = size;
  });
  return support;
}

// Writes a unit vector in bfloat16 [stride], by one group. Returns the norm of the rounding error.
extern "C" double round_to_bfloat16(const double* row, double factor, int64_t W, int64_t stride, uint16_t* out) {
  return saltlm::cuda::round_to_bfloat16(saltlm::cuda::SerialTeam{}, row, factor, W, stride, out);
}

extern "C" double bfloat16_error_bound(double x, double y, int64_t P) {
  return saltlm::cuda::bfloat16_error_bound(x, y, P);
}

extern "C" void sort_row(int threads, double* values, int32_t* ids, int n) {
  by_team(threads, [&](const auto& team) { saltlm::cuda::sort_row(team, values, ids, n); });
}

// Computes the coefficients [K] and the residual of one token; returns 0 if it is left to the CPU operator.
template <class T>
int solve(int threads, const T* e, const T* anchors, const int32_t* ids, int K, int W, double ridge, int center,
          double* coefficients, float* residual) {
  // NaN, so that a value that is read before it is written shows
  std::vector<double> memory(static_cast<size_t>(saltlm::cuda::token_memory(K, W)), std::nan(""));
  int solved = 0;
  by_team(threads, [&](const auto& team) {
    const saltlm::cuda::Token<T> token{e, anchors, ids, K, W, ridge, center != 0};
    const bool is_solved = saltlm::cuda::solve_token(team, token, memory.data(), coefficients, residual);
    if (team.rank() == 0) solved = is_solved;
  });
  return solved;
}

extern "C" int solve_double(int threads, const double* e, const double* anchors, const int32_t* ids, int K, int W,
                            double ridge, int center, double* coefficients, float* residual) {
  return solve(threads, e, anchors, ids, K, W, ridge, center, coefficients, residual);
}

extern "C" int solve_float(int threads, const float* e, const float* anchors, const int32_t* ids, int K, int W,
                           double ridge, int center, double* coefficients, float* residual) {
  return solve(threads, e, anchors, ids, K, W, ridge, center, coefficients, residual);
}
