// What the files with AVX-512 products share.
#pragma once

#include <cstdint>

#include "product.h"

namespace kimivl {

// A mask of the first bytes of 64.
inline uint64_t first_bytes(int64_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

void multiply_panel_avx512(const BlockWeights& weights, int64_t first, const Tile* tiles,
                           int64_t count, float* out);

}  // namespace kimivl
