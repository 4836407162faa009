// The part of ONNX Runtime's C ABI that a custom operator library needs, at API version 17.
//
// The Python package ships no C header, and the ABI only ever grows at its end, so that this
// declaration holds for ONNX Runtime 1.17 and everything after it. Provenance: the order of the
// members of OrtApi, OrtCustomOp and their types are those of
// include/onnxruntime/core/session/onnxruntime_c_api.h of ONNX Runtime 1.17 (MIT licence),
// confirmed by running one binary on the releases that `make test-ort-matrix` lists. Slots that
// this library doesn't call are gaps; the assertions below pin the others.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtCustomOpDomain;

constexpr uint32_t kOrtApiVersion = 17;

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2, ORT_NOT_IMPLEMENTED = 9 };
enum OrtOpAttrType { ORT_OP_ATTR_INT = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum OrtCustomOpInputOutputCharacteristic { INPUT_OUTPUT_REQUIRED = 0, INPUT_OUTPUT_OPTIONAL = 1 };

// Values of onnx.TensorProto.DataType.
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,  // of an operator's input: any type
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE = 11,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

struct OrtCustomOp;

// A returned OrtStatus is null for success, and otherwise the caller's to release.
struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode, const char* message);
  void* gap_1[1];
  const char* (*GetErrorMessage)(const OrtStatus*);
  void* gap_3[23];
  OrtStatus* (*CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain**);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain*, const OrtCustomOp*);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions*, OrtCustomOpDomain*);
  void* gap_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
  void* gap_52[3];
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**);
  void* gap_56[1];
  OrtStatus* (*CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo**);
  OrtStatus* (*SetTensorElementType)(OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType);
  OrtStatus* (*SetDimensions)(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t count);
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t count);
  OrtStatus* (*GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo*, const char**, size_t count);
  void* gap_64[1];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);
  void* gap_66[19];
  OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo*, const char* name, float*);
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo*, const char* name, int64_t*);
  void* gap_87[3];
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext*, size_t index, const OrtValue**);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext*, size_t index, const int64_t* dimensions,
                                        size_t count, OrtValue**);
  void* gap_92[1];
  void (*ReleaseStatus)(OrtStatus*);
  void* gap_94[4];
  void (*ReleaseTypeInfo)(OrtTypeInfo*);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);
  void* gap_100[1];
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain*);
  void* gap_102[128];
  OrtStatus* (*KernelInfo_GetInputCount)(const OrtKernelInfo*, size_t*);
  void* gap_231[1];
  OrtStatus* (*KernelInfo_GetInputName)(const OrtKernelInfo*, size_t index, char*, size_t* size);
  void* gap_233[1];
  OrtStatus* (*KernelInfo_GetInputTypeInfo)(const OrtKernelInfo*, size_t index, OrtTypeInfo**);
  void* gap_235[14];
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo*, size_t index,
                                                  int* is_constant, const OrtValue**);
  void* gap_250[18];
  // The result is borrowed.
  OrtStatus* (*ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext*, size_t index,
                                                    OrtTensorTypeAndShapeInfo**);
  OrtStatus* (*ShapeInferContext_GetAttribute)(const OrtShapeInferContext*, const char* name,
                                               const OrtOpAttr**);
  OrtStatus* (*ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext*, size_t index,
                                                     const OrtTensorTypeAndShapeInfo*);
  OrtStatus* (*SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo*, const char**, size_t count);
  OrtStatus* (*ReadOpAttr)(const OrtOpAttr*, OrtOpAttrType, void* data, size_t bytes, size_t* read);
  void* gap_273[1];
  // Calls body(state, i) for each i in [0, total).
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext*, void (*body)(void*, size_t),
                                          size_t total, size_t batches, void* state);
};

#define FIXCLF_ORT_SLOT(index, name) static_assert(offsetof(OrtApi, name) == index * sizeof(void*))
FIXCLF_ORT_SLOT(2, GetErrorMessage);
FIXCLF_ORT_SLOT(26, CreateCustomOpDomain);
FIXCLF_ORT_SLOT(28, AddCustomOpDomain);
FIXCLF_ORT_SLOT(51, GetTensorMutableData);
FIXCLF_ORT_SLOT(55, CastTypeInfoToTensorInfo);
FIXCLF_ORT_SLOT(57, CreateTensorTypeAndShapeInfo);
FIXCLF_ORT_SLOT(63, GetSymbolicDimensions);
FIXCLF_ORT_SLOT(65, GetTensorTypeAndShape);
FIXCLF_ORT_SLOT(85, KernelInfoGetAttribute_float);
FIXCLF_ORT_SLOT(90, KernelContext_GetInput);
FIXCLF_ORT_SLOT(93, ReleaseStatus);
FIXCLF_ORT_SLOT(98, ReleaseTypeInfo);
FIXCLF_ORT_SLOT(99, ReleaseTensorTypeAndShapeInfo);
FIXCLF_ORT_SLOT(101, ReleaseCustomOpDomain);
FIXCLF_ORT_SLOT(230, KernelInfo_GetInputCount);
FIXCLF_ORT_SLOT(232, KernelInfo_GetInputName);
FIXCLF_ORT_SLOT(234, KernelInfo_GetInputTypeInfo);
FIXCLF_ORT_SLOT(249, KernelInfoGetConstantInput_tensor);
FIXCLF_ORT_SLOT(268, ShapeInferContext_GetInputTypeShape);
FIXCLF_ORT_SLOT(272, ReadOpAttr);
FIXCLF_ORT_SLOT(274, KernelContext_ParallelFor);
#undef FIXCLF_ORT_SLOT

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null when the runtime is older than that
  const char* (*GetVersionString)();
};

// One operator for one execution provider and one combination of element types.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  // These two replace CreateKernel and KernelCompute where they are set.
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};

}  // extern "C"
