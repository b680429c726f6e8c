// Activations rounded to int8, with one scale for each block of a row.
//
// Rows are kept in tiles. A tile holds T rows dword by dword: four codes of row 0, the same four of
// row 1, and so on, so that a product reads it from front to back. Within 128 elements, what meets
// codes of 4 bits comes even elements first, as the low nibbles of 64 bytes do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "block_weights.h"
#include "team.h"

namespace kimivl {

constexpr int kTileRows = 12;  // unless an instruction set wants others
// Fewer rows are multiplied one by one: it then pays to read weights in their own order.
constexpr int kFewRows = 4;
constexpr int64_t kChunk = 128;

struct Tile {
  int rows;
  const int8_t* codes;    // (padded width / 4, rows, 4)
  const float* scales;    // (blocks, rows)
  const int32_t* offsets; // (blocks, rows): minus zero point times the sum of a block's codes
};

// Shape of what is rounded, and of the weights that it meets.
struct RoundingShape {
  int64_t width;   // of a row as it is given
  int64_t padded;  // width of the weights
  int block;
  int bits;

  static RoundingShape meeting(const BlockWeights& weights, int64_t width) {
    return {width, weights.width, weights.block, weights.bits};
  }
  int64_t blocks() const { return padded / block; }
  // Whole chunks: what is behind a row is zero.
  int64_t stored() const { return (padded + kChunk - 1) / kChunk * kChunk; }
};

// Owns tiles of any number of rows; keeps its memory for the next use.
class RoundedRows {
 public:
  // Make room for rows; `fill` must be called for each before they are read.
  void reset(const RoundingShape& shape, int64_t count);
  // Round one row.
  void fill(int64_t index, const float* row);

  int64_t count() const { return count_; }
  bool is_few() const { return tile_rows_ == 1; }
  int64_t num_tiles() const { return (count_ + tile_rows_ - 1) / tile_rows_; }
  Tile tile(int64_t index) const;

 private:
  static constexpr size_t kSlack = 64;  // behind the codes: the last tile may be read as a full one

  int rows_of(int64_t tile) const;

  RoundingShape shape_{};
  int64_t count_ = 0;
  int tile_rows_ = 1;
  std::vector<int8_t> codes_;
  std::vector<float> scales_;
  std::vector<int32_t> offsets_;
};

// Fill all rows from (count, width), on several threads where that pays.
void round_rows(const Team& team, RoundedRows& rows, const float* values, int64_t width);

}  // namespace kimivl
