// A host of ONNX Runtime through its C API: what an inference server does, and no more.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/onnxruntime/ort_abi.h"

namespace host {

struct OrtEnv;
struct OrtSession;
struct OrtMemoryInfo;

// Slots of OrtApi that only a host calls.
enum Slot {
  kCreateEnv = 3,
  kCreateSessionFromArray = 8,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24,
  kCreateTensorWithData = 49,
  kCreateCpuMemoryInfo = 69,
  kReleaseEnv = 92,
  kReleaseMemoryInfo = 94,
  kReleaseSession = 95,
  kReleaseValue = 96,
  kReleaseSessionOptions = 100,
  kRegisterCustomOpsLibrary = 228,
};

class Runtime {
 public:
  explicit Runtime(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
    api = base->GetApi(kOrtApiVersion);
    constexpr int kErrorsOnly = 4;  // what is wrong on purpose isn't logged
    call(kCreateEnv, kErrorsOnly, "test", &env_);
    call(kCreateCpuMemoryInfo, /*OrtDeviceAllocator*/ 0, /*OrtMemTypeDefault*/ 0, &memory);
  }
  ~Runtime() {
    release(kReleaseMemoryInfo, memory);
    release(kReleaseEnv, env_);
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  template <class... Arguments>
  void call(Slot slot, Arguments... arguments) const {
    using Function = OrtStatus* (*)(Arguments...);
    OrtStatus* status = reinterpret_cast<const Function*>(api)[slot](arguments...);
    if (status == nullptr) return;
    const std::string message = api->GetErrorMessage(status);
    api->ReleaseStatus(status);
    throw std::runtime_error(message);
  }
  template <class T>
  void release(Slot slot, T* object) const {
    using Function = void (*)(T*);
    reinterpret_cast<const Function*>(api)[slot](object);
  }
  OrtEnv* env() const { return env_; }

  const OrtApi* api;
  OrtMemoryInfo* memory = nullptr;

 private:
  OrtEnv* env_ = nullptr;
};

// A session with the operator library, which it loads and unloads. Throws ONNX Runtime's message.
class Session {
 public:
  Session(const Runtime& runtime, const char* library, const std::string& model, int threads)
      : runtime_(runtime) {
    OrtSessionOptions* created = nullptr;
    runtime.call(kCreateSessionOptions, &created);
    const auto deleter = [&](OrtSessionOptions* o) { runtime.release(kReleaseSessionOptions, o); };
    const std::unique_ptr<OrtSessionOptions, decltype(deleter)> options(created, deleter);
    runtime.call(kSetIntraOpNumThreads, options.get(), threads);
    runtime.call(kRegisterCustomOpsLibrary, options.get(), library);
    runtime.call(kCreateSessionFromArray, runtime.env(), static_cast<const void*>(model.data()),
                 model.size(), static_cast<const OrtSessionOptions*>(options.get()), &session_);
  }
  ~Session() { runtime_.release(kReleaseSession, session_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Y [rows, columns] of X [rows, features].
  std::vector<float> run(std::vector<float> x, int64_t features, int64_t columns) const {
    const int64_t rows = static_cast<int64_t>(x.size()) / features;
    std::vector<float> y(static_cast<size_t>(rows * columns));
    const Value in(runtime_, &x, rows, features), out(runtime_, &y, rows, columns);
    const char *in_name = "X", *out_name = "Y";
    const OrtValue* inputs[] = {in.get()};
    OrtValue* outputs[] = {out.get()};
    const void* no_options = nullptr;
    runtime_.call(kRun, session_, no_options, &in_name, &inputs[0], size_t{1}, &out_name, size_t{1},
                  &outputs[0]);
    return y;
  }

 private:
  class Value {
   public:
    Value(const Runtime& runtime, std::vector<float>* data, int64_t rows, int64_t columns)
        : runtime_(runtime) {
      const int64_t shape[] = {rows, columns};
      runtime.call(kCreateTensorWithData, static_cast<const OrtMemoryInfo*>(runtime.memory),
                   static_cast<void*>(data->data()), data->size() * sizeof(float), &shape[0],
                   size_t{2}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value_);
    }
    ~Value() { runtime_.release(kReleaseValue, value_); }
    Value(const Value&) = delete;
    Value& operator=(const Value&) = delete;
    OrtValue* get() const { return value_; }

   private:
    const Runtime& runtime_;
    OrtValue* value_ = nullptr;
  };

  const Runtime& runtime_;
  OrtSession* session_ = nullptr;
};

}  // namespace host
