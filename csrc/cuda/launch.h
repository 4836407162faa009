// How a kernel is started, and how many threads and how much shared memory it gets.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "cuda/block.cuh"
#include "cuda/cuda.h"

namespace fixclf::cuda {

inline Status status_of(cudaError_t error) {
  if (error == cudaSuccess) return {};
  return Status::error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Starts kernel(arguments) on the stream; more than 48 KiB of shared memory are asked for first.
template <class Arguments>
Status launch(void (*kernel)(Arguments), dim3 grid, int threads, int64_t shared_bytes,
              cudaStream_t stream, const Arguments& arguments) {
  constexpr int64_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    int device = 0, most = 0;
    if (Status status = status_of(cudaGetDevice(&device)); !status.ok()) return status;
    const cudaError_t error =
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (Status status = status_of(error); !status.ok()) return status;
    if (shared_bytes > most)
      return Status::error("a row needs " + std::to_string(shared_bytes) +
                           " bytes of shared memory, but this device has " + std::to_string(most) +
                           "; expected a smaller order or k, or float32 features");
    const cudaError_t set = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (Status status = status_of(set); !status.ok()) return status;
  }
  Arguments copy = arguments;
  void* values[] = {&copy};
  return status_of(cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), values,
                                    static_cast<size_t>(shared_bytes), stream));
}

// Threads of a CTA for `rows` rows of `threads` threads each: whole warps, no more rows than there
// are.
inline int cta_threads(int threads, int64_t rows) {
  const int64_t all = std::min<int64_t>(rows, std::max(1, kCtaThreads / threads)) * threads;
  return static_cast<int>((all + kWarp - 1) / kWarp * kWarp);
}
inline unsigned ctas(int64_t rows, int cta, int threads) {
  const int64_t rows_per_cta = cta / threads;
  return static_cast<unsigned>((rows + rows_per_cta - 1) / rows_per_cta);
}

// Rows that may be computed at once with this much workspace each; at least one.
constexpr int64_t kWorkspaceBytes = 16 << 20;
inline int64_t rows_at_once(int64_t bytes_per_row, int64_t rows) {
  return std::min(rows,
                  std::max<int64_t>(1, kWorkspaceBytes / std::max<int64_t>(1, bytes_per_row)));
}

inline Status out_of_memory(int64_t bytes) {
  return Status::error("out of memory for " + std::to_string(bytes) + " bytes of workspace");
}

inline Status check_order(const Codebook& cb) {
  if (cb.order() <= int64_t{1} << kMaxOrderLog2) return {};
  return Status::error("the order base_order * 2^log2 is " + std::to_string(cb.order()) +
                       ", expected at most " + std::to_string(1 << kMaxOrderLog2) + " on CUDA");
}

}  // namespace fixclf::cuda
