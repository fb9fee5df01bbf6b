// An emulation of CUDA on the host, for test_cuda_emulated.py. Every thread of a block is a coroutine that runs until
// it reaches __syncthreads or a shuffle, so that the operators' own sources, including their kernels, run without a
// GPU. This header is included before them; cuda_emulated.py describes how the sources are translated.
//
// Stricter than a device:
//   - All threads of a block (or warp) must wait at the same source line.
//   - A warp runs until it has to wait for others, so that a missing barrier has an effect.
//   - Accesses to memory that another thread may not have written or read yet are reported as races. Every access is
//     observed by the calls that -fsanitize=thread inserts.
//   - Shared memory is filled with NaN (-1 for integers) at the start of every block, and ends at an inaccessible page.
//   - The test chooses the order in which threads run.
// Not emulated: speed, torn words in a race, blocks that run at the same time, and the hardware's matrix product.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace emulated {

// Settings of the tests.
struct Device {
  int order = 0;  // order of the warps and of their threads: 0 ascending, 1 descending, else shuffled with this seed
  int multiprocessors = 2;
  int shared_bytes = 227 * 1024;
  bool races = true;  // whether to detect races, which doubles the time
};
inline Device device;
inline bool watching = false;  // whether the code of a kernel runs (and not that of the emulation)

struct Config {
  dim3 grid, block;
  size_t shared;
  Config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr) : grid(grid), block(block), shared(shared) {}
};

enum class State { kReady, kAtBlock, kAtWarp, kEnded };

// Excludes the emulation's own accesses from race detection.
#define NOT_INSTRUMENTED __attribute__((no_sanitize("thread"), noinline))

struct Thread {
  jmp_buf context;  // where the coroutine continues
  bool started = false;
  dim3 index;
  State state;
  const char* file;
  int line;
  int slot_set;  // which of the warp's two sets of slots the next shuffle uses
  int barriers;  // number of barriers of the block passed so far, and of shuffles since the last one
  int shuffles;
};

enum class Access { kRead, kWrite, kAtomic };

// The last access to an address, and the thread's progress at that time.
struct LastAccess {
  int thread = -1, barriers = 0, shuffles = 0;
  bool atomic = false;
};

struct Cell {
  uintptr_t address = 0;
  int64_t block = -1;
  LastAccess write, reads[2];  // the last two different readers
};

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 128 << 10, kShared = 256 << 10;

// State of the device. Blocks run one at a time.
struct Machine {
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  std::vector<unsigned> warps, lanes = std::vector<unsigned>(kWarp);
  std::array<std::array<std::array<double, kWarp>, kMaxThreads / kWarp>, 2> slots;
  std::vector<void*> cleared_shared;  // static shared memory that this block has filled already
  std::function<void()> kernel;
  jmp_buf scheduler;
  Thread* current = nullptr;
  dim3 block, grid, size;
  char *stacks, *shared_end;
  size_t shared = 0;
  int shared_limit = 48 << 10;
  std::vector<Cell> cells = std::vector<Cell>(1 << 16);
  int64_t blocks = 0, cells_in_use = 0;
  std::string race;
  cudaError_t error = cudaSuccess;

  Machine() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const auto map = [](size_t bytes) {
      void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      STD_TORCH_CHECK(memory != MAP_FAILED, "no memory for the emulated device");
      return static_cast<char*>(memory);
    };
    stacks = map(kMaxThreads * kStack);
    shared_end = map(kShared + page) + kShared;
    STD_TORCH_CHECK(mprotect(shared_end, page, PROT_NONE) == 0, "mprotect");
  }
};

NOT_INSTRUMENTED inline Machine& machine() {
  static Machine instance;
  return instance;
}

// Main function of a coroutine. It runs one kernel after the other, for the thread with this index in every block.
NOT_INSTRUMENTED inline void thread_main() {
  Machine& m = machine();
  for (;;) {
    Thread& self = *m.current;
    watching = device.races;
    m.kernel();
    watching = false;
    self.state = State::kEnded, self.line = 0;
    if (_setjmp(self.context) == 0) _longjmp(m.scheduler, 1);
  }
}

