// The CUDA backend: validates, then starts kernels on a stream. Nothing waits for the device and
// nothing is allocated but through `Workspace`, so every call can be captured in a CUDA graph.
//
// Pointers of the problems are device pointers, alpha included: the problems' own alpha, a value of
// the host, is not read. Values that lie on the device can't be checked without waiting for it: an
// id or target outside of the classes gives NaN, as does an alpha that is not finite; a mask that
// allows no class gives logsumexp -inf and the lowest classes.
//
// Results of a row depend on that row alone, bitwise: how it is cut depends on the codebook and k.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.h"

namespace fixclf::cuda {

// Device memory for the duration of one call's kernels; called at most once a call, for at most
// 16 MiB or one row's partial results. Null: out of memory.
struct Workspace {
  void* (*allocate)(void* state, int64_t bytes) = nullptr;
  void* state = nullptr;
};

Status transform(const TransformProblem& problem, cudaStream_t stream);
Status head(const HeadProblem& problem, const void* alpha, const Workspace& workspace,
            cudaStream_t stream);
Status reduction_backward(const ReductionBackwardProblem& problem, const void* alpha,
                          const Workspace& workspace, cudaStream_t stream);
Status adjoint(const AdjointProblem& problem, const Workspace& workspace, cudaStream_t stream);

}  // namespace fixclf::cuda
