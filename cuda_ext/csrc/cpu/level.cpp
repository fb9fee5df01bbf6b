// Chooses the instruction-set level: the best one of the machine, or the one named by SALTLM_CPU_LEVEL (base, avx2,
// avx512, amx) if the machine has it.
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace saltlm::cpu {
namespace {

struct Level {
  const char* name;
  const SimilarityKernels* similarity;
  const SolveKernels* solve;
  const RowKernels* rows;
  const PursuitKernels* pursuit;
  bool has_fast_bfloat16 = false;
};

#ifndef SALTLM_BASE_ONLY
// Whether the processor, the operating system and this process can use tiles with bfloat16 products. oneDNN, which
// computes torch's product, requests the same permission; requesting it twice has no effect.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // xgetbv is available
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool bfloat16 = d >> 22 & 1, tiles = d >> 24 & 1;
  if (!bfloat16 || !tiles) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

Level choose() {
  const Level base{"base", &similarity_base, &solve_base, &rows_base, &pursuit_base};
#ifndef SALTLM_BASE_ONLY
  const char* requested = std::getenv("SALTLM_CPU_LEVEL");
  const auto allowed = [&](const char* name) { return requested == nullptr || std::strcmp(requested, name) == 0; };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512 && allowed("amx") && has_amx())
    return {"amx", &similarity_avx512, &solve_avx512, &rows_avx512, &pursuit_avx512, true};
  if (avx512 && allowed("avx512")) return {"avx512", &similarity_avx512, &solve_avx512, &rows_avx512, &pursuit_avx512};
  if (avx2 && allowed("avx2")) return {"avx2", &similarity_avx2, &solve_avx2, &rows_avx2, &pursuit_avx2};
#endif
  return base;
}

const Level& chosen() {
  static const Level level = choose();
  return level;
}

std::string cpu_level() { return chosen().name; }

}  // namespace

bool has_fast_bfloat16() { return chosen().has_fast_bfloat16; }
const SimilarityKernels& similarity_kernels() { return *chosen().similarity; }
const SolveKernels& solve_kernels() { return *chosen().solve; }
const RowKernels& row_kernels() { return *chosen().rows; }
const PursuitKernels& pursuit_kernels() { return *chosen().pursuit; }

}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&saltlm::cpu::cpu_level));
}
