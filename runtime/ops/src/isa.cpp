#include "isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace kimivl {
namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

// The states that the system saves: XCR0.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Tiles with products of bytes and of bfloat16. Linux gives a process the 8 KiB of state that a
// thread then needs only if it is asked to, and may refuse.
bool has_amx() {
  constexpr uint32_t kTile = 1u << 24, kInt8 = 1u << 25, kBfloat16 = 1u << 22;  // of EDX
  constexpr uint32_t kVectorBfloat16 = 1u << 5;                                  // of EAX
  constexpr uint32_t kWanted = kTile | kInt8 | kBfloat16;
  constexpr uint64_t kTileStates = 3u << 17;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  uint32_t a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kWanted) != kWanted) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & kVectorBfloat16) == 0) return false;
  if ((saved_states() & kTileStates) != kTileStates) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa detected() {
  __builtin_cpu_init();
  if (has_avx512()) return has_amx() ? Isa::kAmx : Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
  return Isa::kPlain;
}

Isa wanted() {
  const char* name = std::getenv("KIMIVL_OPS_ISA");
  if (name == nullptr || std::strcmp(name, "amx") == 0) return Isa::kAmx;
  if (std::strcmp(name, "avx512") == 0) return Isa::kAvx512;
  return std::strcmp(name, "avx2") == 0 ? Isa::kAvx2 : Isa::kPlain;
}

}  // namespace

Isa best_isa() {
  static const Isa best = std::min(detected(), wanted());
  return best;
}

}  // namespace kimivl
