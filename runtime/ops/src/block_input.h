// Weights in blocks, out of the inputs of an op.
#pragma once

#include "block_weights.h"
#include "op.h"

namespace kimivl {

// `rows` outputs of `scales.last()` blocks each.
inline BlockWeights block_weights(const Input& codes, const Input& scales, int bits, int block) {
  expect(is_float(scales.type), "scales must be float, float16 or bfloat16");
  BlockWeights weights{};
  weights.codes = codes.as<uint8_t>();
  weights.scales = scales.data;
  weights.scale_type = scales.type;
  weights.bits = bits;
  weights.block = block;
  weights.width = scales.last() * block;
  weights.rows = scales.leading(1);
  expect(codes.leading(0) == weights.rows * weights.row_bytes(),
         "codes and scales are not of one matrix");
  return weights;
}

// Attributes `bits` and `block_size`.
struct BlockForm {
  int bits;
  int block;

  explicit BlockForm(const Attributes& attributes)
      : bits(static_cast<int>(attributes.integer("bits"))),
        block(static_cast<int>(attributes.integer("block_size"))) {
    expect(bits == 4 || bits == 8, "bits must be 4 or 8");
    expect(block >= 16 && block <= 256 && (block & (block - 1)) == 0,
           "block_size must be a power of two from 16 to 256");
  }
};

}  // namespace kimivl
