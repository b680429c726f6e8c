// How many outputs of a matrix make one task.
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_weights.h"
#include "product.h"
#include "rounded.h"

namespace kimivl {

// Outputs [first, last) of task `index`.
struct Range {
  int64_t first, last;
};

// Tasks of whole panels, large enough that handing them out costs little and small enough that
// threads end together.
class OutputSplit {
 public:
  OutputSplit(const BlockWeights& weights, bool is_few) : rows_(weights.rows) {
    constexpr int64_t kTaskBytes = 96 * 1024;
    const int64_t panels = is_few ? kTaskBytes / (weights.row_bytes() * kPanel) : 2;
    step_ = std::max<int64_t>(panels, 1) * kPanel;
  }
  size_t tasks() const { return static_cast<size_t>((rows_ + step_ - 1) / step_); }
  Range range(size_t index) const {
    const int64_t first = static_cast<int64_t>(index) * step_;
    return {first, std::min(first + step_, rows_)};
  }

 private:
  int64_t rows_, step_;
};

}  // namespace kimivl
