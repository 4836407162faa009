// index ~ softmax(z) by Gumbel-max: argmax z_i - log E_i, E_i = -log(1 - U_i), U_i a hash of the
// row's seed and i. Hash and arithmetic are those of cpu/epilogues/sample-inl.h, step by step, so
// that both devices draw the same class. One hash of 6 multiplications and two logarithms a class.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct SampleEpilogue : Reduction<Real, Best<Real>> {
  uint32_t key[2];

  __device__ SampleEpilogue(const HeadArguments& a, int64_t row, const Group& group, char* area)
      : Reduction<Real, Best<Real>>(a, row, group, area) {
    uint64_t x = static_cast<uint64_t>(a.p.ids[row]) + 0x9e3779b97f4a7c15;  // splitmix64
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    x ^= x >> 31;
    key[0] = static_cast<uint32_t>(x);
    key[1] = static_cast<uint32_t>(x >> 32);
  }

  __device__ static uint32_t mixed(uint32_t x) {  // triple32
    x ^= x >> 17;
    x *= 0xed5ad4bb;
    x ^= x >> 11;
    x *= 0xac4c1b51;
    x ^= x >> 15;
    x *= 0x31848bab;
    return x ^ x >> 14;
  }
  __device__ Real gumbel(int id) const {
    const uint32_t hash = mixed(mixed(static_cast<uint32_t>(id) ^ key[0]) + key[1]);
    const Real u = (static_cast<Real>(static_cast<int32_t>(hash >> 1)) + static_cast<Real>(0.5)) *
                   static_cast<Real>(0x1p-31);
    // -log(1 - u) without cancellation: the rounding of 1 - u is divided out (Kahan).
    const Real rest = min_of(1 - u, static_cast<Real>(1 - 0x1p-24));
    const Real exponential = log_of(rest) * u / (rest - 1);
    return -log_of(max_of(static_cast<Real>(0x1p-34), exponential));
  }

  __device__ void add(const Logits<Real>& logits) {
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if ((logits.live >> e & 1) != 0)
        this->state.offer(logits.z[e] + gumbel(logits.id(e)), logits.id(e));
  }
  __device__ void finish(const Best<Real>& best, bool valid, bool active) {
    if (active && this->group.rank() == 0) this->a.p.indices[this->row] = valid ? best.index() : 0;
  }
};

}  // namespace fixclf::cuda
