// Types of numbers, and those of 16 bits as fp32, one at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kimivl {

// Types of tensors, numbered as ONNX Runtime does.
enum class Type : int {
  kAny = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
};

inline bool is_float(Type type) {
  return type == Type::kFloat || type == Type::kFloat16 || type == Type::kBfloat16;
}

// Bytes of a floating-point number.
inline int64_t float_bytes(Type type) { return type == Type::kFloat ? 4 : 2; }

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

// One number of an array of any floating-point type.
inline float number_at(const void* values, Type type, int64_t index) {
  if (type == Type::kFloat) {
    float value;
    std::memcpy(&value, static_cast<const char*>(values) + index * 4, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(values) + index * 2, sizeof(bits));
  return type == Type::kFloat16 ? from_float16(bits) : from_bfloat16(bits);
}

}  // namespace kimivl
