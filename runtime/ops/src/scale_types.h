// Numbers of 16 bits as fp32, one at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "block_weights.h"

namespace kimivl {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float from_bfloat16(uint16_t bits) { return float_of_bits(uint32_t{bits} << 16); }

inline float from_float16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  if (exponent == 0) {
    const float tiny = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -tiny : tiny;
  }
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | (fraction << 13));
  return float_of_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

inline float scale_at(const BlockWeights& weights, int64_t row, int64_t block) {
  const char* scales = weights.row_scales(row);
  if (weights.scale_type == BlockWeights::ScaleType::kFloat) {
    float value;
    std::memcpy(&value, scales + block * 4, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, scales + block * 2, sizeof(bits));
  return weights.scale_type == BlockWeights::ScaleType::kFloat16 ? from_float16(bits)
                                                                 : from_bfloat16(bits);
}

}  // namespace kimivl
