// The part of ONNX Runtime's C interface that custom ops need, declared here so that the library
// builds without its headers.
//
// The interface only ever grows at its end, so that these places hold in every later version.
// Source: onnxruntime_c_api.h, API version 22 (struct OrtApi, struct OrtCustomOp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace kimivl::ort {

constexpr uint32_t kApiVersion = 22;

// Opaque things of ONNX Runtime.
struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

// The table of its functions: an array of pointers.
struct Api {
  void* functions[1];
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// Places in the table, in the order of the header.
enum class Place : size_t {
  kCreateStatus = 0,
  kCreateDomain = 26,
  kAddOp = 27,
  kAddDomain = 28,
  kTensorData = 51,
  kElementType = 60,
  kNumDimensions = 61,
  kDimensions = 62,
  kTensorInfo = 65,
  kAttributeFloat = 85,
  kAttributeInt = 86,
  kInput = 90,
  kOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorInfo = 99,
  kConstantInput = 249,
};

// Look a function up by its place and type.
template <typename Function>
Function function(const Api* api, Place place) {
  return reinterpret_cast<Function>(api->functions[static_cast<size_t>(place)]);
}

// What ONNX Runtime calls; a null pointer where we do not need to be asked.
struct CustomOp {
  uint32_t version;
  void* (*create)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  int (*input_characteristic)(const CustomOp*, size_t);
  int (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_arity)(const CustomOp*);
  int (*variadic_input_homogeneity)(const CustomOp*);
  int (*variadic_output_arity)(const CustomOp*);
  int (*variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};
static_assert(sizeof(CustomOp) == 208, "one member is missing");

}  // namespace kimivl::ort
