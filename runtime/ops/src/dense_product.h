// Products of fp32 rows with matrices of 16 or 32 bits.
#pragma once

#include <cstdint>

#include "op.h"

namespace kimivl {

struct DenseWeights {
  const void* values;  // (inputs, outputs)
  Type type;           // kFloat, kFloat16 or kBfloat16
  int64_t inputs, outputs;

  // One of several matrices of this shape, one behind the other.
  DenseWeights at(int64_t index) const {
    const int64_t bytes = inputs * outputs * float_bytes(type);
    return {static_cast<const char*>(values) + index * bytes, type, inputs, outputs};
  }
};

// y[row] = x[row] @ W for `rows` rows that lie `x_stride` and `y_stride` apart; on this thread.
void multiply_dense(const DenseWeights& weights, const float* x, int64_t x_stride, int64_t rows,
                    float* y, int64_t y_stride);

using DenseProduct = void (*)(const DenseWeights&, const float*, int64_t, int64_t, float*, int64_t);
DenseProduct avx512_dense_product();

}  // namespace kimivl
