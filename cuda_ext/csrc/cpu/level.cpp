// Which instruction-set level runs: the best one the machine has, or SALTLM_CPU_LEVEL (base, avx2, avx512) if it has that.
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels.h"

namespace saltlm::cpu {
namespace {

struct Level {
  const char* name;
  const SimilarityKernels* similarity;
  const SolveKernels* solve;
  const RowKernels* rows;
  const PursuitKernels* pursuit;
};

Level choose() {
  const Level base{"base", &similarity_base, &solve_base, &rows_base, &pursuit_base};
#ifndef SALTLM_BASE_ONLY
  const char* asked = std::getenv("SALTLM_CPU_LEVEL");
  const auto wanted = [&](const char* name) { return asked == nullptr || std::strcmp(asked, name) == 0; };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512 && wanted("avx512")) return {"avx512", &similarity_avx512, &solve_avx512, &rows_avx512, &pursuit_avx512};
  if (avx2 && wanted("avx2")) return {"avx2", &similarity_avx2, &solve_avx2, &rows_avx2, &pursuit_avx2};
#endif
  return base;
}

const Level& chosen() {
  static const Level level = choose();
  return level;
}

std::string cpu_level() { return chosen().name; }

}  // namespace

const SimilarityKernels& similarity_kernels() { return *chosen().similarity; }
const SolveKernels& solve_kernels() { return *chosen().solve; }
const RowKernels& row_kernels() { return *chosen().rows; }
const PursuitKernels& pursuit_kernels() { return *chosen().pursuit; }

}  // namespace saltlm::cpu

STABLE_TORCH_LIBRARY_IMPL(saltlm, CompositeExplicitAutograd, m) { m.impl("cpu_level", TORCH_BOX(&saltlm::cpu::cpu_level)); }
