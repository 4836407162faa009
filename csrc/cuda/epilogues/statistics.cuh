// logits[j] = z[ids[j]], NaN for an id outside of the classes, and sums over the other classes,
// those that are allowed and not among the ids: logsumexp(z), sum z, sum z^2, sum log(1 + exp(z)),
// as many of them as are wanted. One exponential a class for the logsumexp and one for the last
// sum, of which a logarithm is taken once in 32 classes; one comparison an id and 32 classes.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

template <class Real>
struct StatisticsState {
  LogSumExp<Real> lse;
  double sum = 0, squares = 0, softplus = 0;

  __device__ static StatisticsState join(const StatisticsState& a, const StatisticsState& b) {
    StatisticsState joined;
    joined.lse = LogSumExp<Real>::join(a.lse, b.lse);
    joined.sum = a.sum + b.sum;
    joined.squares = a.squares + b.squares;
    joined.softplus = a.softplus + b.softplus;
    return joined;
  }
};

template <class Real>
struct StatisticsEpilogue : Reduction<Real, StatisticsState<Real>> {
  using Reduction<Real, StatisticsState<Real>>::Reduction;

  __device__ const int64_t* ids() const {
    return this->a.p.ids + this->row * this->a.p.ids_per_row;
  }
  __device__ Real* logits_out() const {
    return static_cast<Real*>(this->a.p.logits) + this->row * this->a.p.ids_per_row;
  }

  __device__ void add(const Logits<Real>& logits) {
    const HeadProblem& p = this->a.p;
    const uint32_t at_ids =
        elements_at(logits, ids(), p.ids_per_row, [&](int64_t j, Real z) { logits_out()[j] = z; });
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if ((at_ids >> e & 1) != 0) logits.z[e] = kLowest<Real>;
    const uint32_t others = logits.live & ~at_ids;
    if (p.logsumexp != nullptr) this->state.lse.add(logits, logits.top());
    if (p.sum != nullptr || p.squares != nullptr) add_moments(logits, others);
    if (p.softplus != nullptr) this->state.softplus += softplus_of(logits);
  }
  __device__ void finish(const StatisticsState<Real>& total, bool valid, bool active) {
    this->group.sync();  // other threads' logits
    const HeadProblem& p = this->a.p;
    if (!active) return;
    for (int64_t j = this->group.rank(); j < p.ids_per_row; j += this->group.threads()) {
      const bool known = valid && ids()[j] >= 0 && ids()[j] < this->classes();
      if (!known) logits_out()[j] = nan_of(Real());
    }
    if (this->group.rank() != 0) return;
    const auto write = [&](void* values, Real value) {
      if (values != nullptr) static_cast<Real*>(values)[this->row] = valid ? value : nan_of(Real());
    };
    write(p.logsumexp, total.lse.value());
    write(p.sum, static_cast<Real>(total.sum));
    write(p.squares, static_cast<Real>(total.squares));
    write(p.softplus, static_cast<Real>(total.softplus));
  }

 private:
  __device__ void add_moments(const Logits<Real>& logits, uint32_t others) {
    const bool masked = this->a.p.allowed != nullptr;
    Real squares[4] = {};
#pragma unroll
    for (int e = 0; e < kItem; ++e) {
      const Real z = logits.z[e];
      if ((others >> e & 1) == 0 || (masked && z == kLowest<Real>)) continue;
      // In double: a mean may be a small difference of large logits.
      this->state.sum += static_cast<double>(z);
      squares[e % 4] = fused(z, z, squares[e % 4]);
    }
    this->state.squares +=
        static_cast<double>((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
  // Sum of max(z, 0) + log of the product of 1 + exp(-|z|), which less 1 is what is kept: the
  // factors may be closer to 1 than the next number. 0 where z is -inf.
  __device__ static double softplus_of(const Logits<Real>& logits) {
    Real positive[4] = {}, product[4] = {};
#pragma unroll
    for (int e = 0; e < kItem; ++e) {
      const Real z = logits.z[e], u = exp_of(z < 0 ? z : -z);
      product[e % 4] = fused(product[e % 4], u, product[e % 4] + u);
      positive[e % 4] += z > 0 || is_nan(z) ? z : 0;
    }
#pragma unroll
    for (int e = 1; e < 4; ++e) product[0] = fused(product[0], product[e], product[0] + product[e]);
    const Real sum = (positive[0] + positive[1]) + (positive[2] + positive[3]);
    return static_cast<double>(sum) + static_cast<double>(log1p_of(product[0]));
  }
};

}  // namespace fixclf::cuda
