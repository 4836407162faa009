// The operators on CUDA, in a library of their own that is loaded only with a CUDA build of torch.
// They run on torch's current stream; workspace comes from torch's caching allocator. Nothing waits
// for the device, so alpha, masks, ids and targets are not looked at (csrc/cuda/cuda.h).
#include <torch/csrc/stable/accelerator.h>

#include "bindings/torch/operators.h"
#include "cuda/cuda.h"

// Declared by torch's own headers only where a CUDA toolkit is assumed.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace {

class Cuda {
 public:
  static constexpr const char* kName = "the CUDA device";
  static bool holds(const Tensor& tensor) { return tensor.is_cuda(); }
  static AtenDevice of(const Tensor& tensor) {
    return {aoti_torch_device_type_cuda(), tensor.get_device()};
  }

  explicit Cuda(const Tensor& x) : device_(of(checked(x))), guard_(device_.index) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(device_.index, reinterpret_cast<void**>(&stream_)));
  }
  void set_alpha(fixclf::HeadProblem&, const Tensor& alpha) { alpha_ = alpha.const_data_ptr(); }

  Status transform(const fixclf::TransformProblem& p) {
    return fixclf::cuda::transform(p, stream_);
  }
  Status head(const fixclf::HeadProblem& p) {
    return fixclf::cuda::head(p, alpha_, workspace(), stream_);
  }
  Status adjoint(const fixclf::AdjointProblem& p) {
    return fixclf::cuda::adjoint(p, workspace(), stream_);
  }
  Status reduction_backward(const fixclf::ReductionBackwardProblem& p) {
    return fixclf::cuda::reduction_backward(p, alpha_, workspace(), stream_);
  }

 private:
  static const Tensor& checked(const Tensor& x) {
    if (!x.is_cuda()) fail("x is not on a CUDA device, but another argument is");
    return x;
  }
  // Bytes of the caching allocator, given back when the call ends: torch reuses them in the order
  // of the stream.
  fixclf::cuda::Workspace workspace() {
    return {[](void* self, int64_t bytes) -> void* {
              auto& cuda = *static_cast<Cuda*>(self);
              const int64_t stride = 1;
              AtenTensorHandle handle;
              TORCH_ERROR_CODE_CHECK(
                  aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(),
                                           cuda.device_.type, cuda.device_.index, &handle));
              cuda.memory_ = Tensor(handle);
              return cuda.memory_->mutable_data_ptr();
            },
            this};
  }

  AtenDevice device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  const void* alpha_ = nullptr;
  std::optional<Tensor> memory_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fixclf, CUDA, m) {
  Operators<Cuda>::each(
      [&](const char* name, const std::string&, auto kernel) { m.impl(name, kernel); });
}
