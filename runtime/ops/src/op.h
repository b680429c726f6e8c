// One custom op: what it takes, what it gives, and the kernel that runs it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "number_types.h"
#include "ort_abi.h"

namespace kimivl {

// A tensor that a kernel reads.
struct Input {
  const void* data;
  Type type;
  std::vector<int64_t> shape;

  template <typename Element>
  const Element* as() const {
    return static_cast<const Element*>(data);
  }
  // Elements of all axes but the last `count`.
  int64_t leading(size_t count) const;
  int64_t last() const { return shape.back(); }
};

// What a kernel sees of one call.
class Call {
 public:
  Call(const ort::Api* api, ort::KernelContext* context) : api_(api), context_(context) {}

  Input input(size_t index) const;
  // Ask for the memory of an output.
  void* output(size_t index, const std::vector<int64_t>& shape) const;
  template <typename Element>
  Element* output_as(size_t index, const std::vector<int64_t>& shape) const {
    return static_cast<Element*>(output(index, shape));
  }

 private:
  const ort::Api* api_;
  ort::KernelContext* context_;
};

// Attributes of a node, when its kernel is made.
class Attributes {
 public:
  Attributes(const ort::Api* api, const ort::KernelInfo* info) : api_(api), info_(info) {}

  int64_t integer(const char* name) const;
  float number(const char* name) const;
  // An input that is an initialiser; false if it is none.
  bool constant(size_t index, Input* found) const;

 private:
  const ort::Api* api_;
  const ort::KernelInfo* info_;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // Run once; several threads may do so at the same time.
  virtual void run(const Call& call) const = 0;
};

struct OpInfo {
  const char* domain;
  const char* name;
  std::vector<Type> inputs;
  std::vector<Type> outputs;
  Kernel* (*make)(const Attributes& attributes);
};

// All ops of the library.
const std::vector<OpInfo>& all_ops();

OpInfo block_linear_op();
OpInfo block_experts_op();
OpInfo router_op();
OpInfo cached_attention_op();

// Refuse a call that contradicts itself; ONNX Runtime passes the words on.
inline void expect(bool is_right, const std::string& problem) {
  if (!is_right) throw std::invalid_argument(problem);
}

}  // namespace kimivl
