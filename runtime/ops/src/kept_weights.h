// Weights that an op keeps: where ONNX Runtime mapped them, or copied into memory of large pages.
//
// A token reads every weight that it needs once, so that what it costs is memory bandwidth, and with
// pages of 4 KiB a good part of that goes into looking addresses up.
#pragma once

#include <cstddef>
#include <memory>

#include "op.h"

namespace kimivl {

// Whether weights are copied; the default is not. Holds for kernels that are made afterwards.
void set_packing(bool is_wanted);

// One input of a node that never changes.
class KeptInput {
 public:
  KeptInput(const Attributes& attributes, size_t index);

  // What to read: the copy, if there is one.
  Input of(const Call& call) const { return copy_ ? value_ : call.input(index_); }

 private:
  size_t index_;
  Input value_{};
  std::shared_ptr<const void> copy_;
};

}  // namespace kimivl
