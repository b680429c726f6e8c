// Products in fp32 with AVX-512: four rows and 64 columns stay in registers, or one row and 256, so
// that the weights of a single row are read in long runs.

#include "dense_product.h"

// Behind the headers: what they define must run on every processor.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "ahead.h"
#include "avx512_load.h"

namespace kimivl {
namespace {

constexpr int kRows = 4;
constexpr int kSums = 16;  // vectors

// One row and `lines` * 32 columns of bfloat16. A number's bits are the upper half of a float's, so
// that a line of 64 bytes is two vectors: its odd columns as they lie, its even ones shifted.
template <int lines>
void multiply_lines(const DenseWeights& weights, int64_t first, const float* x, float* y) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const char* place = static_cast<const char*>(weights.values) + 2 * first;
  __m512 even[lines], odd[lines];
  for (int k = 0; k < lines; ++k) even[k] = odd[k] = _mm512_setzero_ps();
  for (int64_t input = 0; input < weights.inputs; ++input, place += 2 * weights.outputs) {
    const __m512 value = _mm512_set1_ps(x[input]);
#pragma GCC unroll 8
    for (int k = 0; k < lines; ++k) {
      ask_ahead(place + 64 * k);
      const __m512i pair = _mm512_loadu_si512(place + 64 * k);
      even[k] = _mm512_fmadd_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)), even[k]);
      odd[k] = _mm512_fmadd_ps(value, _mm512_castsi512_ps(_mm512_and_si512(pair, upper)), odd[k]);
    }
  }
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (int k = 0; k < lines; ++k) {
    float* to = y + first + 32 * k;
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(even[k], low, odd[k]));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(even[k], high, odd[k]));
  }
}

template <Type type, int rows>
void multiply_columns(const DenseWeights& weights, int64_t first, const float* x, int64_t x_stride,
                      float* y, int64_t y_stride) {
  constexpr int kVectors = kSums / rows;
  __mmask16 masks[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    masks[v] = first_lanes(weights.outputs - first - 16 * v);
  }
  __m512 sums[rows][kVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_ps();
  }
  for (int64_t input = 0; input < weights.inputs; ++input) {
    const int64_t start = input * weights.outputs + first;
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (rows == 1) {
        ask_ahead(static_cast<const char*>(weights.values) + (start + 16 * v) * float_bytes(type));
      }
      const __m512 w = load_floats<type>(weights.values, start + 16 * v, masks[v]);
      for (int r = 0; r < rows; ++r) {
        sums[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * x_stride + input]), w, sums[r][v]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      _mm512_mask_storeu_ps(y + r * y_stride + first + 16 * v, masks[v], sums[r][v]);
    }
  }
}

template <Type type, int rows>
void multiply_rows(const DenseWeights& weights, const float* x, int64_t x_stride, float* y,
                   int64_t y_stride) {
  int64_t first = 0;
  if constexpr (type == Type::kBfloat16 && rows == 1) {
    for (; first + 256 <= weights.outputs; first += 256) multiply_lines<8>(weights, first, x, y);
    for (; first + 128 <= weights.outputs; first += 128) multiply_lines<4>(weights, first, x, y);
  }
  for (; first < weights.outputs; first += 16 * kSums / rows) {
    multiply_columns<type, rows>(weights, first, x, x_stride, y, y_stride);
  }
}

template <Type type>
void multiply_typed(const DenseWeights& weights, const float* x, int64_t x_stride, int64_t rows,
                    float* y, int64_t y_stride) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    multiply_rows<type, kRows>(weights, x + r * x_stride, x_stride, y + r * y_stride, y_stride);
  }
  for (; r < rows; ++r) {
    multiply_rows<type, 1>(weights, x + r * x_stride, x_stride, y + r * y_stride, y_stride);
  }
}

void multiply(const DenseWeights& weights, const float* x, int64_t x_stride, int64_t rows, float* y,
              int64_t y_stride) {
  switch (weights.type) {
    case Type::kFloat:
      return multiply_typed<Type::kFloat>(weights, x, x_stride, rows, y, y_stride);
    case Type::kFloat16:
      return multiply_typed<Type::kFloat16>(weights, x, x_stride, rows, y, y_stride);
    default:
      return multiply_typed<Type::kBfloat16>(weights, x, x_stride, rows, y, y_stride);
  }
}

}  // namespace

DenseProduct avx512_dense_product() { return multiply; }

}  // namespace kimivl
