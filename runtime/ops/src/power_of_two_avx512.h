// Powers of two of sixteen numbers; to be included behind a target pragma.
#pragma once

#include <immintrin.h>

namespace kimivl {

// 2^x for x <= 0; NaN stays NaN, and the infinite x of a hidden token gives 0.
inline __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 power = _mm512_set1_ps(1.33335581e-3f);
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(9.61812911e-3f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.55041087e-2f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(2.40226507e-1f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(6.93147181e-1f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(power, whole);
}

}  // namespace kimivl
