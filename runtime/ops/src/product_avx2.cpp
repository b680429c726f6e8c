// Products with AVX2: bytes are widened to 16 bits, since its product of bytes saturates.

#include <algorithm>

#include "product.h"

// Behind the headers: what they define must run on every processor.
#pragma GCC target("avx2,fma")
#include <immintrin.h>

namespace kimivl {
namespace {

int32_t sum_of(__m256i v) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

// Sixteen unsigned bytes times sixteen signed ones, added to eight sums.
__m256i add_products(__m256i sums, __m128i codes, const int8_t* activations) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(activations));
  return _mm256_add_epi32(
      sums, _mm256_madd_epi16(_mm256_cvtepu8_epi16(codes), _mm256_cvtepi8_epi16(bytes)));
}

// Codes of 4 bits from one block: `bytes` of them meet the even and the odd half of a chunk.
__m256i multiply_nibbles(const uint8_t* codes, const int8_t* evens, int64_t bytes) {
  const __m128i low_bits = _mm_set1_epi8(0x0f);
  __m256i sums = _mm256_setzero_si256();
  for (int64_t i = 0; i < bytes; i += 8) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i));
    const __m128i low = _mm_and_si128(packed, low_bits);
    const __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), low_bits);
    const __m128i even = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(evens + i));
    const __m128i odd =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(evens + kChunk / 2 + i));
    const __m256i weights = _mm256_cvtepu8_epi16(_mm_unpacklo_epi64(low, high));
    const __m256i values = _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(even, odd));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(weights, values));
  }
  return sums;
}

__m256i multiply_block(const BlockWeights& weights, const uint8_t* codes, const int8_t* activations,
                       int64_t block) {
  __m256i sums = _mm256_setzero_si256();
  const int64_t first = block * weights.block, last = first + weights.block;
  if (weights.bits == 8) {
    for (int64_t i = first; i < last; i += 16) {
      const auto* place = reinterpret_cast<const __m128i*>(codes + i);
      sums = add_products(sums, _mm_loadu_si128(place), activations + i);
    }
    return sums;
  }
  const int64_t step = std::min<int64_t>(weights.block, kChunk);
  for (int64_t i = first; i < last; i += step) {
    const int8_t* evens = activations + i / kChunk * kChunk + i % kChunk / 2;
    sums = _mm256_add_epi32(sums, multiply_nibbles(codes + i / 2, evens, step / 2));
  }
  return sums;
}

void multiply_rows(const BlockWeights& weights, int64_t first, int64_t last, const Tile* tiles,
                   int64_t count, float* out, int64_t stride) {
  for (int64_t row = first; row < last; ++row) {
    float totals[kFewRows] = {};
    for (int64_t block = 0; block < weights.blocks(); ++block) {
      const float scale = weights.scale(row, block);
      for (int64_t t = 0; t < count; ++t) {
        const __m256i sums = multiply_block(weights, weights.row(row), tiles[t].codes, block);
        const int32_t sum = sum_of(sums) + tiles[t].offsets[block];
        totals[t] += static_cast<float>(sum) * scale * tiles[t].scales[block];
      }
    }
    for (int64_t t = 0; t < count; ++t) out[t * stride + row - first] = totals[t];
  }
}

}  // namespace

ProductFunctions avx2_functions() {
  ProductFunctions functions = plain_functions();
  functions.name = "avx2";
  functions.multiply_rows = multiply_rows;
  return functions;
}

}  // namespace kimivl
