// Attention over the latent cache with AMX: one pass over the tokens for many rows.
//
// A tile register holds 64 codes of 16 tokens as they lie in the cache, and meets those of 16 rows'
// queries. Queries are rounded to 16 bits, in two planes of bytes: with 8 bits, scores would be
// wrong by a share of their spread, and weights by its power. So are weights, to 15: a step that
// holds for all tokens of a block would be too coarse with 8. Rotated keys and queries are sums of
// two bfloat16 numbers; of their products, only that of the two low ones is left out.
#include <algorithm>
#include <limits>
#include <vector>

#include "latent_attention_rows.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma")

#include "latent_attention_amx.h"

namespace kimivl {
namespace latent_amx {
namespace {

RowTile take_tile(Arena& arena, const Sizes& sizes) {
  RowTile tile{};
  tile.codes = arena.take<int8_t>(sizes.query_codes());
  tile.rope_high = arena.take<uint16_t>(sizes.query_rope());
  tile.rope_low = arena.take<uint16_t>(sizes.query_rope());
  tile.mixed = arena.take<float>(sizes.mixed());
  tile.weights = arena.take<uint8_t>(sizes.weights());
  tile.steps = arena.take<float>(sizes.groups * kRows);
  tile.state = arena.take<RowState>(1);
  return tile;
}

Block take_block(Arena& arena, const Sizes& sizes) {
  Block block{};
  block.tail = arena.take<int8_t>(sizes.rank * kRows);
  block.scales = arena.take<float>(sizes.groups * sizes.tokens);
  block.taints = arena.take<float>(sizes.tokens);
  block.keys_high = arena.take<uint16_t>(sizes.keys());
  block.keys_low = arena.take<uint16_t>(sizes.keys());
  block.woven = arena.take<int8_t>(kUnit * sizes.tokens);
  return block;
}

Scratch take_scratch(Arena& arena, const Sizes& sizes) {
  Scratch scratch{};
  scratch.scores = reinterpret_cast<float(*)[kRows]>(arena.take<float>(sizes.tokens * kRows));
  scratch.inverses = arena.take<float>(sizes.groups * kRows);
  scratch.sums = arena.take<int32_t>(sizes.sums());
  return scratch;
}

size_t scratch_bytes(const Sizes& sizes, int64_t num_tiles) {
  const size_t tile =
      Arena::bytes_of<int8_t>(sizes.query_codes()) +
      2 * Arena::bytes_of<uint16_t>(sizes.query_rope()) + Arena::bytes_of<float>(sizes.mixed()) +
      Arena::bytes_of<uint8_t>(sizes.weights()) +
      Arena::bytes_of<float>(sizes.groups * kRows) + Arena::bytes_of<RowState>(1);
  const size_t block =
      Arena::bytes_of<int8_t>(sizes.rank * kRows) +
      Arena::bytes_of<float>(sizes.groups * sizes.tokens) + Arena::bytes_of<float>(sizes.tokens) +
      2 * Arena::bytes_of<uint16_t>(sizes.keys()) + Arena::bytes_of<int8_t>(kUnit * sizes.tokens);
  const size_t rest = Arena::bytes_of<float>(sizes.tokens * kRows) +
                      Arena::bytes_of<float>(sizes.groups * kRows) +
                      Arena::bytes_of<int32_t>(sizes.sums());
  return tile * static_cast<size_t>(num_tiles) + block + rest;
}

// The highest score of each row, of these and before. max(x, peak) is the second of the two if x
// is NaN: the peak stays a number.
__m512 highest(const RowState& state, const Block& block, const Scratch& scratch) {
  const int64_t padded = block.padded();
  __m512 most[4];
  for (auto& one : most) one = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t t = 0; t < padded; t += 4) {
    for (int i = 0; i < 4; ++i) {
      most[i] = _mm512_max_ps(_mm512_load_ps(scratch.scores[t + i]), most[i]);
    }
  }
  const __m512 top =
      _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  return _mm512_max_ps(_mm512_mul_ps(top, _mm512_load_ps(state.query_scales)),
                       _mm512_load_ps(state.peaks));
}

// Turn scores into weights under the rows' new peaks, and bring what was summed under these.
void weigh_tokens(const Sizes& sizes, const RowTile& tile, const Block& block,
                  const Scratch& scratch) {
  RowState& state = *tile.state;
  const int64_t padded = block.padded();
  const __m512 scale = _mm512_load_ps(state.query_scales);
  const __m512 old_peak = _mm512_load_ps(state.peaks), peak = highest(state, block, scratch);
  const __m512 change = power_of_two(_mm512_sub_ps(old_peak, peak));
  __m512 sums[4] = {_mm512_mul_ps(_mm512_load_ps(state.sums), change)};
  for (int i = 1; i < 4; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t t = 0; t < padded; t += 4) {
    for (int i = 0; i < 4; ++i) {
      float* score = scratch.scores[t + i];
      const __m512 weight = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(score), scale, peak));
      sums[i] = _mm512_add_ps(sums[i], weight);
      _mm512_store_ps(score, weight);
    }
  }
  const __m512 sum =
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  _mm512_store_ps(state.peaks, peak);
  _mm512_store_ps(state.sums, sum);
  if (_mm512_cmp_ps_mask(old_peak, peak, _CMP_NEQ_UQ) != 0) {
    scale_sums(tile.mixed, sizes.units, change);
  }
}