// Contexts are created once and then entered and left by jumps, which, unlike swapcontext, need no system call.
NOT_INSTRUMENTED inline void run_until_wait(Machine& m, unsigned i) {
  m.current = &m.threads[i];
  if (_setjmp(m.scheduler) != 0) return;
  watching = device.races && m.current->started;  // a new coroutine begins in thread_main, which sets it
  if (m.current->started) _longjmp(m.current->context, 1);
  m.current->started = true;
  ucontext_t new_context;
  getcontext(&new_context);
  new_context.uc_stack.ss_sp = m.stacks + i * kStack;
  new_context.uc_stack.ss_size = kStack;
  new_context.uc_link = nullptr;
  makecontext(&new_context, thread_main, 0);
  setcontext(&new_context);
}

NOT_INSTRUMENTED inline void wait_at(State state, const char* file, int line) {
  watching = false;
  Machine& m = machine();
  Thread& self = *m.current;
  self.state = state, self.file = file, self.line = line;
  state == State::kAtBlock ? (++self.barriers, self.shuffles = 0) : ++self.shuffles;
  if (_setjmp(self.context) == 0) _longjmp(m.scheduler, 1);
  watching = device.races;
}

NOT_INSTRUMENTED inline Cell& cell_of(Machine& m, uintptr_t address) {
  if (2 * ++m.cells_in_use > static_cast<int64_t>(m.cells.size())) {
    std::vector<Cell> old_cells(2 * m.cells.size());
    old_cells.swap(m.cells);
    m.cells_in_use = 0;
    for (const Cell& cell : old_cells)
      if (cell.block == m.blocks) cell_of(m, cell.address) = cell;
  }
  size_t at = address / 2 * 0x9e3779b97f4a7c15u >> 20 & (m.cells.size() - 1);
  while (m.cells[at].block == m.blocks && m.cells[at].address != address) at = (at + 1) & (m.cells.size() - 1);
  Cell& cell = m.cells[at];
  if (cell.block == m.blocks) {
    --m.cells_in_use;
  } else {
    cell = Cell{};
    cell.address = address, cell.block = m.blocks;
  }
  return cell;
}

// Whether `access` is certain to be complete for a thread with the progress of `self`.
NOT_INSTRUMENTED inline bool ordered_before(const LastAccess& access, const LastAccess& self) {
  if (access.thread < 0 || access.thread == self.thread || access.barriers < self.barriers) return true;
  return access.thread / static_cast<int>(kWarp) == self.thread / static_cast<int>(kWarp) &&
         access.shuffles < self.shuffles;
}

// Two writes to the same word are not reported, because they may write the same value, as check_ids_kernel does.
NOT_INSTRUMENTED inline void record_access(Machine& m, void* memory, Access access) {
  const Thread& thread = *m.current;
  const LastAccess self{static_cast<int>(thread.index.x), thread.barriers, thread.shuffles, access == Access::kAtomic};
  Cell& cell = cell_of(m, reinterpret_cast<uintptr_t>(memory));
  const LastAccess* earlier = nullptr;
  const bool writes = access != Access::kRead;
  if (!ordered_before(cell.write, self) && !(cell.write.atomic && self.atomic) &&
      (!writes || cell.write.atomic != self.atomic))
    earlier = &cell.write;
  for (const LastAccess& read : cell.reads)
    if (writes && !ordered_before(read, self)) earlier = &read;
  if (earlier != nullptr && m.race.empty())
    m.race = std::string("thread ") + std::to_string(self.thread) + (writes ? " writes" : " reads") + " what thread " +
             std::to_string(earlier->thread) + (earlier == &cell.write ? " wrote" : " read") +
             " without a barrier in between, " +
             (thread.file == nullptr ? "before any barrier"
                                     : "after " + std::string(thread.file) + ":" + std::to_string(thread.line));
  if (writes) {
    cell.write = self;
  } else if (cell.reads[0].thread != self.thread) {
    cell.reads[1] = cell.reads[0], cell.reads[0] = self;
  } else {
    cell.reads[0] = self;
  }
}

