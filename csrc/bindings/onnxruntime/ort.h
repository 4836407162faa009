// ONNX Runtime's C ABI as a kernel sees it: views that throw instead of returning a status.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/onnxruntime/ort_abi.h"
#include "core/parallel.h"
#include "core/types.h"

namespace fixclf::ort {

// A fault of the model or of its inputs, in one sentence that names the argument.
struct InvalidArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(const Status& status) {
  if (!status.ok()) throw InvalidArgument(status.message());
}

inline void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

// Runs f; nothing that it throws crosses the ABI. `where` names the operator, if the message has
// to.
template <class F>
OrtStatus* guarded(const OrtApi& api, const char* where, F&& f) noexcept {
  const auto status = [&](OrtErrorCode code, const std::exception& error) {
    const std::string message = where == nullptr ? "" : std::string(where) + ": ";
    return api.CreateStatus(code, (message + error.what()).c_str());
  };
  try {
    try {
      f();
      return nullptr;
    } catch (const InvalidArgument& error) {
      return status(ORT_INVALID_ARGUMENT, error);
    } catch (const std::exception& error) {
      return status(ORT_FAIL, error);
    }
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "out of memory");
  }
}

using Dimensions = std::vector<int64_t>;

inline Dimensions dimensions_of(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(api, api.GetDimensionsCount(info, &rank));
  Dimensions dimensions(rank);
  check(api, api.GetDimensions(info, dimensions.data(), rank));
  return dimensions;
}

// [..., columns] as rows.
struct RowShape {
  int64_t rows, columns;
};
inline RowShape rows_of(const Dimensions& x) {
  if (x.empty()) throw InvalidArgument("X has no dimensions, expected [..., features]");
  RowShape shape{1, x.back()};
  for (size_t i = 0; i + 1 < x.size(); ++i) shape.rows *= x[i];
  return shape;
}

// A borrowed tensor, or none.
class Tensor {
 public:
  Tensor(const OrtApi& api, const OrtValue* value) : api_(&api), value_(value) {}

  explicit operator bool() const { return value_ != nullptr; }

  Dimensions dimensions() const { return dimensions_of(*api_, type_and_shape().get()); }

  ONNXTensorElementDataType element_type() const {
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    check(*api_, api_->GetTensorElementType(type_and_shape().get(), &type));
    return type;
  }

  template <class T>
  const T* data() const {
    void* data = nullptr;
    if (value_ != nullptr)
      check(*api_, api_->GetTensorMutableData(const_cast<OrtValue*>(value_), &data));
    return static_cast<const T*>(data);
  }

 private:
  using Info = std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)>;

  Info type_and_shape() const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(*api_, api_->GetTensorTypeAndShape(value_, &info));
    return {info, api_->ReleaseTensorTypeAndShapeInfo};
  }

  const OrtApi* api_;
  const OrtValue* value_;
};

// What is known of a node when its kernel is made.
class KernelInfo {
 public:
  KernelInfo(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  int64_t integer(const char* name) const {
    int64_t value = 0;
    if (OrtStatus* status = api_.KernelInfoGetAttribute_int64(info_, name, &value)) {
      api_.ReleaseStatus(status);
      throw InvalidArgument(std::string("the attribute ") + name + " is missing or no integer");
    }
    return value;
  }

  float number(const char* name) const {
    float value = 0;
    if (OrtStatus* status = api_.KernelInfoGetAttribute_float(info_, name, &value)) {
      api_.ReleaseStatus(status);
      throw InvalidArgument(std::string("the attribute ") + name + " is missing or no number");
    }
    return value;
  }

  bool has_input(size_t index) const {
    size_t count = 0, size = 0;
    check(api_, api_.KernelInfo_GetInputCount(info_, &count));
    if (index >= count) return false;
    check(api_, api_.KernelInfo_GetInputName(info_, index, nullptr, &size));
    return size > 1;  // more than the terminating zero
  }

  // None unless the input is an initializer that no run can replace.
  Tensor constant(size_t index) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    return {api_, is_constant ? value : nullptr};
  }

