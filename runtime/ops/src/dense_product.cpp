#include "dense_product.h"

#include <algorithm>

#include "isa.h"

namespace kimivl {
namespace {

constexpr int64_t kColumns = 64;

// Some columns of one row of weights as fp32.
void widen(const DenseWeights& weights, int64_t input, int64_t first, int64_t count, float* out) {
  const int64_t start = input * weights.outputs + first;
  for (int64_t i = 0; i < count; ++i) out[i] = number_at(weights.values, weights.type, start + i);
}

__attribute__((target_clones("avx2", "default"))) void add_scaled(float factor, const float* values,
                                                                  int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += factor * values[i];
}

void multiply(const DenseWeights& weights, const float* x, int64_t x_stride, int64_t rows, float* y,
              int64_t y_stride) {
  float row[kColumns];
  for (int64_t first = 0; first < weights.outputs; first += kColumns) {
    const int64_t count = std::min(kColumns, weights.outputs - first);
    for (int64_t r = 0; r < rows; ++r) std::fill_n(y + r * y_stride + first, count, 0.0f);
    for (int64_t input = 0; input < weights.inputs; ++input) {
      widen(weights, input, first, count, row);
      for (int64_t r = 0; r < rows; ++r) {
        add_scaled(x[r * x_stride + input], row, count, y + r * y_stride + first);
      }
    }
  }
}

}  // namespace

void multiply_dense(const DenseWeights& weights, const float* x, int64_t x_stride, int64_t rows,
                    float* y, int64_t y_stride) {
  static const DenseProduct product =
      best_isa() >= Isa::kAvx512 ? avx512_dense_product() : multiply;
  product(weights, x, x_stride, rows, y, y_stride);
}

}  // namespace kimivl
