// out[i] = exp(z[i] - m) / sum_j exp(z[j] - m), m = max z; the sum in double over sums of 32 in
// Real. Two exponentials a class.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct SoftmaxEpilogue : Map<Real, LogSumExp<Real>> {
  using Map<Real, LogSumExp<Real>>::Map;
  __device__ void add(const Logits<Real>& logits) { this->state.add(logits, logits.top()); }
  __device__ void write(const Logits<Real>& logits, const LogSumExp<Real>& total) const {
    const Real inverse = static_cast<Real>(1 / total.sum), shift = total.max;
    this->write_each(logits, [&](Real z) { return exp_of(z - shift) * inverse; });
  }
};

}  // namespace fixclf::cuda
