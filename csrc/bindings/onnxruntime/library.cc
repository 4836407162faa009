// RegisterCustomOps: the entry point that ONNX Runtime looks for in an operator library.
#include <cstdlib>
#include <mutex>

#include "bindings/onnxruntime/head.h"
#include "bindings/onnxruntime/transform.h"

namespace {

using namespace fixclf::ort;
using fixclf::DType;

constexpr const char* kCpu = "CPUExecutionProvider";

// Sessions use the operators until the library is unloaded, hence no destructors.
Op<FixedHead> heads[] = {
    {kCpu, DType::kFloat32},
    {kCpu, DType::kFloat16},
    {kCpu, DType::kBFloat16},
    {kCpu, DType::kInt8},
};
Op<FixedHeadTopK> top_k_heads[] = {
    {kCpu, DType::kFloat32},
    {kCpu, DType::kFloat16},
    {kCpu, DType::kBFloat16},
    {kCpu, DType::kInt8},
};
Op<HadamardTransform> transforms[] = {
    {kCpu, DType::kFloat32},
    {kCpu, DType::kFloat16},
    {kCpu, DType::kBFloat16},
};

// Before 1.24, inferring the shapes of a custom operator whose optional input is absent crashes the
// process (onnxruntime pull request 26199). Element types are inferred without our help.
bool can_infer_shapes(const char* version) {
  char* rest = nullptr;
  const long major = std::strtol(version, &rest, 10);
  const long minor = *rest == '.' ? std::strtol(rest + 1, nullptr, 10) : 0;
  return major > 1 || minor >= 24;
}

// The domain with its operators, made once and shared by all sessions of the process.
class Domain {
 public:
  Domain(const char* name) : name_(name) {}
  ~Domain() {
    if (handle_ != nullptr) api_->ReleaseCustomOpDomain(handle_);
  }

  OrtCustomOpDomain* get(const OrtApi& api, const char* version) {
    const std::lock_guard lock(mutex_);
    if (api_ != nullptr && api_ != &api)
      throw InvalidArgument(
          "another copy of ONNX Runtime in this process uses fixclf_infer's "
          "operator library already, expected one copy in a process");
    if (handle_ == nullptr) {
      OrtCustomOpDomain* handle = nullptr;
      check(api, api.CreateCustomOpDomain(name_, &handle));
      api_ = &api;
      handle_ = handle;
      const bool with_shapes = can_infer_shapes(version);
      for (auto& op : heads) add(&op, with_shapes);
      for (auto& op : top_k_heads) add(&op, with_shapes);
      for (auto& op : transforms) add(&op, with_shapes);
    }
    return handle_;
  }

 private:
  template <class Kernel>
  void add(Op<Kernel>* op, bool with_shapes) {
    op->prepare(*api_, with_shapes);
    check(*api_, api_->CustomOpDomain_Add(handle_, op));
  }

  const char* const name_;
  std::mutex mutex_;
  const OrtApi* api_ = nullptr;
  OrtCustomOpDomain* handle_ = nullptr;
};

// A file holds one function of standard operators for each domain and name. Heads of further shapes
// have theirs, and so their nodes, in the further domains; the operators are the same.
Domain domains[] = {"ai.fixclf",   "ai.fixclf.2", "ai.fixclf.3", "ai.fixclf.4",
                    "ai.fixclf.5", "ai.fixclf.6", "ai.fixclf.7", "ai.fixclf.8"};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kOrtApiVersion);
  if (api == nullptr) {
    const std::string message = std::string("ONNX Runtime is ") + base->GetVersionString() +
                                ", but fixclf_infer's operators need 1.17 or newer";
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  return guarded(*api, nullptr, [&] {
    for (Domain& domain : domains)
      check(*api, api->AddCustomOpDomain(options, domain.get(*api, base->GetVersionString())));
  });
}
