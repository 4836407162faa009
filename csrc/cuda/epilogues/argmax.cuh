// index = argmax z, the lowest class on ties. One comparison and two selections a class.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct ArgMaxEpilogue : Reduction<Real, Best<Real>> {
  using Reduction<Real, Best<Real>>::Reduction;
  __device__ void add(const Logits<Real>& logits) {
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if ((logits.live >> e & 1) != 0) this->state.offer(logits.z[e], logits.id(e));
  }
  __device__ void finish(const Best<Real>& best, bool valid, bool active) {
    if (active && this->group.rank() == 0) this->a.p.indices[this->row] = valid ? best.index() : 0;
  }
};

}  // namespace fixclf::cuda