  // The last dimension of an input, -1 where the model leaves it open.
  int64_t last_dimension(size_t index) const {
    OrtTypeInfo* type = nullptr;
    check(api_, api_.KernelInfo_GetInputTypeInfo(info_, index, &type));
    const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> owner(type, api_.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_, api_.CastTypeInfoToTensorInfo(type, &info));
    const Dimensions dimensions = dimensions_of(api_, info);
    return dimensions.empty() ? -1 : dimensions.back();  // an unknown rank looks like rank 0
  }

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

// One run of a node.
class KernelContext {
 public:
  KernelContext(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const {
    const OrtValue* value = nullptr;
    check(api_, api_.KernelContext_GetInput(context_, index, &value));
    return {api_, value};
  }

  template <class T>
  T* output(size_t index, const Dimensions& dimensions) const {
    OrtValue* value = nullptr;
    void* data = nullptr;
    check(api_, api_.KernelContext_GetOutput(context_, index, dimensions.data(), dimensions.size(),
                                             &value));
    check(api_, api_.GetTensorMutableData(value, &data));
    return static_cast<T*>(data);
  }

  // The session's intra-op threads. The kernels' bodies don't throw.
  Parallel threads() { return {run, this}; }

 private:
  static void run(void* self, int64_t count, int64_t grain, Parallel::Body body, void* body_state) {
    const auto& context = *static_cast<KernelContext*>(self);
    struct Job {
      int64_t count, parts;
      Parallel::Body body;
      void* state;
    } job{count, count / grain, body, body_state};
    const auto run_part = [](void* state, size_t index) {
      const Job& job = *static_cast<Job*>(state);
      const auto part = static_cast<int64_t>(index);
      job.body(job.state, job.count * part / job.parts, job.count * (part + 1) / job.parts);
    };
    check(context.api_, context.api_.KernelContext_ParallelFor(
                            context.context_, run_part, static_cast<size_t>(job.parts), 0, &job));
  }

  const OrtApi& api_;
  OrtKernelContext* context_;
};

// Shape inference: the dimensions of input 0 and what follows from them.
class ShapeContext {
 public:
  ShapeContext(const OrtApi& api, OrtShapeInferContext* context) : api_(api), context_(context) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_, api_.ShapeInferContext_GetInputTypeShape(context_, 0, &info));
    check(api_, api_.GetTensorElementType(info, &element_type_));
    for (const int64_t size : dimensions_of(api_, info)) dimensions_.push_back({size, ""});
    std::vector<const char*> names(dimensions_.size());
    check(api_, api_.GetSymbolicDimensions(info, names.data(), names.size()));
    for (size_t i = 0; i < names.size(); ++i) dimensions_[i].name = names[i];
    // An output needs a name for what has neither size nor name. Equal names mean equal sizes to
    // the memory planner, so none is used twice.
    static std::atomic<int64_t> unknown{0};
    for (Dimension& dimension : dimensions_)
      if (dimension.size < 0 && dimension.name.empty())
        dimension.name = "fixclf_unknown_" + std::to_string(unknown++);
  }

  struct Dimension {
    int64_t size;
    std::string name;
  };
  using Shape = std::vector<Dimension>;

  // Empty where the rank is unknown.
  const Shape& input() const { return dimensions_; }
  ONNXTensorElementDataType element_type() const { return element_type_; }

  int64_t integer(const char* name) const {
    const OrtOpAttr* attribute = nullptr;
    int64_t value = 0;
    size_t read = 0;
    check(api_, api_.ShapeInferContext_GetAttribute(context_, name, &attribute));
    check(api_, api_.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof(value), &read));
    return value;
  }

  void set_output(size_t index, ONNXTensorElementDataType type, const Shape& shape) const {
    Dimensions sizes;
    std::vector<const char*> names;
    for (const Dimension& dimension : shape) {
      sizes.push_back(dimension.size);
      names.push_back(dimension.name.c_str());
    }
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_, api_.CreateTensorTypeAndShapeInfo(&info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
        info, api_.ReleaseTensorTypeAndShapeInfo);
    check(api_, api_.SetTensorElementType(info, type));
    check(api_, api_.SetDimensions(info, sizes.data(), sizes.size()));
    check(api_, api_.SetSymbolicDimensions(info, names.data(), names.size()));
    check(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, index, info));
  }

 private:
  const OrtApi& api_;
  OrtShapeInferContext* context_;
  ONNXTensorElementDataType element_type_;
  Shape dimensions_;
};

}  // namespace fixclf::ort
