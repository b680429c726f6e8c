// Sixteen vectors turned; to be included behind a target pragma.
#pragma once

#include <immintrin.h>

namespace kimivl {

// Turn 16 rows of 16 dwords: vector i gets dword i of every row.
inline void turn(__m512i (&v)[16]) {
  __m512i a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
    v[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
  }
}

}  // namespace kimivl
