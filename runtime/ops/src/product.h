// Products of rounded rows with matrices in blocks; one table of functions for each instruction set.
#pragma once

#include <cstdint>

#include "block_weights.h"
#include "rounded.h"

namespace kimivl {

constexpr int kPanel = 16;  // outputs that are computed side by side

// Rows of a tile, and outputs of a panel, a multiple of kPanel.
struct PanelShape {
  int rows = kTileRows;
  int outputs = kPanel;
};

struct ProductFunctions {
  const char* name;
  // Round `shape.width` values: codes in their own order, one scale and one sum of codes per block.
  // A block with a NaN gets a NaN for its scale.
  void (*round_row)(const RoundingShape& shape, const float* row, int8_t* codes, float* scales,
                    int32_t* sums);
  // For each of `count` tiles of one row: outputs [first, last) to out[tile * stride].
  void (*multiply_rows)(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                        int64_t count, float* out, int64_t stride);
  // Outputs `first` and those behind it, as many as a panel has, for all rows of `count` tiles: out
  // (rows, outputs). Null if there is nothing better than `multiply_rows`.
  void (*multiply_panel)(const BlockWeights& weights, int64_t first, const Tile* tiles,
                         int64_t count, float* out);
  // silu(gate) * up of `count` pairs (gate, up).
  void (*swiglu)(const float* pairs, int64_t count, float* out);
  // For weights of such blocks; null if always the same.
  PanelShape (*panel_shape)(int bits, int block) = nullptr;

  PanelShape shape_of(int bits, int block) const {
    return panel_shape == nullptr ? PanelShape{} : panel_shape(bits, block);
  }
};

// What this processor runs fastest; KIMIVL_OPS_ISA=avx512, avx2 or plain asks for another one.
const ProductFunctions& product_functions();

ProductFunctions amx_functions();
ProductFunctions avx512_functions();
ProductFunctions avx2_functions();
ProductFunctions plain_functions();

// Outputs [first, last) of all rows: out[row * stride + output - first]; on the calling thread.
// `first` is a multiple of 16.
void multiply(const BlockWeights& weights, int64_t first, int64_t last, const RoundedRows& rows,
              float* out, int64_t stride);

}  // namespace kimivl
