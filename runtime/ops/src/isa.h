// Which instructions this processor has.
#pragma once

namespace kimivl {

enum class Isa { kPlain, kAvx2, kAvx512, kAmx };  // each has those before it

// The best that is there; the environment variable KIMIVL_OPS_ISA (amx, avx512, avx2, plain) lowers
// it.
Isa best_isa();

}  // namespace kimivl
