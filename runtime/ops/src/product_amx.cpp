// Products of many rows with AMX: panels of 32 outputs and tiles of 16 rows.
//
// Weights are the first factor, as their codes lie in a row; rows in the order of tiles are the
// second. Sums come by output, and are turned when all blocks are added.
#include <algorithm>
#include <vector>

#include "product_avx512.h"

// Behind the headers: what they define must run on every processor.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")
#include "ahead.h"
#include "amx_tiles.h"
#include "avx512_load.h"
#include "turn_avx512.h"

namespace kimivl {
namespace {

constexpr int kUnit = 64;     // codes in a row of a tile register
constexpr int kRows = 16;     // of a tile
constexpr int kOutputs = 32;  // of a panel: two tile registers
constexpr int64_t kPartCodes = 512;  // inputs whose codes, of a panel, stay in the first cache
constexpr int64_t kSums = 16 * 16;

struct alignas(64) Line {
  float values[kRows];
};

// Whether a block is whole units, in the order of tiles.
bool is_of_units(int bits, int block) { return block % (bits == 4 ? 2 * kUnit : kUnit) == 0; }

PanelShape panel_shape(int bits, int block) {
  return is_of_units(bits, block) ? PanelShape{kRows, kOutputs} : PanelShape{};
}

// 64 bytes of one row of weights, with their sign, to one unit or two of a panel.
void unpack_line(const uint8_t* source, int bits, uint8_t* target) {
  const __m512i packed = _mm512_loadu_si512(source);
  if (bits == 8) {
    _mm512_store_si512(target, _mm512_xor_si512(packed, _mm512_set1_epi8(-128)));
    return;
  }
  const __m512i low_bits = _mm512_set1_epi8(0x0f), zero_point = _mm512_set1_epi8(8);
  const __m512i low = _mm512_and_si512(packed, low_bits);
  const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_bits);
  _mm512_store_si512(target, _mm512_sub_epi8(low, zero_point));
  _mm512_store_si512(target + kOutputs * kUnit, _mm512_sub_epi8(high, zero_point));
}

// A panel's rows of weights, behind the last one it again, and their scales.
struct Panel {
  const uint8_t* rows[kOutputs];
  float* scales;  // (kOutputs, blocks)
};

template <Type type>
void load_scales(const BlockWeights& weights, int64_t row, float* scales) {
  const int64_t blocks = weights.blocks();
  for (int64_t i = 0; i < blocks; i += 16) {
    const __mmask16 mask = first_lanes(blocks - i);
    _mm512_mask_storeu_ps(scales + i, mask, load_floats<type>(weights.row_scales(row), i, mask));
  }
}

Panel panel_at(const BlockWeights& weights, int64_t first, float* scales) {
  Panel panel{};
  panel.scales = scales;
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t row = std::min<int64_t>(first + i, weights.rows - 1);
    panel.rows[i] = weights.row(row);
    float* target = scales + i * weights.blocks();
    switch (weights.scale_type) {
      case Type::kFloat16:
        load_scales<Type::kFloat16>(weights, row, target);
        break;
      case Type::kBfloat16:
        load_scales<Type::kBfloat16>(weights, row, target);
        break;
      default:
        load_scales<Type::kFloat>(weights, row, target);
    }
  }
  return panel;
}

// Some blocks of inputs, as many as keep their codes in the first cache.
struct Part {
  int64_t start;
  int64_t count;
};

// Codes of a part: (units, kOutputs, kUnit).
void unpack_part(const BlockWeights& weights, const Panel& panel, Part part, uint8_t* codes) {
  // Locals, as a store of bytes might change what is behind a reference.
  const int bits = weights.bits, step = kOutputs * kUnit * 8 / bits;
  const int64_t first = part.start * weights.block * bits / 8;
  const int64_t bytes = part.count * weights.block * bits / 8;
  for (int i = 0; i < kOutputs; ++i) {
    uint8_t* target = codes + i * kUnit;
    for (int64_t byte = 0; byte < bytes; byte += kUnit) {
      unpack_line(panel.rows[i] + first + byte, bits, target);
      target += step;
    }
  }
}

// Products of one block with both halves of a panel.
template <int first>
void multiply_block(const BlockWeights& weights, const uint8_t* codes, const Tile& tile,
                    int64_t block) {
  const int64_t units = weights.block / kUnit, stride = tile.rows * 4;
  // Columns behind the last row are of what follows, and are not used.
  const int8_t* rows = tile.codes + block * weights.block * tile.rows;
  clear_tile<first>();
  clear_tile<first + 1>();
  for (int64_t unit = 0; unit < units; ++unit) {
    load_tile<6>(rows, stride);
    load_tile<4>(codes, kUnit);
    add_signed_signed<first, 4, 6>();
    load_tile<5>(codes + kTileBytes, kUnit);
    add_signed_signed<first + 1, 5, 6>();
    codes += kOutputs * kUnit;
    rows += kUnit * tile.rows;
  }
}

