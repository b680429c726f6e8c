// Matrices in blocks: integer codes, and one scale for each block of inputs of one output.
#pragma once

#include <cstddef>
#include <cstdint>

#include "number_types.h"

namespace kimivl {

// Codes of one row with the higher address are later outputs; scales and codes as `MatMulNBits` has
// them: in 4 bits, byte j of a block holds element 2j low and 2j + 1 high, value + 8; in 8 bits
// value + 128. Rows are padded to whole blocks.
struct BlockWeights {
  const uint8_t* codes;
  const void* scales;
  Type scale_type;  // of floating-point numbers
  int bits;
  int block;
  int64_t width;  // inputs, a multiple of block
  int64_t rows;

  int64_t blocks() const { return width / block; }
  int64_t row_bytes() const { return width * bits / 8; }
  int zero_point() const { return 1 << (bits - 1); }
  const uint8_t* row(int64_t index) const { return codes + index * row_bytes(); }
  const char* row_scales(int64_t index) const {
    return static_cast<const char*>(scales) + index * blocks() * float_bytes(scale_type);
  }
  float scale(int64_t index, int64_t block) const {
    return number_at(row_scales(index), scale_type, block);
  }
  // The matrix of one expert, of `count` rows each.
  BlockWeights slice(int64_t index, int64_t count) const {
    BlockWeights part = *this;
    part.codes = row(index * count);
    part.scales = row_scales(index * count);
    part.rows = count;
    return part;
  }
};

}  // namespace kimivl
