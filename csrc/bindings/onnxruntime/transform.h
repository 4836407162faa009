// HadamardTransform: Y = scale H X along the last dimension, a power of two.
#pragma once

#include "bindings/onnxruntime/op.h"

namespace fixclf::ort {

class HadamardTransform {
 public:
  static constexpr const char* kName = "HadamardTransform";
  static constexpr Parameter kInputs[] = {{ElementType::kX}};
  static constexpr Parameter kOutputs[] = {{ElementType::kX}};

  HadamardTransform(const KernelInfo& info, DType x);
  void compute(KernelContext& context) const;
  static void infer_shapes(const ShapeContext& shapes);

 private:
  DType dtype_;
  double scale_;
};

}  // namespace fixclf::ort