template <int first>
void store_sums(int32_t* sums) {
  store_tile<first>(sums, 64);
  store_tile<first + 1>(sums + kSums, 64);
}

// Products of a part: sums (blocks, kOutputs, kRows). A store waits for its products, and products
// for the stores before them: so each comes behind the products of the next block.
void multiply_part(const BlockWeights& weights, const uint8_t* codes, const Tile& tile, Part part,
                   int32_t* sums) {
  const int64_t step = weights.block * kOutputs;
  for (int64_t i = 0; i <= part.count; i += 2) {
    if (i < part.count) multiply_block<0>(weights, codes + i * step, tile, part.start + i);
    if (i > 0) store_sums<2>(sums + (i - 1) * 2 * kSums);
    if (i + 1 < part.count) {
      multiply_block<2>(weights, codes + (i + 1) * step, tile, part.start + i + 1);
    }
    if (i < part.count) store_sums<0>(sums + i * 2 * kSums);
  }
}

// Add the scaled sums of a part to one half of a panel: totals (16, kRows).
void add_part(const Tile& tile, Part part, const float* scales, int64_t blocks,
              const int32_t* sums, float* totals) {
  const __mmask16 mask = first_lanes(tile.rows);
  __m512 total[16];
  for (int i = 0; i < 16; ++i) total[i] = _mm512_load_ps(totals + i * kRows);
  const int64_t end = part.start + part.count;
  for (int64_t block = part.start; block < end; ++block) {
    const __m512 row_scales = _mm512_maskz_loadu_ps(mask, tile.scales + block * tile.rows);
    for (int i = 0; i < 16; ++i) {
      const __m512 scale = _mm512_set1_ps(scales[i * blocks + block]);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * kRows));
      total[i] = _mm512_fmadd_ps(sum, _mm512_mul_ps(row_scales, scale), total[i]);
    }
    sums += 2 * kSums;
  }
  for (int i = 0; i < 16; ++i) _mm512_store_ps(totals + i * kRows, total[i]);
}

// Turn the totals of a tile, (kOutputs, kRows), into its rows.
void store_rows(const float* totals, int rows, float* out) {
  for (int half = 0; half < 2; ++half) {
    __m512i turned[16];
    for (int i = 0; i < 16; ++i) {
      turned[i] = _mm512_castps_si512(_mm512_load_ps(totals + (half * 16 + i) * kRows));
    }
    turn(turned);
    for (int row = 0; row < rows; ++row) {
      _mm512_storeu_si512(out + row * kOutputs + half * 16, turned[row]);
    }
  }
}

void multiply_panel(const BlockWeights& weights, int64_t first, const Tile* tiles, int64_t count,
                    float* out) {
  if (!is_of_units(weights.bits, weights.block)) {
    return multiply_panel_avx512(weights, first, tiles, count, out);
  }
  thread_local std::vector<Line> totals_memory;
  thread_local std::vector<float> scales;
  alignas(64) uint8_t codes[kPartCodes * kOutputs];
  alignas(64) int32_t sums[kPartCodes / kUnit * 2 * kSums];
  const int64_t blocks = weights.blocks(), most = kPartCodes / weights.block;
  totals_memory.assign(static_cast<size_t>(count * kOutputs), Line{});
  scales.resize(static_cast<size_t>(blocks * kOutputs));
  float* totals = totals_memory.data()->values;
  const Panel panel = panel_at(weights, first, scales.data());
  Ahead next(weights.row(first + kOutputs), kOutputs * weights.row_bytes());
  const int64_t num_parts = (blocks + most - 1) / most;
  const int64_t lines = kOutputs * weights.row_bytes() / (kUnit * count * num_parts) + 1;
  const TileRegisters registers;
  for (Part part{0, 0}; part.start < blocks; part.start += most) {
    part.count = std::min(most, blocks - part.start);
    unpack_part(weights, panel, part, codes);
    for (int64_t i = 0; i < count; ++i) {
      next.ask(lines);
      multiply_part(weights, codes, tiles[i], part, sums);
      for (int64_t half = 0; half < 2; ++half) {
        add_part(tiles[i], part, panel.scales + half * 16 * blocks, blocks, sums + half * kSums,
                 totals + (i * kOutputs + half * 16) * kRows);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    store_rows(totals + i * kOutputs * kRows, tiles[i].rows, out);
    out += tiles[i].rows * kOutputs;
  }
}

}  // namespace

ProductFunctions amx_functions() {
  ProductFunctions functions = avx512_functions();
  functions.name = "amx";
  functions.multiply_panel = multiply_panel;
  functions.panel_shape = panel_shape;
  return functions;
}

}  // namespace kimivl
