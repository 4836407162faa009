#include "cuda/head_launch.h"

namespace fixclf::cuda {

Status head_double(const HeadProblem& p, const void* alpha, const Workspace& workspace,
                   cudaStream_t stream) {
  return run_head<double>(p, alpha, workspace, stream);
}

}  // namespace fixclf::cuda
