// Attention over the latent cache with AVX2 and FMA.
//
// Bytes are no gain here: their products need two instructions for 16, as many as floats do.
#include "latent_attention_rows.h"

#pragma GCC target("avx2,fma")

#include <immintrin.h>

namespace kimivl {
namespace {

constexpr int kLanes = 8;
using Lanes = float __attribute__((vector_size(kLanes * 4), may_alias));
using IntLanes = int32_t __attribute__((vector_size(kLanes * 4), may_alias));

// GCC fuses a product and a sum by itself only outside of its ISO modes.
inline void add_product(Lanes& sum, const Lanes& first, float second) {
  sum = _mm256_fmadd_ps(first, _mm256_set1_ps(second), sum);
}

}  // namespace
}  // namespace kimivl

#include "latent_attention_float.h"

namespace kimivl {

void attend_rows_avx2(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  attend_rows(task, rows, tokens, out);
}

}  // namespace kimivl
