// The two products of attention over the latent cache, with VNNI: scores, and sums by weight.
#include <algorithm>
#include <cstring>

#include "latent_attention_rows.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")

#include "latent_attention_avx512.h"

namespace kimivl::latent {
namespace {

// Add the products of bytes without and with sign, in fours. GCC 12 makes of the intrinsic two
// moves between registers for each sum in a loop.
void add_products(__m512i& sums, __m512i unsigned_bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

__m512i broadcast(const void* four_bytes) {
  int32_t value;
  std::memcpy(&value, four_bytes, sizeof(value));
  return _mm512_set1_epi32(value);
}

// Add products over one group of channels: fours [first, last) of each token's codes.
void add_group(const Tile& tile, int64_t first, int64_t last, int64_t group,
               const uint8_t* codes, int64_t stride, const char* next, __m512i (&high)[kStep],
               __m512i (&low)[kStep]) {
  const __m512i correction = _mm512_load_si512(tile.corrections + group * kRows);
  for (int t = 0; t < kStep; ++t) {
    high[t] = _mm512_setzero_si512();
    low[t] = correction;
  }
  for (int64_t i = first; i < last; ++i) {
    const __m512i query_high = _mm512_load_si512(tile.planes + i * 2 * kRows * 4);
    const __m512i query_low = _mm512_load_si512(tile.planes + (i * 2 + 1) * kRows * 4);
    _mm_prefetch(next + i * kStep * 2, _MM_HINT_T0);
    for (int t = 0; t < kStep; ++t) {
      const __m512i code = broadcast(codes + t * stride + i * 4);
      add_products(high[t], code, query_high);
      add_products(low[t], code, query_low);
    }
  }
}

void score_step(const Sizes& sizes, const Tile& tile, const Block& block, int64_t token) {
  __m512 totals[kStep];
  for (int t = 0; t < kStep; ++t) totals[t] = _mm512_set1_ps(block.taints[token + t]);
  const char* next = block.next_codes + token * sizes.rank / 2;
  for (int64_t group = 0; group < sizes.groups; ++group) {
    __m512i high[kStep], low[kStep];
    const int64_t first = group * sizes.group / 4, last = (group + 1) * sizes.group / 4;
    add_group(tile, first, last, group, block.shifted, sizes.padded, next, high, low);
    for (int t = 0; t < kStep; ++t) {
      const __m512i product = _mm512_add_epi32(_mm512_slli_epi32(high[t], 8), low[t]);
      const __m512 scale = _mm512_set1_ps(block.scales[(token + t) * sizes.groups + group]);
      totals[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, totals[t]);
    }
  }
  const __m512 query_scale = _mm512_load_ps(tile.state->query_scales);
  for (int t = 0; t < kStep; ++t) totals[t] = _mm512_mul_ps(totals[t], query_scale);
  const float* keys = block.keys + token * sizes.rope;
  const char* next_keys = block.next_keys + token * sizes.rope * 4;
  for (int64_t i = 0; i < sizes.rope; ++i) {
    const __m512 query = _mm512_load_ps(tile.rope + i * kRows);
    _mm_prefetch(next_keys + i * kStep * 4, _MM_HINT_T0);
    for (int t = 0; t < kStep; ++t) {
      totals[t] = _mm512_fmadd_ps(query, _mm512_set1_ps(keys[t * sizes.rope + i]), totals[t]);
    }
  }
  for (int t = 0; t < kStep; ++t) _mm512_store_ps(tile.state->scores[token + t], totals[t]);
}

// Weights times a group's scales: four tokens, all rows.
struct ScaledWeights {
  __m512 of[4];

  ScaledWeights(const Sizes& sizes, const Block& block, int64_t group, const Tile& tile,
                int64_t token) {
    for (int i = 0; i < 4; ++i) {
      const __m512 scale = _mm512_set1_ps(block.scales[(token + i) * sizes.groups + group]);
      of[i] = _mm512_mul_ps(_mm512_load_ps(tile.state->scores[token + i]), scale);
    }
  }
};

// Round a run of tokens' scaled weights by their highest.
void round_run(const Sizes& sizes, const Block& block, int64_t group, const Tile& tile,
               int64_t run) {
  __m512 most[4];
  for (auto& one : most) one = _mm512_setzero_ps();
  const int64_t first = run * kRun;
  for (int64_t t = first; t < first + kRun; t += 4) {
    const ScaledWeights scaled(sizes, block, group, tile, t);
    for (int i = 0; i < 4; ++i) most[i] = _mm512_max_ps(scaled.of[i], most[i]);
  }
  const __m512 top =
      _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  // What is smaller than this is lost in fp32, and its inverse would overflow.
  const __mmask16 counts = _mm512_cmp_ps_mask(top, _mm512_set1_ps(1e-35f), _CMP_GT_OQ);
  const __m512 inverse = _mm512_maskz_div_ps(counts, _mm512_set1_ps(255.0f), top);
  RoundedWeights& out = tile.state->rounded;
  _mm512_store_ps(out.steps[run], _mm512_mul_ps(top, _mm512_set1_ps(1.0f / 255.0f)));
  for (int64_t t = first; t < first + kRun; t += 4) {
    const ScaledWeights scaled(sizes, block, group, tile, t);
    __m512i codes[4];
    for (int i = 0; i < 4; ++i) {
      const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(scaled.of[i], inverse));
      codes[i] = _mm512_slli_epi32(code, 8 * static_cast<unsigned>(i));
    }
    _mm512_store_si512(out.codes[t / 4],
                       _mm512_or_si512(_mm512_or_si512(codes[0], codes[1]),
                                       _mm512_or_si512(codes[2], codes[3])));
  }
}

// Add a run of tokens to `vectors` times 16 channels of all rows. Half of the next block's codes is
// asked for here and half with the scores: in either alone, the core would run out of places for
// lines under way.
template <int vectors>
void mix_run(const RoundedWeights& weights, int64_t run, const int8_t* woven,
             const char* next, float* mixed) {
  constexpr int kSide = 16 / vectors;  // rows side by side
  constexpr int kFours = kRun / 4;
  const auto* codes = weights.codes + run * kFours;
  for (int row = 0; row < kRows; row += kSide) {
    __m512i sums[kSide][vectors];
    for (int r = 0; r < kSide; ++r) {
      for (int v = 0; v < vectors; ++v) sums[r][v] = _mm512_setzero_si512();
    }
    for (int four = 0; four < kFours; ++four) {
      _mm_prefetch(next + ((run * kRows + row) / kSide * kFours + four) * 32, _MM_HINT_T0);
      __m512i tokens[vectors];
      for (int v = 0; v < vectors; ++v) {
        tokens[v] = _mm512_load_si512(woven + (run * kFours + four) * kUnit * 4 + v * 64);
      }
      for (int r = 0; r < kSide; ++r) {
        const __m512i weight = _mm512_set1_epi32(codes[four][row + r]);
        for (int v = 0; v < vectors; ++v) add_products(sums[r][v], weight, tokens[v]);
      }
    }
    for (int r = 0; r < kSide; ++r) {
      const __m512 step = _mm512_set1_ps(weights.steps[run][row + r]);
      for (int v = 0; v < vectors; ++v) {
        float* target = mixed + (row + r) * kUnit + v * 16;
        const __m512 sum = _mm512_cvtepi32_ps(sums[r][v]);
        _mm512_store_ps(target, _mm512_fmadd_ps(sum, step, _mm512_load_ps(target)));
      }
    }
  }
}

// Add the block's tokens to the channels of a group, or of a unit if that is narrower.
void mix_channels(const Tile& tile, int64_t num_runs, int64_t width, const int8_t* woven,
                  const char* next, float* mixed) {
  const RoundedWeights& weights = tile.state->rounded;
  for (int64_t run = 0; run < num_runs; ++run) {
    if (width == 64) {
      mix_run<4>(weights, run, woven, next, mixed);
    } else if (width == 32) {
      mix_run<2>(weights, run, woven, next, mixed);
    } else {
      mix_run<1>(weights, run, woven, next, mixed);
    }
  }
}

}  // namespace

void score_tokens(const Sizes& sizes, Tiles tiles, const Block& block) {
  for (int64_t token = 0; token < block.count; token += kStep) {
    shift_codes(sizes, token, block);
    for (const Tile& tile : tiles) score_step(sizes, tile, block, token);
  }
}

void mix_tokens(const Sizes& sizes, Tiles tiles, const Block& block) {
  const int64_t num_runs = (block.count + kRun - 1) / kRun;
  const int64_t width = std::min<int64_t>(sizes.group, kUnit);
  for (int64_t channel = 0; channel < sizes.padded; channel += width) {
    const int64_t unit = channel / kUnit, within = channel % kUnit;
    if (within == 0) weave_codes(sizes, unit, block);
    for (const Tile& tile : tiles) {
      if (channel % sizes.group == 0) {
        for (int64_t run = 0; run < num_runs; ++run) {
          round_run(sizes, block, channel / sizes.group, tile, run);
        }
      }
      mix_channels(tile, num_runs, width, block.woven + within * 4,
                   block.next_codes + (sizes.units() + unit) * kUnit * 32,
                   tile.mixed_at(unit, 0) + within);
    }
  }
}

}  // namespace kimivl::latent
