// loss = logsumexp(z) - (1 - eps) z[target] - eps mean(z), eps the label smoothing; 0 for an
// ignored target, NaN for one outside of the classes. One exponential a class.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct NllState {
  LogSumExp<Real> lse;
  double target_logit = 0;  // of the one thread that met the target
  double total = 0;         // sum of z, with label smoothing

  __device__ static NllState join(const NllState& a, const NllState& b) {
    NllState joined;
    joined.lse = LogSumExp<Real>::join(a.lse, b.lse);
    joined.target_logit = a.target_logit + b.target_logit;
    joined.total = a.total + b.total;
    return joined;
  }
};

template <class Real>
struct NllEpilogue : Reduction<Real, NllState<Real>> {
  int64_t target;

  __device__ NllEpilogue(const HeadArguments& a, int64_t row, const Group& group, char* area)
      : Reduction<Real, NllState<Real>>(a, row, group, area), target(a.p.ids[row]) {}

  __device__ void add(const Logits<Real>& logits) {
    this->state.lse.add(logits, logits.top());
    if (this->a.p.label_smoothing > 0) {
      // In double: the loss is a small difference of it where all logits are huge.
#pragma unroll
      for (int e = 0; e < kItem; ++e)
        if ((logits.live >> e & 1) != 0) this->state.total += static_cast<double>(logits.z[e]);
    }
    const int64_t steps = target - logits.first;
    if (steps < 0 || steps >> logits.shift >= kItem) return;
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if (target == logits.id(e) && (logits.live >> e & 1) != 0)
        this->state.target_logit = static_cast<double>(logits.z[e]);
  }
  __device__ void finish(const NllState<Real>& state, bool valid, bool active) {
    if (!active || this->group.rank() != 0) return;
    const HeadProblem& p = this->a.p;
    const double eps = p.label_smoothing, max = static_cast<double>(state.lse.max);
    double loss = (1 - eps) * (max - state.target_logit);
    if (eps > 0) loss += eps * (max - state.total / static_cast<double>(this->classes()));
    Real lse = state.lse.value();
    loss += log(state.lse.sum);
    if (!valid || target < 0 || target >= this->classes()) loss = nan_of(0.);
    if (!valid) lse = nan_of(Real());
    if (target == p.ignore_index) loss = lse = 0;
    static_cast<Real*>(p.out.data)[this->row * p.out.stride] = static_cast<Real>(loss);
    static_cast<Real*>(p.logsumexp)[this->row] = lse;
  }
};

}  // namespace fixclf::cuda
