// Products of many rows with AMX: panels of 16 outputs and tiles of 16 rows.
//
// Weights are the first factor, as their codes lie in a row; rows in the order of tiles are the
// second. Sums come by output, and are turned when all blocks are added.
#include <algorithm>

#include "product_avx512.h"

// Behind the headers: what they define must run on every processor.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")
#include "amx_tiles.h"
#include "avx512_load.h"
#include "turn_avx512.h"

namespace kimivl {
namespace {

constexpr int kUnit = 64;  // codes in a row of a tile register
constexpr int64_t kSums = 16 * 16;

// Whether a block is whole units, in the order of tiles.
bool is_of_units(int bits, int block) { return block % (bits == 4 ? 2 * kUnit : kUnit) == 0; }

int tile_rows(int bits, int block) { return is_of_units(bits, block) ? 16 : kTileRows; }

template <Type type>
void load_scales(const BlockWeights& weights, const int64_t (&rows)[kPanel], float* scales) {
  const int64_t blocks = weights.blocks();
  for (int64_t row : rows) {
    for (int64_t i = 0; i < blocks; i += 16) {
      const __mmask16 mask = static_cast<__mmask16>(first_bytes(blocks - i));
      _mm512_mask_storeu_ps(scales + i, mask, load_floats<type>(weights.row_scales(row), i, mask));
    }
    scales += blocks;
  }
}

// Codes with their sign: (width / kUnit, kPanel, kUnit). Scales: (kPanel, blocks).
void unpack_panel(const BlockWeights& weights, int64_t first, const Panel& panel) {
  if (!is_of_units(weights.bits, weights.block)) return unpack_panel_avx512(weights, first, panel);
  const __m512i low_bits = _mm512_set1_epi8(0x0f), zero_point = _mm512_set1_epi8(8);
  int64_t rows[kPanel];  // behind the last row it is read again
  for (int i = 0; i < kPanel; ++i) {
    rows[i] = std::min<int64_t>(first + i, weights.rows - 1);
    const uint8_t* source = weights.row(rows[i]);
    uint8_t* target = panel.codes + i * kUnit;
    for (int64_t start = 0; start < weights.row_bytes(); start += kUnit) {
      const __m512i packed = _mm512_loadu_si512(source + start);
      if (weights.bits == 8) {
        _mm512_store_si512(target, _mm512_xor_si512(packed, _mm512_set1_epi8(-128)));
        target += kTileBytes;
        continue;
      }
      const __m512i low = _mm512_and_si512(packed, low_bits);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_bits);
      _mm512_store_si512(target, _mm512_sub_epi8(low, zero_point));
      _mm512_store_si512(target + kTileBytes, _mm512_sub_epi8(high, zero_point));
      target += 2 * kTileBytes;
    }
  }
  switch (weights.scale_type) {
    case Type::kFloat16:
      return load_scales<Type::kFloat16>(weights, rows, panel.scales);
    case Type::kBfloat16:
      return load_scales<Type::kBfloat16>(weights, rows, panel.scales);
    default:
      return load_scales<Type::kFloat>(weights, rows, panel.scales);
  }
}

template <int first>
void multiply_block(const BlockWeights& weights, const Panel& panel, const Tile& tile,
                    int64_t block) {
  const int64_t units = weights.block / kUnit, stride = tile.rows * 4;
  const uint8_t* codes = panel.codes + block * units * kTileBytes;
  // Columns behind the last row are of what follows, and are not used.
  const int8_t* rows = tile.codes + block * weights.block * tile.rows;
  clear_tile<first>();
  for (int64_t unit = 0; unit < units; ++unit) {
    load_tile<4>(codes + unit * kTileBytes, kUnit);
    load_tile<6>(rows + unit * kUnit * tile.rows, stride);
    add_signed_signed<first, 4, 6>();
  }
}

// Sums of one block, scaled.
inline void add_block(const Panel& panel, const Tile& tile, int64_t blocks, int64_t block,
                      const int32_t* sums, __m512 (&totals)[kPanel]) {
  const __mmask16 mask = static_cast<__mmask16>(first_bytes(tile.rows));
  const __m512 row_scales = _mm512_maskz_loadu_ps(mask, tile.scales + block * tile.rows);
  const float* scales = panel.scales + block;
  for (int i = 0; i < kPanel; ++i) {
    const __m512 scale = _mm512_mul_ps(row_scales, _mm512_set1_ps(scales[i * blocks]));
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * 16));
    totals[i] = _mm512_fmadd_ps(sum, scale, totals[i]);
  }
}

// Outputs of a panel for the rows of one tile. A block's sums are stored behind the products of the
// next, and read behind those of the one after it: `in_steps` says why. Written out, totals stay in
// registers.
void multiply_tile(const BlockWeights& weights, const Panel& panel, const Tile& tile, float* out) {
  alignas(64) int32_t even[kSums], odd[kSums];
  __m512 totals[kPanel];
  for (auto& total : totals) total = _mm512_setzero_ps();
  const int64_t blocks = weights.blocks();
  for (int64_t i = 0; i < blocks + 2; i += 2) {
    if (i < blocks) multiply_block<0>(weights, panel, tile, i);
    if (i > 0 && i <= blocks) store_tile<1>(odd, 64);
    if (i > 0) add_block(panel, tile, blocks, i - 2, even, totals);
    if (i + 1 < blocks) multiply_block<1>(weights, panel, tile, i + 1);
    if (i < blocks) store_tile<0>(even, 64);
    if (i > 0 && i <= blocks) add_block(panel, tile, blocks, i - 1, odd, totals);
  }
  __m512i turned[kPanel];
  for (int i = 0; i < kPanel; ++i) turned[i] = _mm512_castps_si512(totals[i]);
  turn(turned);
  for (int row = 0; row < tile.rows; ++row) _mm512_storeu_si512(out + row * kPanel, turned[row]);
}

void multiply_panel(const BlockWeights& weights, const Panel& panel, const Tile* tiles,
                    int64_t count, float* out) {
  if (!is_of_units(weights.bits, weights.block)) {
    return multiply_panel_avx512(weights, panel, tiles, count, out);
  }
  const TileRegisters registers;
  for (int64_t i = 0; i < count; ++i) {
    multiply_tile(weights, panel, tiles[i], out);
    out += tiles[i].rows * kPanel;
  }
}

}  // namespace

ProductFunctions amx_functions() {
  ProductFunctions functions = avx512_functions();
  functions.name = "amx";
  functions.unpack_panel = unpack_panel;
  functions.multiply_panel = multiply_panel;
  functions.tile_rows = tile_rows;
  return functions;
}

}  // namespace kimivl
