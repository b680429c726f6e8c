#include "op.h"

#include <functional>
#include <numeric>

namespace kimivl {
namespace {

using ort::Api;
using ort::Place;
using ort::Status;

void check(const Api* api, Status* status) {
  if (status == nullptr) return;
  ort::function<void (*)(Status*)>(api, Place::kReleaseStatus)(status);
  throw std::runtime_error("ONNX Runtime refused a call of the custom op");
}

Input read(const Api* api, const ort::Value* value) {
  Input found{};
  using GetData = Status* (*)(const ort::Value*, const void**);
  check(api, ort::function<GetData>(api, Place::kTensorData)(value, &found.data));
  ort::TensorInfo* info = nullptr;
  using GetInfo = Status* (*)(const ort::Value*, ort::TensorInfo**);
  check(api, ort::function<GetInfo>(api, Place::kTensorInfo)(value, &info));
  size_t count = 0;
  using GetCount = Status* (*)(const ort::TensorInfo*, size_t*);
  check(api, ort::function<GetCount>(api, Place::kNumDimensions)(info, &count));
  found.shape.resize(count);
  using GetShape = Status* (*)(const ort::TensorInfo*, int64_t*, size_t);
  check(api, ort::function<GetShape>(api, Place::kDimensions)(info, found.shape.data(), count));
  int type = 0;
  using GetType = Status* (*)(const ort::TensorInfo*, int*);
  check(api, ort::function<GetType>(api, Place::kElementType)(info, &type));
  found.type = static_cast<Type>(type);
  ort::function<void (*)(ort::TensorInfo*)>(api, Place::kReleaseTensorInfo)(info);
  return found;
}

}  // namespace

int64_t Input::leading(size_t count) const {
  return std::accumulate(shape.begin(), shape.end() - static_cast<std::ptrdiff_t>(count),
                         int64_t{1}, std::multiplies<int64_t>());
}

Input Call::input(size_t index) const {
  const ort::Value* value = nullptr;
  using GetInput = Status* (*)(const ort::KernelContext*, size_t, const ort::Value**);
  check(api_, ort::function<GetInput>(api_, Place::kInput)(context_, index, &value));
  return read(api_, value);
}

void* Call::output(size_t index, const std::vector<int64_t>& shape) const {
  ort::Value* value = nullptr;
  using GetOutput =
      Status* (*)(ort::KernelContext*, size_t, const int64_t*, size_t, ort::Value**);
  check(api_, ort::function<GetOutput>(api_, Place::kOutput)(context_, index, shape.data(),
                                                             shape.size(), &value));
  void* data = nullptr;
  using GetData = Status* (*)(ort::Value*, void**);
  check(api_, ort::function<GetData>(api_, Place::kTensorData)(value, &data));
  return data;
}

int64_t Attributes::integer(const char* name) const {
  int64_t value = 0;
  using Get = Status* (*)(const ort::KernelInfo*, const char*, int64_t*);
  check(api_, ort::function<Get>(api_, Place::kAttributeInt)(info_, name, &value));
  return value;
}

float Attributes::number(const char* name) const {
  float value = 0;
  using Get = Status* (*)(const ort::KernelInfo*, const char*, float*);
  check(api_, ort::function<Get>(api_, Place::kAttributeFloat)(info_, name, &value));
  return value;
}

bool Attributes::constant(size_t index, Input* found) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  using Get = Status* (*)(const ort::KernelInfo*, size_t, int*, const ort::Value**);
  check(api_, ort::function<Get>(api_, Place::kConstantInput)(info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return false;
  *found = read(api_, value);
  return true;
}

}  // namespace kimivl
