// Numbers of any floating-point type as sixteen of fp32, and which of sixteen there are; to be included behind a target pragma.
#pragma once

#include <immintrin.h>

#include "number_types.h"

namespace kimivl {

inline __mmask16 first_lanes(int64_t count) {
  if (count >= 16) return 0xffff;
  return count > 0 ? static_cast<__mmask16>((1u << count) - 1) : __mmask16(0);
}

// Sixteen numbers from `index` on, or fewer where the mask says so.
template <Type type>
inline __m512 load_floats(const void* values, int64_t index, __mmask16 mask) {
  if constexpr (type == Type::kFloat) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(values) + index);
  }
  const __m256i half =
      _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + index);
  if constexpr (type == Type::kFloat16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

}  // namespace kimivl
