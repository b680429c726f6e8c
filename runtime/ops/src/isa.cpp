#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace kimivl {
namespace {

Isa detected() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
  return Isa::kPlain;
}

Isa wanted() {
  const char* name = std::getenv("KIMIVL_OPS_ISA");
  if (name == nullptr || std::strcmp(name, "avx512") == 0) return Isa::kAvx512;
  return std::strcmp(name, "avx2") == 0 ? Isa::kAvx2 : Isa::kPlain;
}

}  // namespace

Isa best_isa() {
  static const Isa best = std::min(detected(), wanted());
  return best;
}

}  // namespace kimivl
