// What the files of the AMX path share: a tile of rows, a block of tokens, in kernel order.
//
// Included behind `#pragma GCC target` by these files only, like the header of the AVX-512 path.
#pragma once

#include "ahead.h"
#include "amx_tiles.h"
#include "latent_attention_rows.h"
#include "latent_attention_lanes.h"

namespace kimivl::latent_amx {

constexpr int kRows = kLanes;         // of a tile register
constexpr int kUnit = kUnitChannels;  // codes in a row of a tile register, of channels or of tokens
constexpr int kPairs = 32;            // bfloat16 numbers in a row of a tile register
constexpr int kPlanes = 2;            // high and low bytes of 16-bit codes

// Numbers of elements. Groups are whole units.
struct Sizes {
  int64_t rank;
  int64_t rope;
  int64_t padded_rope;
  int64_t group;
  int64_t groups;
  int64_t units;
  int64_t units_of_group;
  int64_t tokens;  // of a block: their weights are rounded by a common step

  // One tile's sums and tokens should stay in the first cache; many tiles share what is made of
  // tokens. 256 times 15 bits times 8 bits fits a sum.
  Sizes(const LatentShape& shape, int64_t num_tiles)
      : rank(shape.rank),
        rope(shape.rope),
        padded_rope((shape.rope + kPairs - 1) / kPairs * kPairs),
        group(shape.group),
        groups(rank / group),
        units(rank / kUnit),
        units_of_group(group / kUnit),
        tokens(num_tiles < 4 ? 128 : 256) {}
  int64_t query_codes() const { return rank * kPlanes * kRows; }
  int64_t query_rope() const { return padded_rope * kRows; }
  int64_t mixed() const { return rank * kRows; }
  int64_t sums() const { return std::max<int64_t>(groups, 2) * kPlanes * kRows * 16; }
  int64_t keys() const { return padded_rope * tokens; }
  int64_t weights() const { return groups * tokens * kPlanes * kRows; }
};

struct alignas(64) RowState {
  float query_scales[kRows];  // of the rounded queries, times the scale of the scores
  float peaks[kRows];
  float sums[kRows];
};

// Sixteen rows, or fewer: then the last one fills the tile.
struct RowTile {
  int64_t first_row;
  int64_t count;
  int8_t* codes;        // (units, planes, kUnit / 4, kRows, 4)
  uint16_t* rope_high;  // (padded_rope / 2, kRows, 2), in steps of the row's codes
  uint16_t* rope_low;   // what the high parts leave
  float* mixed;         // (units, kRows, kUnit), channels in the order of `weave_codes`
  uint8_t* weights;     // of one block, rounded: (groups, tokens / kUnit, planes, kRows, kUnit)
  float* steps;         // of `weights`: (groups, kRows)
  RowState* state;

  Range rows() const { return {first_row, first_row + count}; }
};

struct RowTiles {
  const RowTile* first;
  const RowTile* last;

  const RowTile* begin() const { return first; }
  const RowTile* end() const { return last; }
};

// Tokens that all tiles read, and what is made of them. Behind `count`, scales and keys are zero.
struct Block {
  int64_t first;
  int64_t count;
  bool is_tainted;      // some scale is not finite
  const int8_t* codes;  // (count, rank), in the cache
  Ahead next_codes;     // of the block after this one
  Ahead next_keys;
  int8_t* tail;         // (kRows, rank): the last tokens, if they do not fill a tile register
  float* scales;        // (groups, tokens)
  float* taints;        // (tokens)
  uint16_t* keys_high;  // (tokens, padded_rope)
  uint16_t* keys_low;
  int8_t* woven;        // one unit's codes: (tokens / kUnit, 4, kUnit / 4, 16, 4 tokens)

  int64_t padded() const { return (count + kUnit - 1) / kUnit * kUnit; }
  // Behind the end the last token is read again: whatever it is, it gets no weight.
  const int8_t* row(int64_t token, int64_t rank) const {
    return codes + std::min(token, count - 1) * rank;
  }
  // Sixteen tokens.
  const int8_t* rows(int64_t token, int64_t rank) const {
    return token + kRows <= count ? codes + token * rank : tail;
  }
};

// What is in between, for one tile at a time.
struct Scratch {
  float (*scores)[kRows];  // (tokens), in the steps of `query_scales`; then their weights
  float* inverses;         // (groups, kRows): of the steps of rounded weights
  int32_t* sums;           // (2, planes, kRows, 16): products that are still to be scaled
};

// Round a tile's queries and put them in order; nothing is summed yet.
void load_queries(const LatentTask& task, const Sizes& sizes, const RowTile& tile);

// Go to the first of `tokens`, as many as a block has.
void load_block(const LatentTask& task, const Sizes& sizes, Range tokens, Block& block);

// Put the codes of one unit in order for the sums by weight.
//
// Of each kUnit tokens, four f of them becomes the (f % 4 * 4 + f / 4)th, as `round_weights` has
// them. Of the unit's channels, 16 l + 4 v + i becomes number 4 l + i of vector v.
void weave_codes(const Sizes& sizes, int64_t unit, Block& block);

// Write a tile's scores of the block.
void score_tokens(const Sizes& sizes, const RowTile& tile, Block& block, const Scratch& scratch);

// Round a tile's weights times the scales of each group.
void round_weights(const Sizes& sizes, const RowTile& tile, const Block& block,
                   const Scratch& scratch);

// Add the woven unit of the block to a tile's sums, by their weights.
void mix_unit(const Sizes& sizes, int64_t unit, const RowTile& tile, Block& block,
              const Scratch& scratch);

}  // namespace kimivl::latent_amx
