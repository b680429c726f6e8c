// Queries and cached tokens brought into the order of the AVX-512 kernels.
#include <algorithm>
#include <cstring>

#include "latent_attention_rows.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")

#include "latent_attention_avx512.h"

namespace kimivl::latent {
namespace {

// Four codes of a row side by side, for both planes.
void store_codes(__m512i codes, int8_t* target) {
  const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(codes, _mm512_set1_epi32(128)), 8);
  alignas(16) int32_t bytes[2][4];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes[0]), _mm512_cvtepi32_epi8(high));
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes[1]), _mm512_cvtepi32_epi8(codes));
  for (int four = 0; four < 4; ++four) {
    for (int plane = 0; plane < 2; ++plane) {
      std::memcpy(target + (four * 2 + plane) * kRows * 4, &bytes[plane][four], 4);
    }
  }
}

void round_query(const float* row, const Sizes& sizes, int lane, const Tile& tile, float step) {
  const __m512 inverse = _mm512_set1_ps(step > 0 ? 1.0f / step : 0.0f);
  for (int64_t start = 0; start < sizes.rank; start += sizes.group) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = start; i < start + sizes.group; i += 16) {
      const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + i), inverse));
      sum = _mm512_add_epi32(sum, codes);
      store_codes(codes, tile.planes + i * 2 * kRows + lane * 4);
    }
    tile.corrections[start / sizes.group * kRows + lane] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

// Four tokens' codes of one unit: the four bytes of a channel side by side, channels in order.
void weave(const int8_t* (&rows)[4], __mmask64 mask, int8_t* target) {
  // Unpacking works within quarters of a vector: they get the four channels that shall come first.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i v[4];
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(mask, rows[i]));
  }
  weave_four(v, target, 64);
}

// A scale that is not finite becomes 0, and its token's scores NaN: times the zero weight of a
// token that a row may not see, it would reach that row.
void taint_tokens(const Sizes& sizes, const Block& block) {
  for (int64_t i = 0; i < block.count * sizes.groups; ++i) {
    const float taint = taint_of(block.scales[i]);
    block.taints[i / sizes.groups] += taint;
    if (taint != 0) block.scales[i] = 0.0f;
  }
}

void load_scales(const LatentTask& task, const Sizes& sizes, const Block& block) {
  const float* scales = task.cache.scales + block.first * task.groups();
  std::fill_n(block.taints, kTokens, 0.0f);
  std::fill_n(block.scales, sizes.scales(), 0.0f);
  if (task.groups() == sizes.groups) {
    std::copy_n(scales, block.count * sizes.groups, block.scales);
  } else {
    for (int64_t t = 0; t < block.count; ++t) {
      std::copy_n(scales + t * task.groups(), task.groups(), block.scales + t * sizes.groups);
    }
  }
  __m512 taint = _mm512_setzero_ps();  // becomes NaN, as 0 times what is not finite
  for (int64_t i = 0; i < sizes.scales(); i += 16) {
    taint = _mm512_fmadd_ps(_mm512_load_ps(block.scales + i), _mm512_setzero_ps(), taint);
  }
  if (_mm512_cmp_ps_mask(taint, taint, _CMP_UNORD_Q) != 0) taint_tokens(sizes, block);
}

// The channels of a unit that there are.
__mmask64 mask_of(const Sizes& sizes, int64_t unit) {
  const int64_t rest = sizes.rank - unit * kUnit;
  return rest >= kUnit ? ~__mmask64{0} : (__mmask64{1} << rest) - 1;
}

}  // namespace

void shift_codes(const Sizes& sizes, int64_t token, const Block& block) {
  const __m512i shift = _mm512_set1_epi8(-128);
  const int64_t whole = sizes.rank / kUnit;
  for (int64_t t = 0; t < kStep; ++t) {
    const int8_t* row = block.row(token + t, sizes.rank);
    uint8_t* target = block.shifted + t * sizes.padded;
    for (int64_t i = 0; i < whole * kUnit; i += kUnit) {
      _mm512_store_si512(target + i, _mm512_xor_si512(_mm512_loadu_si512(row + i), shift));
    }
    if (whole == sizes.units()) continue;
    const __m512i rest = _mm512_maskz_loadu_epi8(mask_of(sizes, whole), row + whole * kUnit);
    _mm512_store_si512(target + whole * kUnit, _mm512_xor_si512(rest, shift));
  }
}

void weave_codes(const Sizes& sizes, int64_t unit, const Block& block) {
  const __mmask64 mask = mask_of(sizes, unit);
  for (int64_t t = 0; t < block.count; t += 4) {
    const int8_t* rows[4];
    for (int64_t i = 0; i < 4; ++i) rows[i] = block.row(t + i, sizes.rank) + unit * kUnit;
    weave(rows, mask, block.woven + t * kUnit);
  }
}

void load_queries(const LatentTask& task, const Sizes& sizes, Tile& tile) {
  std::fill_n(tile.planes, sizes.planes(), int8_t{0});
  std::fill_n(tile.corrections, sizes.groups * kRows, 0);
  std::fill_n(tile.mixed, sizes.mixed(), 0.0f);
  std::fill_n(tile.state->peaks, kRows, kNoPeak);
  std::fill_n(tile.state->sums, kRows, 0.0f);
  for (int lane = 0; lane < kRows; ++lane) {
    const int64_t number = tile.first_row + std::min<int64_t>(lane, tile.count - 1);
    const float* row = task.query + number * task.width();
    const float step = step_of(row, sizes.rank, 0.0f);
    tile.state->query_scales[lane] = step * task.score_scale();
    round_query(row, sizes, lane, tile, step);
    for (int64_t i = 0; i < sizes.rope; ++i) {
      tile.rope[i * kRows + lane] = row[sizes.rank + i] * task.score_scale();
    }
  }
}

void load_block(const LatentTask& task, const Sizes& sizes, Range tokens, Block& block) {
  block.first = tokens.first;
  block.count = std::min<int64_t>(kTokens, tokens.count());
  const float* keys = task.cache.keys + tokens.first * sizes.rope;
  const int8_t* codes = task.cache.codes + tokens.first * sizes.rank;
  load_scales(task, sizes, block);
  block.codes = codes;
  block.keys = keys;
  if (block.count < kTokens) {
    std::copy_n(keys, block.count * sizes.rope, block.tail_keys);
    std::fill(block.tail_keys + block.count * sizes.rope, block.tail_keys + sizes.keys(), 0.0f);
    block.keys = block.tail_keys;
  }
  // Asking for what does not exist does no harm, but would be in vain.
  const int64_t ahead = tokens.count() > kTokens ? kTokens : 0;
  block.next_codes = reinterpret_cast<const char*>(codes + ahead * sizes.rank);
  block.next_keys = reinterpret_cast<const char*>(keys + ahead * sizes.rope);
}

}  // namespace kimivl::latent
