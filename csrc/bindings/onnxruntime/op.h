// A kernel class as an OrtCustomOp. Such a class has
//   static constexpr const char* kName;
//   static constexpr Parameter kInputs[], kOutputs[];
//   Kernel(const KernelInfo&, DType x);           validates all that the model fixes
//   void compute(KernelContext&) const;           called by several threads at once
//   static void infer_shapes(const ShapeContext&);
#pragma once

#include <iterator>

#include "bindings/onnxruntime/ort.h"

namespace fixclf::ort {

enum class ElementType {
  kX,       // of the features
  kY,       // of the features, float32 for int8
  kFloats,  // any float type: tools that convert a model to 16 bits convert such inputs with it
  kFloat32,
  kUint8,
  kInt64
};

struct Parameter {
  ElementType type;
  OrtCustomOpInputOutputCharacteristic characteristic = INPUT_OUTPUT_REQUIRED;
};

// int8 features have float32 results.
inline DType output_dtype(DType x) {
  return x == DType::kFloat16 || x == DType::kBFloat16 ? x : DType::kFloat32;
}

inline ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::kInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

inline ONNXTensorElementDataType element_type(ElementType type, DType x) {
  switch (type) {
    case ElementType::kX:
      return element_type(x);
    case ElementType::kY:
      return element_type(output_dtype(x));
    case ElementType::kFloats:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // the kernel looks itself
    case ElementType::kUint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case ElementType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

// Kernel for one dtype of the features on one execution provider.
template <class Kernel>
struct Op : OrtCustomOp {
  const char* provider;
  DType x;
  const OrtApi* api = nullptr;  // set by prepare

  Op(const char* provider, DType x) : OrtCustomOp{}, provider(provider), x(x) {
    version = kOrtApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op).provider; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kInputs); };
    GetInputType = [](const OrtCustomOp* op, size_t i) {
      return element_type(Kernel::kInputs[i].type, self(op).x);
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return Kernel::kInputs[i].characteristic;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kOutputs); };
    GetOutputType = [](const OrtCustomOp* op, size_t i) {
      return element_type(Kernel::kOutputs[i].type, self(op).x);
    };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return Kernel::kOutputs[i].characteristic;
    };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

  // Before it is registered.
  void prepare(const OrtApi& runtime, bool with_shape_inference) {
    api = &runtime;
    InferOutputShapeFn = with_shape_inference ? infer_shapes : nullptr;
  }

 private:
  struct Instance {
    const OrtApi& api;
    Kernel kernel;
  };

  static const Op& self(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

  static OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                           void** kernel) {
    // ONNX Runtime itself doesn't say which operator it was.
    return guarded(*api, Kernel::kName, [&] {
      *kernel = new Instance{*api, Kernel(KernelInfo(*api, info), self(op).x)};
    });
  }

  static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    return guarded(instance.api, nullptr, [&] {
      KernelContext kernel_context(instance.api, context);
      instance.kernel.compute(kernel_context);
    });
  }

  // ONNX Runtime drops the status of this function; whatever is wrong is reported by the kernel.
  static OrtStatus* infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
    const OrtApi& api = *self(op).api;
    OrtStatus* status = guarded(api, nullptr, [&] {
      const ShapeContext shapes(api, context);
      if (!shapes.input().empty()) Kernel::infer_shapes(shapes);
    });
    if (status != nullptr) api.ReleaseStatus(status);
    return nullptr;
  }
};

}  // namespace fixclf::ort
