// The CUDA kernels' row maths on the host, for test_device_maths.py: the same headers with a team of one thread, or of
// several threads that meet at a barrier as those of a thread block do.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "../cuda_ext/csrc/cuda/lstsq_token.h"
#include "../cuda_ext/csrc/cuda/sparsemax_row.h"

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
  double sum(double x) const { return fold(x, [](double a, double b) { return a + b; }); }
  double max(double x) const { return fold(x, [](double a, double b) { return a > b ? a : b; }); }
};

// body(team) by `threads` threads; 0 is the team that needs no barrier.
template <class Body>
void by_team(int threads, const Body& body) {
  if (threads == 0) return body(saltlm::cuda::SerialTeam{});
  Barrier barrier(threads);
  std::vector<double> scratch(static_cast<size_t>(threads));
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i) all.emplace_back([&, i] { body(ThreadTeam{i, threads, &barrier, scratch.data()}); });
  for (std::thread& thread : all) thread.join();
}

}  // namespace

// Support of one row: approximate cosines s [A] first, then the exact ones of x [P] and anchors [A, P]. `survivors` gets
// how many passed the filter. Returns the support size; ids and weights hold A values.
extern "C" int sparsemax_row(int threads, const float* s, const uint8_t* valid, int64_t A, double slack, int capacity,
                             const double* x, double inverse, const double* anchors, const double* inverses, int64_t P,
                             int64_t max_support, int32_t* ids, double* weights, int* survivors) {
  std::vector<float> peaks(static_cast<size_t>(threads > 0 ? threads : 1)), list(static_cast<size_t>(capacity));
  int counter = 0, support = 0;
  by_team(threads, [&](const auto& team) {
    const auto found = saltlm::cuda::filter_row(team, s, valid, A, slack, peaks.data(), list.data(), capacity, &counter);
    const int n = found.survivors;
    int size = 0;
    if (n > 0)
      size = saltlm::cuda::settle_row(team, s, valid, A, found.cut, x, inverse, anchors, inverses, P, max_support, n, &counter,
                                      ids, weights);
    if (team.rank() == 0) *survivors = n, support = size;
  });
  return support;
}

// The same with room for so many survivors and a support of so many: ids holds `capacity` values. -1 where it does not fit.
extern "C" int support_in_room(int threads, const float* s, const uint8_t* valid, int64_t A, double slack, const double* x,
                               double inverse, const double* anchors, const double* inverses, int64_t P, int64_t max_support,
                               int64_t room, int64_t capacity, int32_t* ids) {
  constexpr int kList = 64;
  std::vector<float> peaks(static_cast<size_t>(threads > 0 ? threads : 1)), list(kList);
  std::vector<int32_t> room_ids(static_cast<size_t>(room));
  std::vector<double> room_cosines(static_cast<size_t>(room));
  int counter = 0, support = 0;
  by_team(threads, [&](const auto& team) {
    const auto found = saltlm::cuda::filter_row(team, s, valid, A, slack, peaks.data(), list.data(), kList, &counter);
    const int size = saltlm::cuda::support_in_room(team, s, valid, A, found.cut, x, inverse, anchors, inverses, P, max_support,
                                                   found.survivors, &counter, room, room_ids.data(), room_cosines.data(),
                                                   capacity, ids);
    if (team.rank() == 0) support = size;
  });
  return support;
}

// A direction in bfloat16 [stride] by one group; returns what the rounding took away.
extern "C" double narrow_row(const double* row, double factor, int64_t W, int64_t stride, uint16_t* out) {
  return saltlm::cuda::narrow_row(saltlm::cuda::SerialTeam{}, row, factor, W, stride, out);
}

extern "C" double narrow_slack(double x, double y, int64_t P) { return saltlm::cuda::narrow_slack(x, y, P); }

extern "C" void sort_row(int threads, double* values, int32_t* ids, int n) {
  by_team(threads, [&](const auto& team) { saltlm::cuda::sort_row(team, values, ids, n); });
}

// Coefficients [K] and residual of one token, or 0 when it is left to the CPU operator.
template <class T>
int solve(int threads, const T* e, const T* anchors, const int32_t* ids, int K, int W, double ridge, int center,
          double* coefficients, float* residual) {
  // NaN, so that a value read before it is written shows
  std::vector<double> memory(static_cast<size_t>(saltlm::cuda::token_memory(K, W)), std::nan(""));
  int settled = 0;
  by_team(threads, [&](const auto& team) {
    const saltlm::cuda::Token<T> token{e, anchors, ids, K, W, ridge, center != 0};
    const bool done = saltlm::cuda::solve_token(team, token, memory.data(), coefficients, residual);
    if (team.rank() == 0) settled = done;
  });
  return settled;
}

extern "C" int solve_double(int threads, const double* e, const double* anchors, const int32_t* ids, int K, int W,
                            double ridge, int center, double* coefficients, float* residual) {
  return solve(threads, e, anchors, ids, K, W, ridge, center, coefficients, residual);
}

extern "C" int solve_float(int threads, const float* e, const float* anchors, const int32_t* ids, int K, int W,
                           double ridge, int center, double* coefficients, float* residual) {
  return solve(threads, e, anchors, ids, K, W, ridge, center, coefficients, residual);
}
