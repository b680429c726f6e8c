// What the files of the AVX-512 path share: a tile of rows, a block of tokens, in kernel order.
//
// Included behind `#pragma GCC target` by these files only; headers that others use come before it,
// or their inline functions would be compiled for AVX-512 and might be linked into the other paths.
#pragma once

#include "latent_attention_rows.h"
#include "latent_attention_lanes.h"

namespace kimivl::latent {

constexpr int kRows = kLanes;  // of a tile
constexpr int kTokens = 64;  // of a block
constexpr int kUnit = kUnitChannels;  // channels whose codes fill a vector
constexpr int kRun = 32;     // tokens whose weights are rounded by a common step
constexpr int kStep = 8;     // tokens scored side by side: their sums fill half the registers

// Numbers of elements. The rank is padded to whole units; the padding has codes and scales of 0.
struct Sizes {
  int64_t rank;
  int64_t rope;
  int64_t group;
  int64_t padded;
  int64_t groups;  // of the padded rank

  explicit Sizes(const LatentShape& shape)
      : rank(shape.rank),
        rope(shape.rope),
        group(shape.group),
        padded((shape.rank + kUnit - 1) / kUnit * kUnit),
        groups(padded / shape.group) {}
  int64_t units() const { return padded / kUnit; }
  int64_t planes() const { return padded * 2 * kRows; }
  int64_t rope_values() const { return rope * kRows; }
  int64_t mixed() const { return padded * kRows; }
  int64_t shifted() const { return padded * kStep; }
  int64_t scales() const { return groups * kTokens; }
  int64_t keys() const { return rope * kTokens; }
};

// Weights times one group's scales, as bytes without sign.
struct RoundedWeights {
  int32_t codes[kTokens / 4][kRows];  // four tokens in each
  float steps[kTokens / kRun][kRows];
};

struct alignas(64) TileState {
  float query_scales[kRows];  // of the rounded queries, times the scale of the scores
  float peaks[kRows];
  float sums[kRows];
  float scores[kTokens][kRows];  // of one block, as powers of two; then their weights
  RoundedWeights rounded;        // of one block and group
};

// Sixteen rows, or fewer: then the last one fills the lanes.
struct Tile {
  int64_t first_row;
  int64_t count;
  int8_t* planes;        // (padded / 4, high and low, kRows, 4)
  float* rope;           // (rope, kRows), times the scale of the scores
  int32_t* corrections;  // (groups, kRows): what the codes' shift adds to their products, negated
  float* mixed;          // (units, kRows, kUnit)
  TileState* state;

  Range rows() const { return {first_row, first_row + count}; }
  float* mixed_at(int64_t unit, int64_t row) const { return mixed + (unit * kRows + row) * kUnit; }
};

// Some of a task's tiles.
struct Tiles {
  const Tile* first;
  const Tile* last;

  const Tile* begin() const { return first; }
  const Tile* end() const { return last; }
};

// Tokens that all tiles read. Behind `count`, scales and keys are zero.
struct Block {
  int64_t first;
  int64_t count;
  const int8_t* codes;     // (count, rank), in the cache
  const float* keys;       // (kTokens, rope), in the cache if the block is full
  const char* next_codes;  // where the block after this one will be read
  const char* next_keys;
  float* scales;     // (kTokens, groups)
  float* taints;     // (kTokens)
  float* tail_keys;  // (kTokens, rope)
  uint8_t* shifted;  // (kStep, padded): some tokens' codes + 128, as a first factor has no sign
  int8_t* woven;     // (kTokens / 4, kUnit, 4 tokens): one unit's codes

  // Behind the end the last token is read again: whatever it is, it gets no weight.
  const int8_t* row(int64_t token, int64_t rank) const {
    return codes + std::min(token, count - 1) * rank;
  }
};

// Round a tile's queries and put them in order; nothing is summed yet.
void load_queries(const LatentTask& task, const Sizes& sizes, Tile& tile);

// Go to the first kTokens of `tokens`, or to all if they are fewer.
void load_block(const LatentTask& task, const Sizes& sizes, Range tokens, Block& block);

// Put the codes of kStep tokens in order for the scores.
void shift_codes(const Sizes& sizes, int64_t token, const Block& block);

// Put the codes of one unit in order for the sums by weight.
void weave_codes(const Sizes& sizes, int64_t unit, const Block& block);

// Write each tile's scores of the block.
void score_tokens(const Sizes& sizes, Tiles tiles, const Block& block);

// Add the block's tokens to each tile's sums, by their weights.
void mix_tokens(const Sizes& sizes, Tiles tiles, const Block& block);

}  // namespace kimivl::latent