void attend_block(const LatentTask& task, const Sizes& sizes, RowTiles tiles, Block& block,
                  const Scratch& scratch) {
  for (const RowTile& tile : tiles) {
    score_tokens(sizes, tile, block, scratch);
    if (task.visible(tile.first_row) < block.first + block.padded()) {
      hide_scores(task, tile.rows(), block.first, block.count, scratch.scores, block.padded());
    }
    weigh_tokens(sizes, tile, block, scratch);
    round_weights(sizes, tile, block, scratch);
  }
  for (int64_t unit = 0; unit < sizes.units; ++unit) {
    weave_codes(sizes, unit, block);
    for (const RowTile& tile : tiles) mix_unit(sizes, unit, tile, block, scratch);
  }
}

// Undo the order of channels.
void store_rows(const Sizes& sizes, const RowTile& tile, int64_t first_row,
                const PartialRows& out) {
  const int64_t start = tile.first_row - first_row;
  for (int64_t row = 0; row < tile.count; ++row) {
    for (int64_t unit = 0; unit < sizes.units; ++unit) {
      const float* source = tile.mixed + (unit * kRows + row) * kUnit;
      float* target = out.mixed + (start + row) * sizes.rank + unit * kUnit;
      for (int64_t i = 0; i < kUnit; i += 4) {
        _mm_storeu_ps(target + i % 16 * 4 + i / 16 * 4, _mm_load_ps(source + i));
      }
    }
  }
  std::copy_n(tile.state->peaks, tile.count, out.peaks + start);
  std::copy_n(tile.state->sums, tile.count, out.sums + start);
}

void attend_rows(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  thread_local Arena arena;
  thread_local std::vector<RowTile> tiles;
  const TileRegisters registers;
  const int64_t num_tiles = (rows.count() + kRows - 1) / kRows;
  const Sizes sizes(task.shape, num_tiles);
  arena.reset(scratch_bytes(sizes, num_tiles));
  tiles.clear();
  for (int64_t row = rows.first; row < rows.last; row += kRows) {
    tiles.push_back(take_tile(arena, sizes));
    tiles.back().first_row = row;
    tiles.back().count = std::min<int64_t>(kRows, rows.last - row);
    load_queries(task, sizes, tiles.back());
  }
  Block block = take_block(arena, sizes);
  const Scratch scratch = take_scratch(arena, sizes);
  const int64_t last = std::min(tokens.last, task.visible(rows.last - 1));
  const RowTile* first = tiles.data();  // the first one that still sees anything
  for (int64_t token = tokens.first; token < last; token += sizes.tokens) {
    load_block(task, sizes, {token, last}, block);
    while (task.visible(first->first_row + first->count - 1) <= token) ++first;
    attend_block(task, sizes, {first, tiles.data() + tiles.size()}, block, scratch);
  }
  for (const RowTile& tile : tiles) store_rows(sizes, tile, rows.first, out);
}

}  // namespace
}  // namespace latent_amx

void attend_rows_amx(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  latent_amx::attend_rows(task, rows, tokens, out);
}

}  // namespace kimivl
