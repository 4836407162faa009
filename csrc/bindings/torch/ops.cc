// The operators' schemas, and their implementation on the CPU.
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

#define FIXCLF_HEAD                                                                          \
  "Tensor x, Tensor alpha, Tensor? bias, Tensor? base, Tensor? signs, int[] geometry, bool " \
  "normalize"

STABLE_TORCH_LIBRARY(fixclf, m) {
  m.def("hadamard_transform(Tensor x, float scale=1.0) -> Tensor");
  m.def("head(" FIXCLF_HEAD ", int epilogue, ScalarType? dtype=None) -> Tensor");
  m.def("head_topk(" FIXCLF_HEAD
        ", int k, bool log_probabilities=False, Tensor? allowed=None) -> (Tensor, Tensor, Tensor)");
  m.def("head_argmax(" FIXCLF_HEAD ", Tensor? allowed=None) -> Tensor");
  m.def("head_sample(" FIXCLF_HEAD ", Tensor seeds, Tensor? allowed=None) -> Tensor");
  m.def("head_log_prob(" FIXCLF_HEAD ", Tensor ids, Tensor? allowed=None) -> (Tensor, Tensor, Tensor)");
  m.def("head_nll(" FIXCLF_HEAD
        ", Tensor target, int ignore_index=-100, float label_smoothing=0.0) -> (Tensor, Tensor)");
  m.def(
      "head_reduction_backward(Tensor softmax_grad, Tensor ids_grad, Tensor? uniform_grad, "
      "Tensor logsumexp, " FIXCLF_HEAD ", Tensor ids, Tensor? allowed=None) -> (Tensor, Tensor)");
  m.def("project_adjoint(Tensor g, Tensor? base, Tensor? signs, int[] geometry) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fixclf, CPU, m) { Operators<Cpu>::implement(m); }
