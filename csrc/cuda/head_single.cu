#include "cuda/head_launch.h"

namespace fixclf::cuda {

Status head_single(const HeadProblem& p, const void* alpha, const Workspace& workspace,
                   cudaStream_t stream) {
  return run_head<float>(p, alpha, workspace, stream);
}

Status head(const HeadProblem& p, const void* alpha, const Workspace& workspace,
            cudaStream_t stream) {
  HeadProblem checked = p;
  checked.alpha = 0;
  if (Status status = validate_shapes(checked); !status.ok()) return status;
  if (Status status = check_order(p.codebook); !status.ok()) return status;
  if (p.x.rows == 0) return {};
  return p.x.dtype == DType::kFloat64 ? head_double(checked, alpha, workspace, stream)
                                      : head_single(checked, alpha, workspace, stream);
}

}  // namespace fixclf::cuda
