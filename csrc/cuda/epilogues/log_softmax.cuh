// out[i] = z[i] - logsumexp(z). One exponential a class.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct LogSoftmaxEpilogue : Map<Real, LogSumExp<Real>> {
  using Map<Real, LogSumExp<Real>>::Map;
  __device__ void add(const Logits<Real>& logits) { this->state.add(logits, logits.top()); }
  __device__ void write(const Logits<Real>& logits, const LogSumExp<Real>& total) const {
    const Real max = total.max, log_of_sum = static_cast<Real>(log(total.sum));
    this->write_each(logits, [&](Real z) { return (z - max) - log_of_sum; });
  }
};

}  // namespace fixclf::cuda
