// Attention over the latent cache in fp32: a few tokens are made floats, and all rows use them.
//
// Everything has internal linkage: each file that includes this compiles it for its own
// instruction set. Before, it says what a vector is there: kLanes, Lanes, IntLanes, add_product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "latent_attention_rows.h"

namespace kimivl {
namespace {

constexpr int kRows = 16;    // rows of a tile
constexpr int kTokens = 16;  // tokens of a block: 32 KiB of floats at rank 512
constexpr int kStep = 8;     // tokens that are scored side by side
constexpr int kSide = 4;     // rows, times two vectors of channels, that are mixed side by side

Lanes& lanes(float* at) { return *reinterpret_cast<Lanes*>(at); }
const Lanes& lanes(const float* at) { return *reinterpret_cast<const Lanes*>(at); }

// Tokens as floats; behind `count` they are zero.
struct FloatBlock {
  int64_t first;
  int64_t count;
  float* values;  // (kTokens, rank)
  float* keys;    // (kTokens, rope)
  float* taints;  // (kTokens)
};

struct FloatTile {
  int64_t first_row;
  int64_t count;
  float* query;  // (rank + rope, kRows), times the scale of the scores
  float* mixed;  // (kRows, rank)
  float* peaks;  // (kRows)
  float* sums;   // (kRows)
};

// 2^x for x <= 0 in place, zero below the normal numbers; NaN stays NaN.
void raise_two(Lanes& x) {
  const IntLanes is_tiny = x < -126.0f;
  const Lanes clamped = is_tiny ? Lanes{} - 126.0f : x;
  const IntLanes whole = __builtin_convertvector(clamped - 0.5f, IntLanes);
  const Lanes rest = clamped - __builtin_convertvector(whole, Lanes);
  Lanes power = Lanes{} + 1.33335581e-3f;
  power = power * rest + 9.61812911e-3f;
  power = power * rest + 5.55041087e-2f;
  power = power * rest + 2.40226507e-1f;
  power = power * rest + 6.93147181e-1f;
  power = power * rest + 1.0f;
  const IntLanes exponent = (whole + 127) << 23;
  power *= reinterpret_cast<Lanes>(exponent);
  x = is_tiny ? Lanes{} : power;
}

FloatTile take_tile(Arena& arena, const LatentTask& task, int64_t first_row, int64_t last_row) {
  FloatTile tile{first_row, std::min<int64_t>(kRows, last_row - first_row),
                 arena.take<float>(task.width() * kRows),
                 arena.take<float>(kRows * task.shape.rank), arena.take<float>(kRows),
                 arena.take<float>(kRows)};
  for (int64_t lane = 0; lane < kRows; ++lane) {
    const float* row = task.query + (first_row + std::min(lane, tile.count - 1)) * task.width();
    for (int64_t i = 0; i < task.width(); ++i) {
      tile.query[i * kRows + lane] = row[i] * task.score_scale();
    }
  }
  std::fill_n(tile.mixed, kRows * task.shape.rank, 0.0f);
  std::fill_n(tile.peaks, kRows, kNoPeak);
  std::fill_n(tile.sums, kRows, 0.0f);
  return tile;
}

void load_block(const LatentTask& task, Range tokens, FloatBlock& block) {
  const int64_t rank = task.shape.rank, rope = task.shape.rope, group = task.shape.group;
  block.first = tokens.first;
  block.count = std::min<int64_t>(kTokens, tokens.count());
  const float* scales = task.cache.scales + tokens.first * task.groups();
  const int8_t* codes = task.cache.codes + tokens.first * rank;
  std::fill_n(block.values + block.count * rank, (kTokens - block.count) * rank, 0.0f);
  std::fill_n(block.keys + block.count * rope, (kTokens - block.count) * rope, 0.0f);
  std::fill_n(block.taints, kTokens, 0.0f);
  std::memcpy(block.keys, task.cache.keys + tokens.first * rope,
              static_cast<size_t>(block.count * rope) * sizeof(float));
  for (int64_t t = 0; t < block.count; ++t) {
    for (int64_t start = 0; start < rank; start += group) {
      const float scale = *scales++, taint = taint_of(scale), factor = taint == 0 ? scale : 0.0f;
      block.taints[t] += taint;
      float* values = block.values + t * rank + start;
      for (int64_t i = 0; i < group; ++i) values[i] = static_cast<float>(*codes++) * factor;
    }
  }
}

// Add the products of kStep tokens' numbers, `count` each, with those of the rows.
void add_products(const float* values, int64_t count, const float* query, Lanes (&sums)[kStep]) {
  for (int64_t i = 0; i < count; ++i) {
    const Lanes factor = lanes(query + i * kRows);
    for (int t = 0; t < kStep; ++t) add_product(sums[t], factor, values[t * count + i]);
  }
}

// scores (kTokens, kRows)
void score_block(const LatentTask& task, const FloatTile& tile, const FloatBlock& block,
                 float* scores) {
  const int64_t rank = task.shape.rank, rope = task.shape.rope;
  for (int64_t first = 0; first < block.count; first += kStep) {
    for (int row = 0; row < kRows; row += kLanes) {
      Lanes sums[kStep];
      for (int t = 0; t < kStep; ++t) sums[t] = Lanes{} + block.taints[first + t];
      add_products(block.values + first * rank, rank, tile.query + row, sums);
      add_products(block.keys + first * rope, rope, tile.query + rank * kRows + row, sums);
      for (int t = 0; t < kStep; ++t) lanes(scores + (first + t) * kRows + row) = sums[t];
    }
  }
}

// What a row may not see gets no weight.
void hide_tokens(const LatentTask& task, const FloatTile& tile, const FloatBlock& block,
                 float* scores) {
  for (int64_t lane = 0; lane < kRows; ++lane) {
    const int64_t row = tile.first_row + std::min(lane, tile.count - 1);
    const int64_t seen = std::max<int64_t>(0, task.visible(row) - block.first);
    for (int64_t t = std::min(seen, block.count); t < kTokens; ++t) {
      scores[t * kRows + lane] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Turn some rows' scores into weights under their new peaks; then `change` is by what the sums so
// far have to be multiplied.
void weigh_rows(Lanes& peaks, Lanes& sums, float* scores, Lanes& change) {
  change = peaks;
  // A NaN loses the comparison: the peak stays a number and the weight becomes NaN.
  for (int t = 0; t < kTokens; ++t) {
    const Lanes score = lanes(scores + t * kRows);
    peaks = score > peaks ? score : peaks;
  }
  change -= peaks;
  raise_two(change);
  Lanes sum = sums * change;
  for (int t = 0; t < kTokens; ++t) {
    Lanes weight = lanes(scores + t * kRows) - peaks;
    raise_two(weight);
    sum += weight;
    lanes(scores + t * kRows) = weight;
  }
  sums = sum;
}

void weigh_block(const LatentTask& task, const FloatTile& tile, float* scores) {
  alignas(64) float changes[kRows];
  for (int row = 0; row < kRows; row += kLanes) {
    weigh_rows(lanes(tile.peaks + row), lanes(tile.sums + row), scores + row, lanes(changes + row));
  }
  for (int64_t row = 0; row < kRows; ++row) {
    if (changes[row] == 1.0f) continue;
    float* mixed = tile.mixed + row * task.shape.rank;
    for (int64_t i = 0; i < task.shape.rank; ++i) mixed[i] *= changes[row];
  }
}

void mix_block(const LatentTask& task, const FloatTile& tile, const FloatBlock& block,
               const float* weights) {
  const int64_t rank = task.shape.rank;
  for (int64_t row = 0; row < kRows; row += kSide) {
    for (int64_t c = 0; c < rank; c += 2 * kLanes) {
      float* mixed = tile.mixed + row * rank + c;
      Lanes sums[kSide][2];
      for (int r = 0; r < kSide; ++r) {
        for (int v = 0; v < 2; ++v) sums[r][v] = lanes(mixed + r * rank + v * kLanes);
      }
      for (int64_t t = 0; t < block.count; ++t) {
        const float* values = block.values + t * rank + c;
        const Lanes first = lanes(values), second = lanes(values + kLanes);
        for (int r = 0; r < kSide; ++r) {
          const float weight = weights[t * kRows + row + r];
          add_product(sums[r][0], first, weight);
          add_product(sums[r][1], second, weight);
        }
      }
      for (int r = 0; r < kSide; ++r) {
        for (int v = 0; v < 2; ++v) lanes(mixed + r * rank + v * kLanes) = sums[r][v];
      }
    }
  }
}

void attend_block(const LatentTask& task, const FloatTile& tile, const FloatBlock& block) {
  alignas(64) float scores[kTokens * kRows] = {};
  score_block(task, tile, block, scores);
  if (task.visible(tile.first_row) < block.first + kTokens || block.count < kTokens) {
    hide_tokens(task, tile, block, scores);
  }
  weigh_block(task, tile, scores);
  mix_block(task, tile, block, scores);
}

void store_tile(const LatentTask& task, const FloatTile& tile, int64_t first_row,
                const PartialRows& out) {
  const int64_t rank = task.shape.rank, start = tile.first_row - first_row;
  std::copy_n(tile.mixed, tile.count * rank, out.mixed + start * rank);
  std::copy_n(tile.peaks, tile.count, out.peaks + start);
  std::copy_n(tile.sums, tile.count, out.sums + start);
}

FloatBlock take_block(Arena& arena, const LatentTask& task) {
  return {0, 0, arena.take<float>(kTokens * task.shape.rank),
          arena.take<float>(kTokens * task.shape.rope), arena.take<float>(kTokens)};
}

size_t scratch_bytes(const LatentTask& task) {
  return Arena::bytes_of<float>(task.width() * kRows) +
         Arena::bytes_of<float>(kRows * task.shape.rank) + 2 * Arena::bytes_of<float>(kRows) +
         Arena::bytes_of<float>(kTokens * task.shape.rank) +
         Arena::bytes_of<float>(kTokens * task.shape.rope) + Arena::bytes_of<float>(kTokens);
}

void attend_rows(const LatentTask& task, Range rows, Range tokens, const PartialRows& out) {
  thread_local Arena arena;
  // Making a block costs a tenth of what one tile does with it, so that tiles need not share it.
  for (int64_t row = rows.first; row < rows.last; row += kRows) {
    arena.reset(scratch_bytes(task));
    const FloatTile tile = take_tile(arena, task, row, rows.last);
    FloatBlock block = take_block(arena, task);
    const int64_t last = std::min(tokens.last, task.visible(row + tile.count - 1));
    for (int64_t token = tokens.first; token < last; token += kTokens) {
      load_block(task, {token, last}, block);
      attend_block(task, tile, block);
    }
    store_tile(task, tile, rows.first, out);
  }
}

}  // namespace
}  // namespace kimivl
