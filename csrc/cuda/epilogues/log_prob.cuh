// logits[j] = z[ids[j]], out[j] = z[ids[j]] - logsumexp(z); NaN for an id outside of the classes.
// One exponential a class; one comparison an id and 32 classes.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct LogProbEpilogue : Reduction<Real, LogSumExp<Real>> {
  using Reduction<Real, LogSumExp<Real>>::Reduction;

  __device__ const int64_t* ids() const {
    return this->a.p.ids + this->row * this->a.p.ids_per_row;
  }
  __device__ Real* logits_out() const {
    return static_cast<Real*>(this->a.p.logits) + this->row * this->a.p.ids_per_row;
  }

  __device__ void add(const Logits<Real>& logits) {
    this->state.add(logits, logits.top());
    for (int64_t j = 0; j < this->a.p.ids_per_row; ++j) {
      const int64_t steps = ids()[j] - logits.first;
      if (steps < 0 || steps >> logits.shift >= kItem) continue;
      if ((steps & ((1 << logits.shift) - 1)) != 0) continue;
#pragma unroll
      for (int e = 0; e < kItem; ++e)
        if (steps >> logits.shift == e && (logits.live >> e & 1) != 0)
          logits_out()[j] = logits.z[e];
    }
  }
  __device__ void finish(const LogSumExp<Real>& total, bool valid, bool active) {
    this->group.sync();  // other threads' logits
    const Real lse = valid ? total.value() : nan_of(Real());
    Real* out = static_cast<Real*>(this->a.p.out.data) + this->row * this->a.p.out.stride;
    if (!active) return;
    for (int64_t j = this->group.rank(); j < this->a.p.ids_per_row; j += this->group.threads()) {
      const bool known = valid && ids()[j] >= 0 && ids()[j] < this->classes();
      const Real z = known ? logits_out()[j] : nan_of(Real());
      logits_out()[j] = z;
      out[j] = total.log_probability(z);
    }
    if (active && this->group.rank() == 0) static_cast<Real*>(this->a.p.logsumexp)[this->row] = lse;
  }
};

}  // namespace fixclf::cuda
