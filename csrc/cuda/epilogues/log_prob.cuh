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
    elements_at(logits, ids(), this->a.p.ids_per_row,
                [&](int64_t j, Real z) { logits_out()[j] = z; });
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
