// Attention over the latent cache with AVX-512 and VNNI: one pass over the tokens for many rows.
//
// Sixteen rows are the sixteen lanes, so that the codes need no turning for the scores: four codes
// of one token are broadcast and meet four numbers of every row's query. Queries are rounded to 16
// bits, in two planes of bytes: with 8 bits, scores would be wrong by a share of their spread, and
// weights by its power. Weights are rounded to 8 bits by the highest of a run of tokens, which is
// wrong by at most half a 255th of that.
#include <algorithm>
#include <limits>
#include <vector>

#include "latent_attention_rows.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")

#include "latent_attention_avx512.h"

namespace kimivl {
namespace latent {
namespace {

Tile take_tile(Arena& arena, const Sizes& sizes) {
  Tile tile{};
  tile.planes = arena.take<int8_t>(sizes.planes());
  tile.rope = arena.take<float>(sizes.rope_values());
  tile.corrections = arena.take<int32_t>(sizes.groups * kRows);
  tile.mixed = arena.take<float>(sizes.mixed());
  tile.state = arena.take<TileState>(1);
  return tile;
}

Block take_block(Arena& arena, const Sizes& sizes) {
  Block block{};
  block.scales = arena.take<float>(sizes.scales());
  block.taints = arena.take<float>(kTokens);
  block.tail_keys = arena.take<float>(sizes.keys());
  block.shifted = arena.take<uint8_t>(sizes.shifted());
  block.woven = arena.take<int8_t>(kTokens * kUnit);
  return block;
}

size_t scratch_bytes(const Sizes& sizes, int64_t num_tiles) {
  const size_t tile = Arena::bytes_of<int8_t>(sizes.planes()) +
                      Arena::bytes_of<float>(sizes.rope_values()) +
                      Arena::bytes_of<int32_t>(sizes.groups * kRows) +
                      Arena::bytes_of<float>(sizes.mixed()) + Arena::bytes_of<TileState>(1);
  return tile * static_cast<size_t>(num_tiles) + Arena::bytes_of<float>(sizes.scales()) +
         Arena::bytes_of<float>(kTokens) + Arena::bytes_of<float>(sizes.keys()) +
         Arena::bytes_of<uint8_t>(sizes.shifted()) + Arena::bytes_of<int8_t>(kTokens * kUnit);
}

// The highest score of each row, of these and before. max(x, peak) is the second of the two if x
// is NaN: the peak stays a number.
__m512 highest(const TileState& state) {
  __m512 peaks[4];
  for (auto& peak : peaks) peak = _mm512_load_ps(state.peaks);
  for (int t = 0; t < kTokens; t += 4) {
    for (int i = 0; i < 4; ++i) {
      peaks[i] = _mm512_max_ps(_mm512_load_ps(state.scores[t + i]), peaks[i]);
    }
  }
  return _mm512_max_ps(_mm512_max_ps(peaks[0], peaks[1]), _mm512_max_ps(peaks[2], peaks[3]));
}

// Turn scores into weights under the rows' new peaks, and bring what was summed under these.
void weigh_tokens(const Sizes& sizes, const Tile& tile) {
  TileState& state = *tile.state;
  const __m512 old_peak = _mm512_load_ps(state.peaks), peak = highest(state);
  const __m512 change = power_of_two(_mm512_sub_ps(old_peak, peak));
  __m512 sums[4] = {_mm512_mul_ps(_mm512_load_ps(state.sums), change)};
  for (int i = 1; i < 4; ++i) sums[i] = _mm512_setzero_ps();
  for (int t = 0; t < kTokens; t += 4) {
    for (int i = 0; i < 4; ++i) {
      float* score = state.scores[t + i];
      const __m512 weight = power_of_two(_mm512_sub_ps(_mm512_load_ps(score), peak));
      sums[i] = _mm512_add_ps(sums[i], weight);
      _mm512_store_ps(score, weight);
    }
  }
  const __m512 sum =
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  _mm512_store_ps(state.peaks, peak);
  _mm512_store_ps(state.sums, sum);
  if (_mm512_cmp_ps_mask(old_peak, peak, _CMP_NEQ_UQ) != 0) {
    scale_sums(tile.mixed, sizes.units(), change);
  }
}

void attend_block(const LatentTask& task, const Sizes& sizes, Tiles tiles, const Block& block) {
  score_tokens(sizes, tiles, block);
  for (const Tile& tile : tiles) {
    if (task.visible(tile.first_row) < block.first + kTokens || block.count < kTokens) {
      hide_scores(task, tile.rows(), block.first, block.count, tile.state->scores, kTokens);
    }
    weigh_tokens(sizes, tile);
  }
  mix_tokens(sizes, tiles, block);
}

// Undo the order of tiles, which is (units, rows, channels of a unit).
void store_tile(const Sizes& sizes, const Tile& tile, int64_t first_row, const PartialRows& out) {
  const int64_t start = tile.first_row - first_row;
  for (int64_t row = 0; row < tile.count; ++row) {
    float* target = out.mixed + (start + row) * sizes.rank;
    for (int64_t channel = 0; channel < sizes.rank; channel += 16) {
      const float* source = tile.mixed_at(channel / kUnit, row) + channel % kUnit;
      _mm512_storeu_ps(target + channel, _mm512_load_ps(source));
    }
  }
  std::copy_n(tile.state->peaks, tile.count, out.peaks + start);
  std::copy_n(tile.state->sums, tile.count, out.sums + start);
}

void attend_rows(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  thread_local Arena arena;
  thread_local std::vector<Tile> tiles;
  const Sizes sizes(task.shape);
  const int64_t num_tiles = (rows.count() + kRows - 1) / kRows;
  arena.reset(scratch_bytes(sizes, num_tiles));
  tiles.clear();
  for (int64_t row = rows.first; row < rows.last; row += kRows) {
    tiles.push_back(take_tile(arena, sizes));
    tiles.back().first_row = row;
    tiles.back().count = std::min<int64_t>(kRows, rows.last - row);
    load_queries(task, sizes, tiles.back());
  }
  Block block = take_block(arena, sizes);
  const int64_t last = std::min(tokens.last, task.visible(rows.last - 1));
  const Tile* first = tiles.data();  // the first one that still sees anything
  for (int64_t token = tokens.first; token < last; token += kTokens) {
    load_block(task, sizes, {token, last}, block);
    while (task.visible(first->first_row + first->count - 1) <= token) ++first;
    attend_block(task, sizes, {first, tiles.data() + tiles.size()}, block);
  }
  for (const Tile& tile : tiles) store_tile(sizes, tile, rows.first, out);
}

}  // namespace
}  // namespace latent

void attend_rows_avx512(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  latent::attend_rows(task, rows, tokens, out);
}

}  // namespace kimivl
