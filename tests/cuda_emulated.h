// CUDA on the host, for test_cuda_emulated.py: every thread of a block is a coroutine that runs until it meets the others, at
// __syncthreads or at a warp's shuffle, so that the operators' own sources run, kernels and all, where there is no GPU. Included
// before them (cuda_emulated.py says how they are read).
//
// What is stricter than a device: threads must meet at the same line, all of them; a warp runs until it has to wait for others, so
// that a barrier that is missing shows, and who reads or writes what another thread may not yet have written or read is told (every
// access is seen, by the calls that -fsanitize=thread inserts); shared memory begins as NaN and -1 in every block and ends at a page that can't be touched;
// the order in which threads run is the test's to choose. What is missing: speed,
// what a race does to words that are half written, other blocks at the same time, the hardware's own product.
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

// What the tests choose.
struct Device {
  int order = 0;  // warps, and their threads, run from the first to the last (0), back to front (1), or shuffled by this seed
  int multiprocessors = 2;
  int shared_bytes = 227 * 1024;
  bool races = true;  // looked for, which takes twice the time
};
inline Device device;
inline bool watched = false;  // whether a kernel's own code runs, not the device's

struct Config {
  dim3 grid, block;
  size_t shared;
  Config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t = nullptr) : grid(grid), block(block), shared(shared) {}
};

enum class State { kReady, kAtBlock, kAtWarp, kEnded };

#define QUIET __attribute__((no_sanitize("thread"), noinline))  // the device's own accesses are nobody's race

struct Thread {
  jmp_buf place;  // where it goes on
  bool made = false;
  dim3 at;
  State state;
  const char* file;
  int line;
  int turn;      // which of a warp's two sets of slots its next shuffle uses
  int barriers;  // of the block that it has passed, and shuffles since
  int shuffles;
};

enum class Access { kRead, kWrite, kAtomic };

// Who last touched an address, and how far it had come.
struct Touch {
  int thread = -1, barriers = 0, shuffles = 0;
  bool atomic = false;
};

struct Cell {
  uintptr_t address = 0;
  int64_t block = -1;
  Touch write, reads[2];  // the last readers that are not the same
};

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 128 << 10, kShared = 256 << 10;

// One block at a time.
struct Machine {
  std::vector<Thread> threads = std::vector<Thread>(kMostThreads);
  std::vector<unsigned> warps, lanes = std::vector<unsigned>(kWarp);
  std::array<std::array<std::array<double, kWarp>, kMostThreads / kWarp>, 2> slots;
  std::vector<void*> fresh;  // static shared memory that this block has met
  std::function<void()> kernel;
  jmp_buf scheduler;
  Thread* current = nullptr;
  dim3 block, grid, size;
  char *stacks, *shared_end;
  size_t shared = 0;
  int shared_limit = 48 << 10;
  std::vector<Cell> cells = std::vector<Cell>(1 << 16);
  int64_t blocks = 0, touched = 0;
  std::string race;
  cudaError_t error = cudaSuccess;

  Machine() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const auto map = [](size_t bytes) {
      void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      STD_TORCH_CHECK(found != MAP_FAILED, "no memory for the emulated device");
      return static_cast<char*>(found);
    };
    stacks = map(kMostThreads * kStack);
    shared_end = map(kShared + page) + kShared;
    STD_TORCH_CHECK(mprotect(shared_end, page, PROT_NONE) == 0, "mprotect");
  }
};

QUIET inline Machine& machine() {
  static Machine one;
  return one;
}

// A coroutine's own frames: one kernel after the other, for a thread of this number in every block.
QUIET inline void live() {
  Machine& m = machine();
  for (;;) {
    Thread& me = *m.current;
    watched = device.races;
    m.kernel();
    watched = false;
    me.state = State::kEnded, me.line = 0;
    if (_setjmp(me.place) == 0) _longjmp(m.scheduler, 1);
  }
}

// Contexts are made once and then left and entered by jumps, which, unlike swapcontext, don't ask the system each time.
QUIET inline void resume(Machine& m, unsigned i) {
  m.current = &m.threads[i];
  if (_setjmp(m.scheduler) != 0) return;
  watched = device.races && m.current->made;  // else it begins in live
  if (m.current->made) _longjmp(m.current->place, 1);
  m.current->made = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = m.stacks + i * kStack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  setcontext(&context);
}

QUIET inline void meet(State where, const char* file, int line) {
  watched = false;
  Machine& m = machine();
  Thread& me = *m.current;
  me.state = where, me.file = file, me.line = line;
  where == State::kAtBlock ? (++me.barriers, me.shuffles = 0) : ++me.shuffles;
  if (_setjmp(me.place) == 0) _longjmp(m.scheduler, 1);
  watched = device.races;
}

