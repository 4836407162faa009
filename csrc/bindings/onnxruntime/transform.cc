#include "bindings/onnxruntime/transform.h"

#include "cpu/cpu.h"

namespace fixclf::ort {

HadamardTransform::HadamardTransform(const KernelInfo& info, DType x)
    : dtype_(x), scale_(info.number("scale")) {
  const int64_t n = info.last_dimension(0);
  if (n >= 0)
    check(validate(TransformProblem{{nullptr, x, 0, n, n}, {nullptr, x, 0, n, n}, scale_}));
}

void HadamardTransform::compute(KernelContext& context) const {
  const Tensor x = context.input(0);
  const Dimensions dimensions = x.dimensions();
  const RowShape shape = rows_of(dimensions);
  void* y = context.output<void>(0, dimensions);
  const TransformProblem problem{{x.data<void>(), dtype_, shape.rows, shape.columns, shape.columns},
                                 {y, dtype_, shape.rows, shape.columns, shape.columns},
                                 scale_};
  check(cpu::transform(problem, context.threads()));
}

void HadamardTransform::infer_shapes(const ShapeContext& shapes) {
  shapes.set_output(0, shapes.element_type(), shapes.input());
}

}  // namespace fixclf::ort
