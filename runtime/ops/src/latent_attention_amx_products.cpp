// The two products of attention over the latent cache, with AMX: scores, and sums by weight.
#include <algorithm>

#include "latent_attention_rows.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")

#include "latent_attention_amx.h"
#include "turn_avx512.h"

namespace kimivl::latent_amx {
namespace {

constexpr int64_t kTileValues = kRows * 16;  // sums of a tile register

// Sixteen tokens and their rotated keys, or one group of their codes.
struct ScoreStep {
  int64_t groups;
  int64_t token = 0;
  int64_t group = -1;  // the keys

  bool is_keys() const { return group < 0; }
  void advance() {
    if (++group < groups) return;
    group = -1;
    token += kRows;
  }
};

// A whole number in two planes of sums, as fp32.
__m512 joined(const int32_t* high) {
  const int32_t* low = high + kTileValues;
  const __m512i sum =
      _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(high), 8), _mm512_load_si512(low));
  return _mm512_cvtepi32_ps(sum);
}

template <int first>
void store_sums(int32_t* sums) {
  store_tile<first>(sums, 64);
  store_tile<first + 1>(sums + kTileValues, 64);
}

// Products of sixteen tokens' rotated keys, to one tile.
template <int first>
void multiply_keys(const Sizes& sizes, const RowTile& tile, const Block& block, int64_t token) {
  const int64_t stride = sizes.padded_rope * 2;
  clear_tile<first>();
  for (int64_t i = 0; i < sizes.padded_rope; i += kPairs) {
    const int64_t place = token * sizes.padded_rope + i;
    load_tile<6>(tile.rope_high + i * kRows, 64);
    load_tile<4>(block.keys_high + place, stride);
    add_bfloat16<first, 4, 6>();
    load_tile<5>(block.keys_low + place, stride);
    add_bfloat16<first, 5, 6>();
    load_tile<7>(tile.rope_low + i * kRows, 64);
    add_bfloat16<first, 4, 7>();
  }
}

// Products of sixteen tokens' codes of one group, to one tile for each plane of the queries.
template <int first>
void multiply_codes(const Sizes& sizes, const int8_t* codes, const int8_t* query) {
  clear_tile<first>();
  clear_tile<first + 1>();
  for (int64_t unit = 0; unit < sizes.units_of_group; ++unit) {
    load_tile<4>(codes + unit * kUnit, sizes.rank);
    load_tile<6>(query + unit * kPlanes * kTileBytes, 64);
    add_signed_signed<first, 4, 6>();
    load_tile<7>(query + unit * kPlanes * kTileBytes + kTileBytes, 64);
    add_signed_signed<first + 1, 4, 7>();
  }
}

// Add sixteen tokens' products of all groups, (groups, planes, kRows, kRows), to their scores.
void add_scores(const Sizes& sizes, const int32_t* sums, const float* scales,
                float (*scores)[kRows]) {
  const int64_t groups = sizes.groups, tokens = sizes.tokens;
  for (int64_t t = 0; t < kRows; ++t) {
    __m512 score = _mm512_load_ps(scores[t]);
    const int32_t* row = sums + t * kRows;
    const float* scale = scales + t;
    for (int64_t group = 0; group < groups; ++group) {
      score = _mm512_fmadd_ps(joined(row), _mm512_set1_ps(*scale), score);
      row += kPlanes * kTileValues;
      scale += tokens;
    }
    _mm512_store_ps(scores[t], score);
  }
}

void add_taints(const float* taints, float (*scores)[kRows]) {
  for (int64_t t = 0; t < kRows; ++t) {
    _mm512_store_ps(scores[t], _mm512_add_ps(_mm512_load_ps(scores[t]), _mm512_set1_ps(taints[t])));
  }
}

// The steps of 15-bit codes of a group's scaled weights.
void choose_steps(const Sizes& sizes, const RowTile& tile, const Block& block, int64_t group,
                  const Scratch& scratch) {
  constexpr float kMostCode = 32767;
  const float* scales = block.scales + group * sizes.tokens;
  __m512 most[4];
  for (auto& one : most) one = _mm512_setzero_ps();
  const int64_t padded = block.padded();
  for (int64_t t = 0; t < padded; t += 4) {
    for (int i = 0; i < 4; ++i) {
      const __m512 weight = _mm512_load_ps(scratch.scores[t + i]);
      most[i] = _mm512_max_ps(_mm512_mul_ps(weight, _mm512_set1_ps(scales[t + i])), most[i]);
    }
  }
  const __m512 top =
      _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  // What is smaller than this is lost in fp32, and its inverse would overflow.
  const __mmask16 counts = _mm512_cmp_ps_mask(top, _mm512_set1_ps(1e-33f), _CMP_GT_OQ);
  _mm512_store_ps(tile.steps + group * kRows,
                  _mm512_mul_ps(top, _mm512_set1_ps(1.0f / kMostCode)));
  _mm512_store_ps(scratch.inverses + group * kRows,
                  _mm512_maskz_div_ps(counts, _mm512_set1_ps(kMostCode), top));
}

// Weights of kUnit tokens by row, (kRows, kUnit).
void turn_weights(const float (*weights)[kRows], float* turned) {
  for (int v = 0; v < kUnit / 16; ++v) {
    __m512i part[16];
    for (int t = 0; t < 16; ++t) part[t] = _mm512_load_si512(weights[v * 16 + t]);
    turn(part);
    for (int row = 0; row < kRows; ++row) {
      _mm512_store_si512(turned + row * kUnit + v * 16, part[row]);
    }
  }
}

