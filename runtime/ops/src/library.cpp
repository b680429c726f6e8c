// The entry point: ONNX Runtime calls `RegisterCustomOps` when it loads the library.

#include <deque>
#include <exception>
#include <mutex>

#include "op.h"

namespace kimivl {
namespace {

using ort::Api;
using ort::CustomOp;
using ort::KernelContext;
using ort::KernelInfo;
using ort::Place;
using ort::Status;

constexpr int kFail = 1;  // ORT_FAIL

// What ONNX Runtime holds of an op; it gets a pointer to the first member back.
struct RegisteredOp {
  CustomOp interface;
  OpInfo info;
};

struct RegisteredKernel {
  const Api* api;
  Kernel* kernel;
};

const OpInfo& info_of(const CustomOp* op) {
  return reinterpret_cast<const RegisteredOp*>(op)->info;
}

Status* status_of(const Api* api, const std::exception& error) {
  using Create = Status* (*)(int, const char*);
  return ort::function<Create>(api, Place::kCreateStatus)(kFail, error.what());
}

Status* create(const CustomOp* op, const Api* api, const KernelInfo* info, void** kernel) {
  try {
    *kernel = new RegisteredKernel{api, info_of(op).make(Attributes(api, info))};
    return nullptr;
  } catch (const std::exception& error) {
    return status_of(api, error);
  }
}

Status* compute(void* state, KernelContext* context) {
  const auto* registered = static_cast<RegisteredKernel*>(state);
  try {
    registered->kernel->run(Call(registered->api, context));
    return nullptr;
  } catch (const std::exception& error) {
    return status_of(registered->api, error);
  }
}

void destroy(void* state) {
  auto* registered = static_cast<RegisteredKernel*>(state);
  delete registered->kernel;
  delete registered;
}

CustomOp interface_of() {
  CustomOp op{};
  op.version = ort::kApiVersion;
  op.name = [](const CustomOp* self) { return info_of(self).name; };
  op.provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.input_type = [](const CustomOp* self, size_t i) {
    return static_cast<int>(info_of(self).inputs[i]);
  };
  op.input_count = [](const CustomOp* self) { return info_of(self).inputs.size(); };
  op.output_type = [](const CustomOp* self, size_t i) {
    return static_cast<int>(info_of(self).outputs[i]);
  };
  op.output_count = [](const CustomOp* self) { return info_of(self).outputs.size(); };
  op.destroy = destroy;
  op.input_characteristic = [](const CustomOp*, size_t) { return 0; };   // required
  op.output_characteristic = [](const CustomOp*, size_t) { return 0; };
  op.input_memory = [](const CustomOp*, size_t) { return 0; };           // the default
  op.create_v2 = create;
  op.compute_v2 = compute;
  op.start_version = [](const CustomOp*) { return 1; };
  op.end_version = [](const CustomOp*) { return 1; };
  return op;
}

// All ops and their domains, made once: they must outlive every session.
struct Library {
  std::deque<RegisteredOp> ops;
  std::deque<ort::Domain*> domains;
};

Status* fill_domain(const Api* api, const char* name, Library& library) {
  ort::Domain* domain = nullptr;
  using Create = Status* (*)(const char*, ort::Domain**);
  Status* status = ort::function<Create>(api, Place::kCreateDomain)(name, &domain);
  using AddOp = Status* (*)(ort::Domain*, const CustomOp*);
  for (RegisteredOp& op : library.ops) {
    if (status == nullptr && std::string(op.info.domain) == name) {
      status = ort::function<AddOp>(api, Place::kAddOp)(domain, &op.interface);
    }
  }
  if (status == nullptr) library.domains.push_back(domain);
  return status;
}

Status* fill_library(const Api* api, Library& library) {
  if (!library.domains.empty()) return nullptr;
  library.ops.clear();
  for (const OpInfo& info : all_ops()) library.ops.push_back({interface_of(), info});
  Status* status = fill_domain(api, "kimivl", library);
  return status == nullptr ? fill_domain(api, "kimivl.cpu", library) : status;
}

}  // namespace

const std::vector<OpInfo>& all_ops() {
  static const std::vector<OpInfo> ops{block_linear_op(), block_experts_op(), router_op(),
                                       cached_attention_op()};
  return ops;
}

}  // namespace kimivl

extern "C" __attribute__((visibility("default"))) kimivl::ort::Status* RegisterCustomOps(
    kimivl::ort::SessionOptions* options, const kimivl::ort::ApiBase* base) {
  using namespace kimivl;
  static Library library;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const ort::Api* api = base->get_api(ort::kApiVersion);
  ort::Status* status = fill_library(api, library);
  using AddDomain = ort::Status* (*)(ort::SessionOptions*, ort::Domain*);
  const auto add = ort::function<AddDomain>(api, ort::Place::kAddDomain);
  for (ort::Domain* domain : library.domains) {
    if (status == nullptr) status = add(options, domain);
  }
  return status;
}