// Called before every memory access of a kernel.
NOT_INSTRUMENTED inline void on_access(void* memory, Access access) {
  if (!watching) return;
  watching = false;
  Machine& m = machine();
  const char* byte = static_cast<const char*>(memory);
  if (byte < m.stacks || byte >= m.stacks + kMaxThreads * kStack) record_access(m, memory, access);
  watching = device.races;
}

// Lets the threads [begin, end) continue if all of them wait at the same place.
NOT_INSTRUMENTED inline bool release_if_all_wait(Machine& m, unsigned begin, unsigned end, State state) {
  const Thread& first = m.threads[begin];
  for (unsigned i = begin; i < end; ++i) {
    const Thread& thread = m.threads[i];
    if (thread.state != state || thread.line != first.line) return false;
    if (thread.file != first.file && std::strcmp(thread.file, first.file) != 0) return false;
  }
  for (unsigned i = begin; i < end; ++i) m.threads[i].state = State::kReady;
  return true;
}

inline std::string describe(const Thread& thread) {
  if (thread.state == State::kEnded) return "has ended";
  const char* name = std::strrchr(thread.file, '/');
  return std::string(thread.state == State::kAtWarp ? "shuffles at " : "waits at ") + (name ? name + 1 : thread.file) +
         ":" + std::to_string(thread.line);
}

NOT_INSTRUMENTED inline void set_order(std::vector<unsigned>& numbers, std::mt19937& random) {
  std::iota(numbers.begin(), numbers.end(), 0u);
  if (device.order == 1) std::reverse(numbers.begin(), numbers.end());
  if (device.order > 1) std::shuffle(numbers.begin(), numbers.end(), random);
}

// Runs one warp until it has to wait for other warps, which is as far ahead of them as it can get on a device.
NOT_INSTRUMENTED inline void run_warp(Machine& m, unsigned begin, std::mt19937& random) {
  set_order(m.lanes, random);
  do {
    for (const unsigned lane : m.lanes)
      if (m.threads[begin + lane].state == State::kReady) run_until_wait(m, begin + lane);
  } while (release_if_all_wait(m, begin, begin + kWarp, State::kAtWarp));
}

NOT_INSTRUMENTED inline void run_block(Machine& m, std::mt19937& random) {
  const unsigned count = m.size.x;
  m.cleared_shared.clear();
  std::memset(m.shared_end - m.shared, 0xff, m.shared);
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = m.threads[i];
    thread.index = dim3(i, 0, 0);
    thread.state = State::kReady;
    thread.slot_set = thread.barriers = thread.shuffles = 0;
    thread.file = nullptr;
  }
  ++m.blocks;
  m.cells_in_use = 0;
  m.warps.resize(count / kWarp);
  for (;;) {
    set_order(m.warps, random);
    for (const unsigned warp : m.warps) run_warp(m, warp * kWarp, random);
    if (release_if_all_wait(m, 0, count, State::kAtBlock)) continue;
    const auto differs = [&m](const Thread& thread) {
      return thread.state != m.threads[0].state || thread.line != m.threads[0].line;
    };
    const auto end = m.threads.begin() + count, other_state = std::find_if(m.threads.begin(), end, differs);
    if (other_state == end && m.threads[0].state == State::kEnded) return;
    const unsigned second = other_state == end ? count - 1 : other_state->index.x;
    for (Thread& thread : m.threads) thread.started = false;  // their unfinished work is discarded
    m.current = nullptr;
    m.race.clear();
    STD_TORCH_CHECK(false, "emulated: threads do not meet: thread 0 ", describe(m.threads[0]), ", thread ", second, " ",
                    describe(m.threads[second]));
  }
}

