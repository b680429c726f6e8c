#include "product.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "isa.h"

namespace kimivl {
namespace {

// Rows in the order of tiles against panels of outputs.
void multiply_panels(const ProductFunctions& functions, const BlockWeights& weights, int64_t first,
                     int64_t last, const RoundedRows& rows, float* out, int64_t stride) {
  thread_local std::vector<Tile> tiles;
  thread_local std::vector<float> block;
  const int64_t outputs = functions.shape_of(weights.bits, weights.block).outputs;
  block.resize(static_cast<size_t>(rows.count() * outputs));
  tiles.clear();
  for (int64_t index = 0; index < rows.num_tiles(); ++index) tiles.push_back(rows.tile(index));
  for (int64_t start = first; start < last; start += outputs) {
    functions.multiply_panel(weights, start, tiles.data(), rows.num_tiles(), block.data());
    const auto width = static_cast<size_t>(std::min<int64_t>(outputs, last - start));
    for (int64_t row = 0; row < rows.count(); ++row) {
      std::memcpy(out + row * stride + (start - first), block.data() + row * outputs,
                  width * sizeof(float));
    }
  }
}

}  // namespace

const ProductFunctions& product_functions() {
  static const ProductFunctions plain = plain_functions(), avx2 = avx2_functions(),
                                avx512 = avx512_functions(), amx = amx_functions();
  switch (best_isa()) {
    case Isa::kAmx:
      return amx;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return plain;
  }
}

void multiply(const BlockWeights& weights, int64_t first, int64_t last, const RoundedRows& rows,
              float* out, int64_t stride) {
  const ProductFunctions& functions = product_functions();
  if (!rows.is_few()) {
    multiply_panels(functions, weights, first, last, rows, out, stride);
    return;
  }
  for (int64_t start = 0; start < rows.count(); start += kFewRows) {
    Tile tiles[kFewRows];
    const int64_t count = std::min<int64_t>(kFewRows, rows.count() - start);
    for (int64_t i = 0; i < count; ++i) tiles[i] = rows.tile(start + i);
    functions.multiply_rows(weights, first, last, tiles, count, out + start * stride, stride);
  }
}

}  // namespace kimivl

extern "C" __attribute__((visibility("default"))) const char* kimivl_instruction_set() {
  return kimivl::product_functions().name;
}
