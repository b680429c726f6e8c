// Queries and cached tokens brought into the order of the AMX kernels.
#include <algorithm>
#include <cstring>

#include "latent_attention_rows.h"
#include "number_types.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")

#include "avx512_load.h"
#include "latent_attention_amx.h"
#include "turn_avx512.h"

namespace kimivl::latent_amx {
namespace {

// Rotated queries are divided by steps, and must stay numbers.
constexpr float kSmallest = 1e-15f;

// Bytes of 64 numbers that fit; dword 4 l + v has those of dword 4 v + l.
__m512i pack_bytes(const __m512i (&v)[4]) {
  return _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
}

// One unit of all rows: a tile for each plane.
void round_unit(const float* const (&rows)[kRows], const float* inverse, int8_t* target) {
  __m512i planes[kPlanes][kRows];
  for (int row = 0; row < kRows; ++row) {
    __m512i high[4], low[4];
    for (int v = 0; v < 4; ++v) {
      const __m512 x = _mm512_loadu_ps(rows[row] + v * 16);
      const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse[row])));
      high[v] = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
      low[v] = _mm512_sub_epi32(code, _mm512_slli_epi32(high[v], 8));
    }
    planes[0][row] = pack_bytes(high);
    planes[1][row] = pack_bytes(low);
  }
  for (int plane = 0; plane < kPlanes; ++plane) {
    turn(planes[plane]);
    for (int i = 0; i < kUnit / 4; ++i) {
      const int four = i % 4 * 4 + i / 4;
      _mm512_store_si512(target + plane * kTileBytes + four * 64, planes[plane][i]);
    }
  }
}

// Thirty-two numbers as the sums of two of bfloat16, wrong by less than a part in 2^16. They come
// in pairs: number i, and number 16 + i above it.
struct Halves {
  __m512i high, low;

  Halves(__m512 first, __m512 second) {
    const __m512i one = rounded(first), other = rounded(second);
    high = paired(one, other);
    low = paired(rest(first, one), rest(second, other));
  }

 private:
  // What is not a number stays one, or leaves a rest that is none.
  static __m512i rounded(__m512 x) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_and_si512(bits, _mm512_set1_epi32(~0xffff));
  }
  static __m512i rest(__m512 x, __m512i high) {
    return _mm512_castps_si512(_mm512_sub_ps(x, _mm512_castsi512_ps(high)));
  }
  static __m512i paired(__m512i first, __m512i second) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second);
  }
};

// The rope parts of all rows: kPairs channels are a tile.
void split_rope(const Sizes& sizes, const float* const (&rows)[kRows], const float* inverse,
                const RowTile& tile) {
  for (int64_t start = 0; start < sizes.padded_rope; start += kPairs) {
    __m512i high[kRows], low[kRows];
    for (int row = 0; row < kRows; ++row) {
      const float* values = rows[row] + sizes.rank + start;
      const int64_t left = sizes.rope - start;
      const __m512 factor = _mm512_set1_ps(inverse[row]);
      const Halves halves(_mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(left), values), factor),
                          _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(left - 16), values + 16),
                                        factor));
      high[row] = halves.high;
      low[row] = halves.low;
    }
    turn(high);
    turn(low);
    for (int i = 0; i < kPairs / 2; ++i) {
      _mm512_store_si512(tile.rope_high + start * kRows + i * 2 * kRows, high[i]);
      _mm512_store_si512(tile.rope_low + start * kRows + i * 2 * kRows, low[i]);
    }
  }
}

void split_keys(const Sizes& sizes, const float* keys, const Block& block) {
  const int64_t count = block.count, rope = sizes.rope, padded = sizes.padded_rope;
  for (int64_t start = 0; start < padded; start += kPairs) {
    const __mmask16 first = first_lanes(rope - start);
    const __mmask16 second = first_lanes(rope - start - 16);
    for (int64_t t = 0; t < count; ++t) {
      const float* key = keys + t * rope + start;
      const Halves halves(_mm512_maskz_loadu_ps(first, key),
                          _mm512_maskz_loadu_ps(second, key + 16));
      _mm512_store_si512(block.keys_high + t * padded + start, halves.high);
      _mm512_store_si512(block.keys_low + t * padded + start, halves.low);
    }
  }
  const int64_t end = count * padded, rest = sizes.keys() - end;
  std::fill_n(block.keys_high + end, rest, uint16_t{0});
  std::fill_n(block.keys_low + end, rest, uint16_t{0});
}

