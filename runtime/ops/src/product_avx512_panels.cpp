// Products with AVX-512 and VNNI of many rows: panels of 16 outputs, turned once for all of them.

#include <algorithm>
#include <vector>

#include "product_avx512.h"

// Behind the headers: what they define must run on every processor.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")
#include "turn_avx512.h"

namespace kimivl {
namespace {

// A panel's codes in the order in which tiles are read, one byte each, and its scales by block.
struct Panel {
  uint8_t* codes;  // (stored width / 4, kPanel, 4)
  float* scales;   // (blocks, kPanel)
};

// Where the dwords of a block are: `parts` runs of `length` each, `distance` apart.
struct BlockDwords {
  int64_t first, length, parts, distance;

  BlockDwords(const BlockWeights& weights, int64_t block) {
    const int64_t dwords = weights.block / 4;
    if (weights.bits == 8 || weights.block % kChunk == 0) {
      first = block * dwords;
      length = dwords;
      parts = 1;
      distance = 0;
      return;
    }
    const int64_t per_chunk = kChunk / weights.block;
    length = dwords / 2;  // even elements in the first half of a chunk, odd ones in the second
    first = block / per_chunk * (kChunk / 4) + block % per_chunk * length;
    parts = 2;
    distance = kChunk / 8;
  }
};

template <int num_rows>
void multiply_panel_of(const BlockWeights& weights, const Panel& panel, const Tile& tile,
                       float* out) {
  __m512 totals[num_rows];
  for (auto& total : totals) total = _mm512_setzero_ps();
  for (int64_t block = 0; block < weights.blocks(); ++block) {
    const BlockDwords dwords(weights, block);
    __m512i sums[num_rows];
    for (int r = 0; r < num_rows; ++r) {
      sums[r] = _mm512_set1_epi32(tile.offsets[block * num_rows + r]);
    }
    for (int64_t part = 0; part < dwords.parts; ++part) {
      const int64_t start = dwords.first + part * dwords.distance;
      const uint8_t* codes = panel.codes + start * 64;
      const int8_t* activations = tile.codes + start * num_rows * 4;
      for (int64_t i = 0; i < dwords.length; ++i) {
        const __m512i packed = _mm512_load_si512(codes + i * 64);
        const auto* dword = reinterpret_cast<const int32_t*>(activations + i * num_rows * 4);
        for (int r = 0; r < num_rows; ++r) {
          sums[r] = _mm512_dpbusd_epi32(sums[r], packed, _mm512_set1_epi32(dword[r]));
        }
      }
    }
    const __m512 scales = _mm512_loadu_ps(panel.scales + block * kPanel);
    for (int r = 0; r < num_rows; ++r) {
      const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(tile.scales[block * num_rows + r]));
      totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), scale, totals[r]);
    }
  }
  for (int r = 0; r < num_rows; ++r) _mm512_storeu_ps(out + r * kPanel, totals[r]);
}

template <int num_rows>
void multiply_panel_sized(const BlockWeights& weights, const Panel& panel, const Tile& tile,
                          float* out) {
  if constexpr (num_rows > 0) {
    if (tile.rows == num_rows) return multiply_panel_of<num_rows>(weights, panel, tile, out);
    multiply_panel_sized<num_rows - 1>(weights, panel, tile, out);
  }
}

void unpack_panel(const BlockWeights& weights, int64_t first, const Panel& panel) {
  const int64_t bytes = weights.row_bytes();
  const __m512i low_bits = _mm512_set1_epi8(0x0f);
  uint8_t* target = panel.codes;
  int64_t rows[kPanel];  // behind the last row it is read again
  for (int i = 0; i < kPanel; ++i) rows[i] = std::min<int64_t>(first + i, weights.rows - 1);
  for (int64_t start = 0; start < bytes; start += 64) {
    const __mmask64 mask = first_bytes(bytes - start);
    __m512i v[16];
    for (int i = 0; i < kPanel; ++i) {
      v[i] = _mm512_maskz_loadu_epi8(mask, weights.row(rows[i]) + start);
    }
    turn(v);
    if (weights.bits == 8) {
      for (int i = 0; i < 16; ++i) _mm512_store_si512(target + i * 64, v[i]);
      target += 1024;
      continue;
    }
    for (int i = 0; i < 16; ++i) {
      _mm512_store_si512(target + i * 64, _mm512_and_si512(v[i], low_bits));
      _mm512_store_si512(target + 1024 + i * 64,
                         _mm512_and_si512(_mm512_srli_epi16(v[i], 4), low_bits));
    }
    target += 2048;
  }
  for (int64_t block = 0; block < weights.blocks(); ++block) {
    for (int i = 0; i < kPanel; ++i) {
      panel.scales[block * kPanel + i] = weights.scale(rows[i], block);
    }
  }
}

}  // namespace

void multiply_panel_avx512(const BlockWeights& weights, int64_t first, const Tile* tiles,
                           int64_t count, float* out) {
  thread_local std::vector<uint8_t> codes;
  thread_local std::vector<float> scales;
  const int64_t stored = (weights.width + kChunk - 1) / kChunk * kChunk;
  codes.resize(static_cast<size_t>(stored * kPanel + 64));
  scales.resize(static_cast<size_t>(weights.blocks() * kPanel));
  const auto start = (reinterpret_cast<uintptr_t>(codes.data()) + 63) & ~uintptr_t{63};
  const Panel panel{reinterpret_cast<uint8_t*>(start), scales.data()};
  unpack_panel(weights, first, panel);
  for (int64_t i = 0; i < count; ++i) {
    multiply_panel_sized<kTileRows>(weights, panel, tiles[i], out);
    out += tiles[i].rows * kPanel;
  }
}

}  // namespace kimivl
