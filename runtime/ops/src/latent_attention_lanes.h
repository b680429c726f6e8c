// What the AVX-512 and the AMX path both do with sixteen rows; to be included behind a target pragma
// and behind `latent_attention_rows.h`.
#pragma once

#include <immintrin.h>

#include <algorithm>

namespace kimivl {

constexpr int kLanes = 16;         // rows side by side
constexpr int kUnitChannels = 64;  // channels of one row that lie side by side in its sums
// Of 16-bit codes in two planes: the high one must fit in a byte after the low one's sign has been
// carried.
constexpr float kMostPlaneCode = 127 * 256 + 127;

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


// The step of a row's 16-bit codes, that of numbers up to `least` at the least; NaN if any of its
// numbers is not finite.
inline float step_of(const float* row, int64_t rank, float least) {
  __m512 most = _mm512_set1_ps(least), taint = _mm512_setzero_ps();
  for (int64_t i = 0; i < rank; i += 16) {
    const __m512 x = _mm512_loadu_ps(row + i);
    most = _mm512_max_ps(most, _mm512_abs_ps(x));
    taint = _mm512_fmadd_ps(x, _mm512_setzero_ps(), taint);
  }
  return _mm512_reduce_max_ps(most) / kMostPlaneCode + _mm512_reduce_add_ps(taint);
}

// Four tokens' codes: the four bytes of a channel side by side, as vectors `distance` bytes apart.
inline void weave_four(const __m512i (&v)[4], int8_t* target, int64_t distance) {
  const __m512i low01 = _mm512_unpacklo_epi8(v[0], v[1]), low23 = _mm512_unpacklo_epi8(v[2], v[3]);
  const __m512i high01 = _mm512_unpackhi_epi8(v[0], v[1]);
  const __m512i high23 = _mm512_unpackhi_epi8(v[2], v[3]);
  _mm512_store_si512(target, _mm512_unpacklo_epi16(low01, low23));
  _mm512_store_si512(target + distance, _mm512_unpackhi_epi16(low01, low23));
  _mm512_store_si512(target + 2 * distance, _mm512_unpacklo_epi16(high01, high23));
  _mm512_store_si512(target + 3 * distance, _mm512_unpackhi_epi16(high01, high23));
}

// What a row may not see of `count` tokens from `first_token` on gets the score of nothing, and so
// do the scores behind them. Fewer than sixteen rows: the last one fills the lanes.
inline void hide_scores(const LatentTask& task, Range rows, int64_t first_token, int64_t count,
                        float (*scores)[kLanes], int64_t num_scores) {
  alignas(64) int32_t seen[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int64_t row = rows.first + std::min(lane, rows.count() - 1);
    seen[lane] =
        static_cast<int32_t>(std::clamp<int64_t>(task.visible(row) - first_token, 0, count));
  }
  const __m512i limits = _mm512_load_si512(seen);
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t t = 0; t < num_scores; ++t) {
    const __m512i number = _mm512_set1_epi32(static_cast<int>(t));
    const __mmask16 is_seen = _mm512_cmplt_epi32_mask(number, limits);
    _mm512_store_ps(scores[t], _mm512_mask_blend_ps(is_seen, nothing, _mm512_load_ps(scores[t])));
  }
}

// Multiply each row's sums, (units, kLanes, kUnitChannels), by its factor.
inline void scale_sums(float* sums, int64_t units, __m512 factors) {
  alignas(64) float factor[kLanes];
  _mm512_store_ps(factor, factors);
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int64_t row = 0; row < kLanes; ++row) {
      if (factor[row] == 1.0f) continue;
      const __m512 by = _mm512_set1_ps(factor[row]);
      float* target = sums + (unit * kLanes + row) * kUnitChannels;
      for (int64_t i = 0; i < kUnitChannels; i += 16) {
        _mm512_store_ps(target + i, _mm512_mul_ps(_mm512_load_ps(target + i), by));
      }
    }
  }
}

}  // namespace kimivl
