// Products in plain C++: for every processor, and to judge the others by.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "product.h"

namespace kimivl {
namespace {

void round_row(const RoundingShape& shape, const float* row, int8_t* codes, float* scales,
               int32_t* sums) {
  for (int64_t block = 0; block < shape.blocks(); ++block) {
    const int64_t start = block * shape.block;
    const int64_t end = std::min<int64_t>(start + shape.block, shape.width);
    float most = 0;
    bool is_number = true;
    for (int64_t i = start; i < end; ++i) {
      most = std::max(most, std::fabs(row[i]));
      is_number = is_number && !std::isnan(row[i]);
    }
    const float scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
    sums[block] = 0;
    scales[block] = is_number ? scale : std::numeric_limits<float>::quiet_NaN();
    if (!std::isfinite(scales[block])) continue;
    for (int64_t i = start; i < end; ++i) {
      codes[i] = static_cast<int8_t>(std::nearbyint(row[i] * inverse));
      sums[block] += codes[i];
    }
  }
}

// The place of an element in a tile of one row.
int64_t place_of(int64_t element, int bits) {
  if (bits == 8) return element;
  const int64_t inside = element % kChunk;
  return element - inside + inside / 2 + (inside % 2 ? kChunk / 2 : 0);
}

int code_at(const uint8_t* row, int64_t element, int bits) {
  if (bits == 8) return row[element];
  return element % 2 ? row[element / 2] >> 4 : row[element / 2] & 0x0f;
}

float multiply_row(const BlockWeights& weights, int64_t row, const Tile& tile) {
  const uint8_t* codes = weights.row(row);
  float total = 0;
  for (int64_t block = 0; block < weights.blocks(); ++block) {
    int32_t sum = tile.offsets[block];
    for (int64_t i = block * weights.block; i < (block + 1) * weights.block; ++i) {
      sum += code_at(codes, i, weights.bits) * tile.codes[place_of(i, weights.bits)];
    }
    total += static_cast<float>(sum) * tile.scales[block] * weights.scale(row, block);
  }
  return total;
}

void multiply_rows(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                   int64_t count, float* out, int64_t stride) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t row = first; row < last; ++row) {
      out[t * stride + row - first] = multiply_row(weights, row, tiles[t]);
    }
  }
}

void swiglu(const float* pairs, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = pairs[2 * i] / (1.0f + std::exp(-pairs[2 * i])) * pairs[2 * i + 1];
  }
}

}  // namespace

ProductFunctions plain_functions() {
  return {"plain", round_row, multiply_rows, nullptr, swiglu};
}

}  // namespace kimivl
