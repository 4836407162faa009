// out[i] = 1 / (1 + exp(-z[i])). One exponential and one division a class.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct SigmoidEpilogue : Map<Real, Empty> {
  static constexpr bool kAccumulates = false;
  using Map<Real, Empty>::Map;
  __device__ void add(const Logits<Real>&) {}
  __device__ void write(const Logits<Real>& logits, const Empty&) const {
    this->write_each(logits, [](Real z) { return 1 / (1 + exp_of(-z)); });
  }
};

}  // namespace fixclf::cuda
