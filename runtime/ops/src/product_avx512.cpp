// Products with AVX-512 and VNNI, 64 multiply-adds of bytes in one instruction: few rows, which read
// the weights in their own order.

#include <algorithm>
#include <cmath>
#include <limits>

#include "product_avx512.h"

// Behind the headers: what they define must run on every processor.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")
#include "ahead.h"
#include "avx512_load.h"

namespace kimivl {
namespace {

void round_row(const RoundingShape& shape, const float* row, int8_t* codes, float* scales,
               int32_t* sums) {
  const __m512 sign = _mm512_set1_ps(-0.0f);
  for (int64_t block = 0; block < shape.blocks(); ++block) {
    const int64_t start = block * shape.block;
    const int64_t end = std::min<int64_t>(start + shape.block, shape.width);
    __m512 most = _mm512_setzero_ps();
    __mmask16 unordered = 0;
    for (int64_t i = start; i < end; i += 16) {
      const __m512 x = _mm512_maskz_loadu_ps(first_lanes(end - i), row + i);
      most = _mm512_max_ps(most, _mm512_andnot_ps(sign, x));
      unordered |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    }
    // ONNX Runtime's own arithmetic, so that ties fall to the same side.
    const float largest = _mm512_reduce_max_ps(most), scale = largest / 127.0f;
    const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = start; i < end; i += 16) {
      const __m512 x = _mm512_maskz_loadu_ps(first_lanes(end - i), row + i);
      const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
      sum = _mm512_add_epi32(sum, code);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtsepi32_epi8(code));
    }
    scales[block] = unordered ? std::numeric_limits<float>::quiet_NaN() : scale;
    sums[block] = _mm512_reduce_add_epi32(sum);
  }
}

// Sums of four vectors, in the order of the arguments.
__m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps(
      _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

constexpr int64_t kMostBlocks = 1024;
constexpr int64_t kScalesAhead = 1024;  // bytes that are asked for before they are needed

// Lane i of 16 gets the scale of its elements, where a vector of codes spans several blocks.
struct LaneScales {
  __m512i order;
  int64_t blocks_per_vector;  // 0: a block is longer than a vector
  int vectors_per_block;  // as a power of two

  LaneScales(int64_t block, int64_t elements) {
    blocks_per_vector = block < elements ? elements / block : 0;
    vectors_per_block = 0;
    while (elements << vectors_per_block < block) ++vectors_per_block;
    const int64_t count = std::max<int64_t>(blocks_per_vector, 1);
    alignas(64) int32_t lanes[16];
    for (int lane = 0; lane < 16; ++lane) lanes[lane] = static_cast<int32_t>(lane * count / 16);
    order = _mm512_load_si512(lanes);
  }

  template <bool is_fine>
  __m512 of(const float* combined, int64_t vector) const {
    if constexpr (is_fine) {
      return _mm512_permutexvar_ps(order, _mm512_loadu_ps(combined + vector * blocks_per_vector));
    }
    return _mm512_set1_ps(combined[vector >> vectors_per_block]);
  }
};

template <Type type>
float combine_scales(const BlockWeights& weights, int64_t row, const Tile& tile, float* combined) {
  const char* scales = weights.row_scales(row);
  _mm_prefetch(scales + kScalesAhead, _MM_HINT_T0);
  const int64_t blocks = weights.blocks();
  __m512 offset = _mm512_setzero_ps();
  for (int64_t i = 0; i < blocks; i += 16) {
    const __mmask16 mask = first_lanes(blocks - i);
    const __m512 both = _mm512_mul_ps(load_floats<type>(scales, i, mask),
                                      _mm512_maskz_loadu_ps(mask, tile.scales + i));
    const __m512i sums = _mm512_maskz_loadu_epi32(mask, tile.offsets + i);
    offset = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(sums), offset);
    _mm512_storeu_ps(combined + i, both);
  }
  return _mm512_reduce_add_ps(offset);
}

// One vector of codes times the activations that it meets: 16 sums, before any scale.
template <int bits>
__m512i multiply_codes(__m512i packed, const int8_t* activations) {
  const __m512i zero = _mm512_setzero_si512();
  if constexpr (bits == 8) return _mm512_dpbusd_epi32(zero, packed, _mm512_loadu_si512(activations));
  const __m512i low_bits = _mm512_set1_epi8(0x0f);
  const __m512i low = _mm512_and_si512(packed, low_bits);
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_bits);
  const __m512i sums = _mm512_dpbusd_epi32(zero, low, _mm512_loadu_si512(activations));
  return _mm512_dpbusd_epi32(sums, high, _mm512_loadu_si512(activations + 64));
}

// One row of weights times `num_tiles` rows of activations: sums that are still to be added up.
template <int bits, bool is_fine, int num_tiles>
void add_row(const uint8_t* codes, int64_t bytes, const LaneScales& lanes, const Tile* tiles,
             const float (*combined)[kMostBlocks + 16], __m512* totals) {
  constexpr int64_t kElements = 64 * 8 / bits;
  const LaneScales own = lanes;  // in registers, as nothing here can then change it
  const int8_t* activations[num_tiles];
  __m512 sums[num_tiles];
  for (int t = 0; t < num_tiles; ++t) {
    activations[t] = tiles[t].codes;
    sums[t] = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t vector, __m512i packed) {
    for (int t = 0; t < num_tiles; ++t) {
      const __m512i product = multiply_codes<bits>(packed, activations[t] + vector * kElements);
      sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), own.of<is_fine>(combined[t], vector),
                                sums[t]);
    }
  };
  const int64_t whole = bytes / 64;
  for (int64_t vector = 0; vector < whole; ++vector) {
    const uint8_t* place = codes + vector * 64;
    ask_ahead(place);
    step(vector, _mm512_loadu_si512(place));
  }
  if (bytes % 64 != 0) {
    step(whole, _mm512_maskz_loadu_epi8(first_bytes(bytes % 64), codes + whole * 64));
  }
  for (int t = 0; t < num_tiles; ++t) totals[t] = sums[t];
}

