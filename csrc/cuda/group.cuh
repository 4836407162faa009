// The threads that share one row. A CTA holds `groups` of them, each of a power of two of threads;
// all groups of a CTA take the same way through the code, so that its barriers are theirs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace fixclf::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Any value of whole words, from the lane whose number differs in the bits of `offset`.
template <class Value>
__device__ inline Value exchanged(const Value& value, int offset) {
  static_assert(sizeof(Value) % 4 == 0, "whole words");
  constexpr int kWords = sizeof(Value) / 4;
  uint32_t words[kWords];
  memcpy(words, &value, sizeof value);
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_xor_sync(kWholeWarp, words[i], offset);
  Value other;
  memcpy(&other, words, sizeof other);
  return other;
}

class Group {
 public:
  // What reduce() joins is not larger than this.
  static constexpr int kLargestState = 48;
  // Shared memory of a CTA for reduce().
  static __host__ __device__ int64_t scratch_bytes(int cta_threads) {
    return cta_threads / kWarp * kLargestState;
  }

  // `scratch`: scratch_bytes() of shared memory, 16-byte aligned.
  __device__ Group(int threads, char* scratch)
      : threads_(threads),
        index_(static_cast<int>(threadIdx.x) / threads),
        rank_(static_cast<int>(threadIdx.x) & (threads - 1)),
        scratch_(scratch) {}

  __device__ int threads() const { return threads_; }
  __device__ int index() const { return index_; }
  __device__ int rank() const { return rank_; }

  __device__ void sync() const {
    if (threads_ <= kWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // Whether the condition holds for a thread of this group or of one that shares its barrier.
  __device__ bool any(bool condition) const {
    if (threads_ <= kWarp) return __any_sync(kWholeWarp, condition) != 0;
    return __syncthreads_or(condition) != 0;
  }

  // All threads' values joined by join(earlier, later), in an order that the number of threads
  // determines; the same bits in every thread.
  template <class Value, class Join>
  __device__ Value reduce(Value value, Join join) const {
    static_assert(sizeof(Value) <= kLargestState, "reduce() has no room for it");
    const int lanes = threads_ < kWarp ? threads_ : kWarp;
    for (int offset = 1; offset < lanes; offset *= 2) {
      const Value other = exchanged(value, offset);
      value = (rank_ & offset) != 0 ? join(other, value) : join(value, other);
    }
    if (threads_ <= kWarp) return value;
    const int warps = threads_ / kWarp;
    const auto at = [&](int warp) {
      return reinterpret_cast<Value*>(scratch_ + (index_ * warps + warp) * kLargestState);
    };
    if (rank_ % kWarp == 0) *at(rank_ / kWarp) = value;
    __syncthreads();
    value = *at(0);
    for (int warp = 1; warp < warps; ++warp) value = join(value, *at(warp));
    __syncthreads();
    return value;
  }

 private:
  int threads_, index_, rank_;
  char* scratch_;
};

}  // namespace fixclf::cuda