QUIET inline Cell& cell(Machine& m, uintptr_t address) {
  if (2 * ++m.touched > static_cast<int64_t>(m.cells.size())) {
    std::vector<Cell> before(2 * m.cells.size());
    before.swap(m.cells);
    m.touched = 0;
    for (const Cell& one : before)
      if (one.block == m.blocks) cell(m, one.address) = one;
  }
  size_t at = address / 2 * 0x9e3779b97f4a7c15u >> 20 & (m.cells.size() - 1);
  while (m.cells[at].block == m.blocks && m.cells[at].address != address) at = (at + 1) & (m.cells.size() - 1);
  Cell& found = m.cells[at];
  if (found.block == m.blocks) {
    --m.touched;
  } else {
    found = Cell{};
    found.address = address, found.block = m.blocks;
  }
  return found;
}

// Whether what `one` did is certain to be over for a thread that has come as far as `me`.
QUIET inline bool settled(const Touch& one, const Touch& me) {
  if (one.thread < 0 || one.thread == me.thread || one.barriers < me.barriers) return true;
  return one.thread / static_cast<int>(kWarp) == me.thread / static_cast<int>(kWarp) && one.shuffles < me.shuffles;
}

// Two that write the same word are let be, for they may write the same: check_ids_kernel does.
QUIET inline void note(Machine& m, void* memory, Access access) {
  const Thread& thread = *m.current;
  const Touch me{static_cast<int>(thread.at.x), thread.barriers, thread.shuffles, access == Access::kAtomic};
  Cell& found = cell(m, reinterpret_cast<uintptr_t>(memory));
  const Touch* other = nullptr;
  const bool writes = access != Access::kRead;
  if (!settled(found.write, me) && !(found.write.atomic && me.atomic) && (!writes || found.write.atomic != me.atomic))
    other = &found.write;
  for (const Touch& read : found.reads)
    if (writes && !settled(read, me)) other = &read;
  if (other != nullptr && m.race.empty())
    m.race = std::string("thread ") + std::to_string(me.thread) + (writes ? " writes" : " reads") + " what thread " +
             std::to_string(other->thread) + (other == &found.write ? " wrote" : " read") + " and may not have yet, " +
             (thread.file == nullptr ? "before any barrier"
                                     : "after " + std::string(thread.file) + ":" + std::to_string(thread.line));
  if (writes) {
    found.write = me;
  } else if (found.reads[0].thread != me.thread) {
    found.reads[1] = found.reads[0], found.reads[0] = me;
  } else {
    found.reads[0] = me;
  }
}

// Called before every access of a kernel to memory.
QUIET inline void touch(void* memory, Access access) {
  if (!watched) return;
  watched = false;
  Machine& m = machine();
  const char* byte = static_cast<const char*>(memory);
  if (byte < m.stacks || byte >= m.stacks + kMostThreads * kStack) note(m, memory, access);
  watched = device.races;
}

// Lets threads go on if all of [begin, end) wait at the same place.
QUIET inline bool release(Machine& m, unsigned begin, unsigned end, State where) {
  const Thread& first = m.threads[begin];
  for (unsigned i = begin; i < end; ++i) {
    const Thread& one = m.threads[i];
    if (one.state != where || one.line != first.line) return false;
    if (one.file != first.file && std::strcmp(one.file, first.file) != 0) return false;
  }
  for (unsigned i = begin; i < end; ++i) m.threads[i].state = State::kReady;
  return true;
}

inline std::string where(const Thread& thread) {
  if (thread.state == State::kEnded) return "has ended";
  const char* name = std::strrchr(thread.file, '/');
  return std::string(thread.state == State::kAtWarp ? "shuffles at " : "waits at ") + (name ? name + 1 : thread.file) + ":" +
         std::to_string(thread.line);
}

QUIET inline void arrange(std::vector<unsigned>& numbers, std::mt19937& random) {
  std::iota(numbers.begin(), numbers.end(), 0u);
  if (device.order == 1) std::reverse(numbers.begin(), numbers.end());
  if (device.order > 1) std::shuffle(numbers.begin(), numbers.end(), random);
}

// One warp as far as it goes alone: as far ahead of the others as a device may let it get.
QUIET inline void run_warp(Machine& m, unsigned begin, std::mt19937& random) {
  arrange(m.lanes, random);
  do {
    for (const unsigned lane : m.lanes)
      if (m.threads[begin + lane].state == State::kReady) resume(m, begin + lane);
  } while (release(m, begin, begin + kWarp, State::kAtWarp));
}