// Round kUnit tokens' weights: two tiles of bytes without sign.
void round_unit(const float* turned, const float* scales, const float* inverse, uint8_t* target) {
  const __m512i low_bytes = _mm512_set1_epi16(0xff);
  __m512 scale[4];
  for (int v = 0; v < 4; ++v) scale[v] = _mm512_loadu_ps(scales + v * 16);
  for (int row = 0; row < kRows; ++row) {
    const __m512 factor = _mm512_set1_ps(inverse[row]);
    __m512i code[4];
    for (int v = 0; v < 4; ++v) {
      const __m512 weight = _mm512_mul_ps(_mm512_load_ps(turned + row * kUnit + v * 16), scale[v]);
      code[v] = _mm512_cvtps_epi32(_mm512_mul_ps(weight, factor));
    }
    const __m512i first = _mm512_packus_epi32(code[0], code[1]);
    const __m512i last = _mm512_packus_epi32(code[2], code[3]);
    const __m512i high =
        _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(last, 8));
    const __m512i low = _mm512_packus_epi16(_mm512_and_si512(first, low_bytes),
                                            _mm512_and_si512(last, low_bytes));
    _mm512_store_si512(target + row * kUnit, high);
    _mm512_store_si512(target + kTileBytes + row * kUnit, low);
  }
}

// Products of the block's weights with one of a unit's four vectors of channels, to one tile for
// each plane of the weights.
template <int first>
void multiply_weights(const uint8_t* weights, const int8_t* woven, int64_t num_tokens) {
  clear_tile<first>();
  clear_tile<first + 1>();
  for (int64_t start = 0; start < num_tokens; start += kUnit) {
    load_tile<6>(woven + start * kUnit, 64);
    load_tile<4>(weights, 64);
    add_unsigned_signed<first, 4, 6>();
    load_tile<5>(weights + kTileBytes, 64);
    add_unsigned_signed<first + 1, 5, 6>();
    weights += kPlanes * kTileBytes;
  }
}

void add_mixed(const int32_t* sums, const float* steps, float* mixed) {
  for (int64_t row = 0; row < kRows; ++row) {
    const __m512 sum = joined(sums + row * 16);
    float* target = mixed + row * kUnit;
    _mm512_store_ps(target,
                    _mm512_fmadd_ps(sum, _mm512_set1_ps(steps[row]), _mm512_load_ps(target)));
  }
}

}  // namespace

void score_tokens(const Sizes& sizes, const RowTile& tile, Block& block, const Scratch& scratch) {
  const int64_t num_tiles = (block.count + kRows - 1) / kRows;
  in_steps(
      num_tiles * (sizes.groups + 1), ScoreStep{sizes.groups},
      [&](auto first, const ScoreStep& step) {
        block.next_codes.ask(8);
        if (step.is_keys()) return multiply_keys<first.value>(sizes, tile, block, step.token);
        const int64_t start = step.group * sizes.group;
        multiply_codes<first.value>(sizes, block.rows(step.token, sizes.rank) + start,
                                    tile.codes + start * kPlanes * kRows);
      },
      [&](auto first, const ScoreStep& step) {
        if (step.is_keys()) return store_tile<first.value>(scratch.scores[step.token], 64);
        store_sums<first.value>(scratch.sums + step.group * kPlanes * kTileValues);
      },
      [&](auto, const ScoreStep& step) {
        float(*scores)[kRows] = scratch.scores + step.token;
        if (step.is_keys() && block.is_tainted) add_taints(block.taints + step.token, scores);
        if (step.group + 1 < sizes.groups) return;
        add_scores(sizes, scratch.sums, block.scales + step.token, scores);
      });
}

void round_weights(const Sizes& sizes, const RowTile& tile, const Block& block,
                   const Scratch& scratch) {
  const int64_t group_tiles = sizes.tokens / kUnit * kPlanes;
  alignas(64) float turned[kRows * kUnit];
  for (int64_t group = 0; group < sizes.groups; ++group) {
    choose_steps(sizes, tile, block, group, scratch);
  }
  for (int64_t start = 0; start < block.padded(); start += kUnit) {
    turn_weights(scratch.scores + start, turned);
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t place = group * group_tiles + start / kUnit * kPlanes;
      round_unit(turned, block.scales + group * sizes.tokens + start,
                 scratch.inverses + group * kRows, tile.weights + place * kTileBytes);
    }
  }
}

void mix_unit(const Sizes& sizes, int64_t unit, const RowTile& tile, Block& block,
              const Scratch& scratch) {
  const int64_t group_bytes = sizes.tokens / kUnit * kPlanes * kTileBytes;
  const int64_t group = unit / sizes.units_of_group;
  in_steps(
      4, Counter{},  // the vectors of the unit
      [&](auto first, const Counter& step) {
        block.next_keys.ask(32);
        multiply_weights<first.value>(tile.weights + group * group_bytes,
                                      block.woven + step.index * kTileBytes, block.padded());
      },
      [&](auto first, const Counter&) {
        store_sums<first.value>(scratch.sums + first.value * kTileValues);
      },
      [&](auto first, const Counter& step) {
        add_mixed(scratch.sums + first.value * kTileValues, tile.steps + group * kRows,
                  tile.mixed + unit * kRows * kUnit + step.index * 16);
      });
}

}  // namespace kimivl::latent_amx