// Some rows, one behind the other as they lie in memory, and their sums at once.
template <Type type, int bits, bool is_fine, int num_rows, int num_tiles>
void multiply_few(const BlockWeights& weights, int64_t row, const LaneScales& lanes,
                  const Tile* tiles, float* out, int64_t stride) {
  alignas(64) float combined[num_tiles][kMostBlocks + 16];
  __m512 totals[num_rows][num_tiles];
  float offsets[num_rows][num_tiles];
  for (int r = 0; r < num_rows; ++r) {
    for (int t = 0; t < num_tiles; ++t) {
      offsets[r][t] = combine_scales<type>(weights, row + r, tiles[t], combined[t]);
    }
    add_row<bits, is_fine, num_tiles>(weights.row(row + r), weights.row_bytes(), lanes, tiles,
                                      combined, totals[r]);
  }
  for (int t = 0; t < num_tiles; ++t) {
    if constexpr (num_rows == 4) {
      alignas(16) float sums[4];
      _mm_store_ps(sums, sums_of(totals[0][t], totals[1][t], totals[2][t], totals[3][t]));
      for (int r = 0; r < 4; ++r) out[t * stride + r] = sums[r] + offsets[r][t];
    } else {
      for (int r = 0; r < num_rows; ++r) {
        out[t * stride + r] = _mm512_reduce_add_ps(totals[r][t]) + offsets[r][t];
      }
    }
  }
}

template <Type type, int bits, bool is_fine, int num_tiles>
void multiply_tiles(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                    float* out, int64_t stride) {
  const LaneScales lanes(weights.block, 64 * 8 / bits);
  int64_t row = first;
  for (; row + 4 <= last; row += 4) {
    multiply_few<type, bits, is_fine, 4, num_tiles>(weights, row, lanes, tiles, out + row - first,
                                                    stride);
  }
  for (; row < last; ++row) {
    multiply_few<type, bits, is_fine, 1, num_tiles>(weights, row, lanes, tiles, out + row - first,
                                                    stride);
  }
}

template <Type type, int bits, bool is_fine>
void multiply_sized(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                    int64_t count, float* out, int64_t stride) {
  switch (count) {
    case 4:
      return multiply_tiles<type, bits, is_fine, 4>(weights, first, last, tiles, out, stride);
    case 3:
      return multiply_tiles<type, bits, is_fine, 3>(weights, first, last, tiles, out, stride);
    case 2:
      return multiply_tiles<type, bits, is_fine, 2>(weights, first, last, tiles, out, stride);
    default:
      return multiply_tiles<type, bits, is_fine, 1>(weights, first, last, tiles, out, stride);
  }
}

template <Type type>
void multiply_typed(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                    int64_t count, float* out, int64_t stride) {
  const bool is_fine = weights.block < 64 * 8 / weights.bits;
  if (weights.bits == 4) {
    return is_fine ? multiply_sized<type, 4, true>(weights, first, last, tiles, count, out, stride)
                   : multiply_sized<type, 4, false>(weights, first, last, tiles, count, out, stride);
  }
  return is_fine ? multiply_sized<type, 8, true>(weights, first, last, tiles, count, out, stride)
                 : multiply_sized<type, 8, false>(weights, first, last, tiles, count, out, stride);
}

void multiply_rows(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                   int64_t count, float* out, int64_t stride) {
  switch (weights.scale_type) {
    case Type::kFloat:
      return multiply_typed<Type::kFloat>(weights, first, last, tiles, count, out, stride);
    case Type::kFloat16:
      return multiply_typed<Type::kFloat16>(weights, first, last, tiles, count, out, stride);
    default:
      return multiply_typed<Type::kBfloat16>(weights, first, last, tiles, count, out, stride);
  }
}

// e^x, within 2e-7 of it; a NaN stays one.
__m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 power = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (const float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  }
  return _mm512_scalef_ps(sum, power);
}

void swiglu(const float* pairs, int64_t count, float* out) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = 2 * (count - i);
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(left), pairs + 2 * i);
    const __m512 b = _mm512_maskz_loadu_ps(first_lanes(left - 16), pairs + 2 * i + 16);
    const __m512 gate = _mm512_permutex2var_ps(a, evens, b);
    const __m512 up = _mm512_permutex2var_ps(a, odds, b);
    const __m512 decay = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
    const __m512 value = _mm512_mul_ps(_mm512_div_ps(gate, _mm512_add_ps(one, decay)), up);
    _mm512_mask_storeu_ps(out + i, first_lanes(count - i), value);
  }
}

}  // namespace

ProductFunctions avx512_functions() {
  return {"avx512", round_row, multiply_rows, multiply_panel_avx512, swiglu};
}

}  // namespace kimivl
