// Defines the operators, and implements them on the CPU.
#include "bindings/torch/operators.h"
#include "cpu/cpu.h"

namespace {

fixclf::Parallel torch_threads() {
  return {[](void*, int64_t count, int64_t grain, fixclf::Parallel::Body body, void* state) {
            torch::stable::parallel_for(
                0, count, grain, [&](int64_t begin, int64_t end) { body(state, begin, end); });
          },
          nullptr};
}

struct Cpu {
  static constexpr const char* kName = "the CPU";
  static bool holds(const Tensor& tensor) { return tensor.is_cpu(); }
  static AtenDevice of(const Tensor&) { return {aoti_torch_device_type_cpu(), 0}; }

  explicit Cpu(const Tensor&) {}
  void set_alpha(fixclf::HeadProblem& p, const Tensor& alpha) {
    p.alpha = alpha.scalar_type() == ScalarType::Double
                  ? *static_cast<const double*>(alpha.const_data_ptr())
                  : *static_cast<const float*>(alpha.const_data_ptr());
  }
  Status transform(const fixclf::TransformProblem& p) {
    return fixclf::cpu::transform(p, torch_threads());
  }
  Status head(const fixclf::HeadProblem& p) { return fixclf::cpu::head(p, torch_threads()); }
  Status adjoint(const fixclf::AdjointProblem& p) {
    return fixclf::cpu::adjoint(p, torch_threads());
  }
  Status reduction_backward(const fixclf::ReductionBackwardProblem& p) {
    return fixclf::cpu::reduction_backward(p, torch_threads());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY(fixclf, m) {
  Operators<Cpu>::each([&](const std::string& name, const std::string& schema, auto) {
    m.def((name + schema).c_str());
  });
}

STABLE_TORCH_LIBRARY_IMPL(fixclf, CPU, m) {
  Operators<Cpu>::each(
      [&](const char* name, const std::string&, auto kernel) { m.impl(name, kernel); });
}
