// The NumPy module's backend replaced by the emulated CUDA kernels, so that the Python case lists
// run over them: cpu/cpu.h with one instruction set, "cuda-emulated".
#include <memory>

#include "cpu/cpu.h"
#include "cpu/thread_pool.h"
#include "cuda/cuda.h"

namespace fixclf::cpu {
namespace {

constexpr const char* kName = "cuda-emulated";

// Freed when the call ends.
struct Memory {
  std::unique_ptr<char[]> bytes;
  cuda::Workspace workspace() {
    return {[](void* self, int64_t size) -> void* {
              auto& memory = static_cast<Memory*>(self)->bytes;
              memory.reset(new char[static_cast<size_t>(size)]);
              return memory.get();
            },
            this};
  }
};

// alpha as the kernels take it, behind a pointer.
struct Alpha {
  double wide;
  float narrow;
  bool exact;
  explicit Alpha(const HeadProblem& p)
      : wide(p.alpha),
        narrow(static_cast<float>(p.alpha)),
        exact(accumulation_dtype(p.x.dtype) == DType::kFloat64) {}
  const void* data() const {
    return exact ? static_cast<const void*>(&wide) : static_cast<const void*>(&narrow);
  }
};

}  // namespace

Status transform(const TransformProblem& p, const Parallel&) { return cuda::transform(p, nullptr); }
Status head(const HeadProblem& p, const Parallel&) {
  if (Status status = validate(p); !status.ok()) return status;
  Memory memory;
  return cuda::head(p, Alpha(p).data(), memory.workspace(), nullptr);
}

std::vector<std::string> compiled_isas() { return {kName}; }
std::vector<std::string> supported_isas() { return {kName}; }
Status active_isa(std::string* name) {
  *name = kName;
  return {};
}
Status set_isa(const std::string& name) {
  return name == kName ? Status() : Status::error("isa is '" + name + "', expected " + kName);
}

}  // namespace fixclf::cpu