// A scale that is not finite becomes 0, and its token's scores NaN: times the zero weight of a
// token that a row may not see, it would reach that row.
void taint_tokens(const Sizes& sizes, const Block& block) {
  std::fill_n(block.taints, sizes.tokens, 0.0f);
  for (int64_t group = 0; group < sizes.groups; ++group) {
    float* scales = block.scales + group * sizes.tokens;
    for (int64_t t = 0; t < block.count; ++t) {
      const float taint = taint_of(scales[t]);
      block.taints[t] += taint;
      if (taint != 0) scales[t] = 0.0f;
    }
  }
}

void load_scales(const Sizes& sizes, const float* scales, Block& block) {
  const int64_t groups = sizes.groups;
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(groups)));
  const __m512 zero = _mm512_setzero_ps();
  __m512 taint = zero;  // becomes NaN, as 0 times what is not finite
  for (int64_t t = 0; t < block.padded(); t += 16) {
    const __mmask16 mask = first_lanes(block.count - t);
    for (int64_t group = 0; group < groups; ++group) {
      const float* source = scales + t * groups + group;
      const __m512 scale = _mm512_mask_i32gather_ps(zero, mask, places, source, 4);
      taint = _mm512_fmadd_ps(scale, zero, taint);
      _mm512_store_ps(block.scales + group * sizes.tokens + t, scale);
    }
  }
  block.is_tainted = _mm512_cmp_ps_mask(taint, taint, _CMP_UNORD_Q) != 0;
  if (block.is_tainted) taint_tokens(sizes, block);
}

}  // namespace

void weave_codes(const Sizes& sizes, int64_t unit, Block& block) {
  const int64_t padded = block.padded(), rank = sizes.rank;
  for (int64_t start = 0; start < padded; start += kUnit) {
    for (int64_t four = 0; four < kUnit / 4; ++four) {
      __m512i codes[4];
      for (int64_t i = 0; i < 4; ++i) {
        codes[i] = _mm512_loadu_si512(block.row(start + four * 4 + i, rank) + unit * kUnit);
      }
      weave_four(codes, block.woven + start * kUnit + (four % 4 * 4 + four / 4) * 64, kTileBytes);
      block.next_codes.ask(2);
    }
  }
}

void load_queries(const LatentTask& task, const Sizes& sizes, const RowTile& tile) {
  std::fill_n(tile.mixed, sizes.rank * kRows, 0.0f);
  std::fill_n(tile.state->peaks, kRows, kNoPeak);
  std::fill_n(tile.state->sums, kRows, 0.0f);
  const float* rows[kRows];
  float inverse[kRows];
  for (int lane = 0; lane < kRows; ++lane) {
    rows[lane] =
        task.query + (tile.first_row + std::min<int64_t>(lane, tile.count - 1)) * task.width();
    const float step = step_of(rows[lane], sizes.rank, kSmallest);
    tile.state->query_scales[lane] = step * task.score_scale();
    inverse[lane] = 1.0f / step;
  }
  split_rope(sizes, rows, inverse, tile);
  for (int64_t unit = 0; unit < sizes.units; ++unit) {
    round_unit(rows, inverse, tile.codes + unit * kPlanes * kTileBytes);
    for (auto& row : rows) row += kUnit;
  }
}

void load_block(const LatentTask& task, const Sizes& sizes, Range tokens, Block& block) {
  block.first = tokens.first;
  block.count = std::min<int64_t>(sizes.tokens, tokens.count());
  const float* keys = task.cache.keys + tokens.first * sizes.rope;
  block.codes = task.cache.codes + tokens.first * sizes.rank;
  const int64_t rest = block.count % kRows;
  for (int64_t i = 0; rest > 0 && i < kRows; ++i) {
    std::copy_n(block.row(block.count - rest + i, sizes.rank), sizes.rank,
                block.tail + i * sizes.rank);
  }
  const int64_t ahead = std::min<int64_t>(sizes.tokens, tokens.count() - block.count);
  block.next_codes = Ahead(block.codes + block.count * sizes.rank, ahead * sizes.rank);
  block.next_keys = Ahead(keys + block.count * sizes.rope, ahead * sizes.rope * 4);
  load_scales(sizes, task.cache.scales + tokens.first * sizes.groups, block);
  split_keys(sizes, keys, block);
}

}  // namespace kimivl::latent_amx