QUIET inline void run_block(Machine& m, std::mt19937& random) {
  const unsigned count = m.size.x;
  m.fresh.clear();
  std::memset(m.shared_end - m.shared, 0xff, m.shared);
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = m.threads[i];
    thread.at = dim3(i, 0, 0);
    thread.state = State::kReady;
    thread.turn = thread.barriers = thread.shuffles = 0;
    thread.file = nullptr;
  }
  ++m.blocks;
  m.touched = 0;
  m.warps.resize(count / kWarp);
  for (;;) {
    arrange(m.warps, random);
    for (const unsigned warp : m.warps) run_warp(m, warp * kWarp, random);
    if (release(m, 0, count, State::kAtBlock)) continue;
    const auto differs = [&m](const Thread& one) { return one.state != m.threads[0].state || one.line != m.threads[0].line; };
    const auto end = m.threads.begin() + count, odd = std::find_if(m.threads.begin(), end, differs);
    if (odd == end && m.threads[0].state == State::kEnded) return;
    const unsigned other = odd == end ? count - 1 : odd->at.x;
    for (Thread& thread : m.threads) thread.made = false;  // what they were at is given up
    m.current = nullptr;
    m.race.clear();
    STD_TORCH_CHECK(false, "emulated: threads do not meet: thread 0 ", where(m.threads[0]), ", thread ", other, " ",
                    where(m.threads[other]));
  }
}

// KERNEL<<<CONFIG>>>(ARGUMENTS): the arguments are evaluated once, as a launch does.
template <class Kernel, class... Arguments>
void launch(const Config& config, const Kernel& kernel, Arguments... arguments) {
  Machine& m = machine();
  const bool fits = config.grid.x >= 1 && config.grid.y >= 1 && config.grid.y <= 65535 && config.grid.x < (1u << 31) &&
                    config.block.x >= 1 && config.block.x <= kMostThreads && config.block.x % kWarp == 0 &&
                    config.block.y * config.block.z * config.grid.z == 1 &&
                    config.shared <= static_cast<size_t>(m.shared_limit);
  if (!fits) {
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

// `__shared__` memory of this block: NaN, or -1, until it is written.
QUIET inline void fresh(void* memory, size_t bytes) {
  watched = false;
  std::vector<void*>& met = machine().fresh;
  if (std::find(met.begin(), met.end(), memory) == met.end()) {
    std::memset(memory, 0xff, bytes);
    met.push_back(memory);
  }
  watched = device.races;
}

QUIET inline double* dynamic_shared() { return reinterpret_cast<double*>(machine().shared_end - machine().shared); }

template <class T>
QUIET T exchange(unsigned mask, T value, int step, const char* file, int line) {
  static_assert(sizeof(T) <= sizeof(double));
  watched = false;
  STD_TORCH_CHECK(mask == 0xffffffffu, "emulated: expected a whole warp's shuffle");
  Machine& m = machine();
  Thread& me = *m.current;
  const unsigned lane = me.at.x % kWarp;
  auto& slots = m.slots[static_cast<size_t>(me.turn)][me.at.x / kWarp];
  me.turn ^= 1;  // a lane can be one shuffle ahead of another, not two
  std::memcpy(&slots[lane], &value, sizeof value);
  meet(State::kAtWarp, file, line);
  std::memcpy(&value, &slots[lane ^ static_cast<unsigned>(step)], sizeof value);
  return value;
}

QUIET inline dim3 thread_index() { return machine().current->at; }
QUIET inline dim3 block_index() { return machine().block; }
QUIET inline dim3 block_size() { return machine().size; }
QUIET inline dim3 grid_size() { return machine().grid; }

// Nothing is current on the host.
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
  *value = which == cudaDevAttrMultiProcessorCount           ? device.multiprocessors
           : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? device.shared_bytes
                                                              : 9;  // of the compute capability
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
QUIET inline int atomicAdd(int* counter, int more) {
  emulated::touch(counter, emulated::Access::kAtomic);
  const int before = *counter;
  *counter += more;
  return before;
}

#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
#define blockDim (::emulated::block_size())
#define gridDim (::emulated::grid_size())
#define __syncthreads() ::emulated::meet(::emulated::State::kAtBlock, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, step) ::emulated::exchange(mask, value, step, __FILE__, __LINE__)
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define aoti_torch_get_current_cuda_stream ::emulated::current_stream
#define __CUDACC__ 1
#define __CUDA_ARCH__ 900