// KERNEL<<<CONFIG>>>(ARGUMENTS). The arguments are evaluated once, as in a launch.
template <class Kernel, class... Arguments>
void launch(const Config& config, const Kernel& kernel, Arguments... arguments) {
  Machine& m = machine();
  const bool valid = config.grid.x >= 1 && config.grid.y >= 1 && config.grid.y <= 65535 && config.grid.x < (1u << 31) &&
                     config.block.x >= 1 && config.block.x <= kMaxThreads && config.block.x % kWarp == 0 &&
                     config.block.y * config.block.z * config.grid.z == 1 &&
                     config.shared <= static_cast<size_t>(m.shared_limit);
  if (!valid) {
    m.error = cudaErrorInvalidConfiguration;
    return;
  }
  m.kernel = [&] { kernel(arguments...); };
  m.grid = config.grid, m.size = config.block, m.shared = config.shared;
  std::mt19937 random(static_cast<unsigned>(device.order));
  for (unsigned y = 0; y < config.grid.y; ++y)
    for (unsigned x = 0; x < config.grid.x; ++x) {
      m.block = dim3(x, y, 0);
      run_block(m, random);
      m.current = nullptr;
      STD_TORCH_CHECK(m.race.empty(), "emulated: ", std::exchange(m.race, ""));
    }
}

// Fills `__shared__` memory of this block with NaN (-1 for integers) on first use.
NOT_INSTRUMENTED inline void clear_shared(void* memory, size_t bytes) {
  watching = false;
  std::vector<void*>& cleared = machine().cleared_shared;
  if (std::find(cleared.begin(), cleared.end(), memory) == cleared.end()) {
    std::memset(memory, 0xff, bytes);
    cleared.push_back(memory);
  }
  watching = device.races;
}

NOT_INSTRUMENTED inline double* dynamic_shared() {
  return reinterpret_cast<double*>(machine().shared_end - machine().shared);
}

template <class T>
NOT_INSTRUMENTED T exchange(unsigned mask, T value, int step, const char* file, int line) {
  static_assert(sizeof(T) <= sizeof(double));
  watching = false;
  STD_TORCH_CHECK(mask == 0xffffffffu, "emulated: expected a whole warp's shuffle");
  Machine& m = machine();
  Thread& self = *m.current;
  const unsigned lane = self.index.x % kWarp;
  auto& slots = m.slots[static_cast<size_t>(self.slot_set)][self.index.x / kWarp];
  self.slot_set ^= 1;  // two sets suffice, because a lane can be at most one shuffle ahead of another
  std::memcpy(&slots[lane], &value, sizeof value);
  wait_at(State::kAtWarp, file, line);
  std::memcpy(&value, &slots[lane ^ static_cast<unsigned>(step)], sizeof value);
  return value;
}

NOT_INSTRUMENTED inline dim3 thread_index() { return machine().current->index; }
NOT_INSTRUMENTED inline dim3 block_index() { return machine().block; }
NOT_INSTRUMENTED inline dim3 block_size() { return machine().size; }
NOT_INSTRUMENTED inline dim3 grid_size() { return machine().grid; }

// The host has no current device.
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline int32_t current_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

}  // namespace emulated

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return std::exchange(emulated::machine().error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return "of the emulated device"; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const emulated::Device& device = emulated::device;
  *value = which == cudaDevAttrMultiProcessorCount            ? device.multiprocessors
           : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? device.shared_bytes
                                                              : 9;  // major compute capability
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(const Kernel&, cudaFuncAttribute, int bytes) {
  if (bytes > emulated::device.shared_bytes) return cudaErrorInvalidValue;
  emulated::machine().shared_limit = std::max(48 << 10, bytes);
  return cudaSuccess;
}

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;
inline float __half2float(__half x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
NOT_INSTRUMENTED inline int atomicAdd(int* counter, int increment) {
  emulated::on_access(counter, emulated::Access::kAtomic);
  const int old_value = *counter;
  *counter += increment;
  return old_value;
}

#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
#define blockDim (::emulated::block_size())
#define gridDim (::emulated::grid_size())
#define __syncthreads() ::emulated::wait_at(::emulated::State::kAtBlock, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, step) ::emulated::exchange(mask, value, step, __FILE__, __LINE__)
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define aoti_torch_get_current_cuda_stream ::emulated::current_stream
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
