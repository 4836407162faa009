// loss = logsumexp(z) - (1 - eps) z[target] - eps mean(z), eps the label smoothing (Szegedy et al.
// 2016, §7, as torch.nn.functional.cross_entropy has it); 0 for an ignored target. Cost: one
// exponential a class.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V>
struct NllEpilogue : EpilogueDefaults {
  using Real = typename V::Real;

  ChunkedLogSumExp<V> lse;
  double total = 0, chunk = 0;  // sums of z, with label smoothing
  double target_logit = 0;
  int64_t target;
  bool ignored;
  int64_t classes;
  double smoothing;
  Real* loss;
  Real* logsumexp;

  bool start(const HeadProblem& p, int64_t row, void* /*scratch*/) {
    target = p.ids[row];
    classes = p.codebook.computed();
    smoothing = p.label_smoothing;
    loss = static_cast<Real*>(p.out.data) + row * p.out.stride;
    logsumexp = static_cast<Real*>(p.logsumexp) + row;
    ignored = target == p.ignore_index;
    return !ignored;
  }
  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    lse.chunk.add(z);
    if (smoothing > 0) {
      // In double: the loss is a small difference of it where all logits are huge.
      typename V::D sum = {};
      z.for_logits(0, [&](int64_t, typename V::F value, auto) { sum = V::add_double(sum, value); });
      chunk += V::reduce_add_double(sum);
    }
    const int64_t i = target - z.first_class;
    if (i >= 0 && i < z.count) target_logit = z.at(i);
  }
  void end_chunk() {
    lse.end_chunk();
    total += chunk;
    chunk = 0;
  }
  void merge(const NllEpilogue& later) {
    lse.total.merge(later.lse.total);
    total += later.total;
    target_logit += later.target_logit;
  }
  void finish() {
    *logsumexp = lse.total.value();
    const double max = lse.total.max;
    double difference = (1 - smoothing) * (max - target_logit);
    if (smoothing > 0) difference += smoothing * (max - total / static_cast<double>(classes));
    *loss = static_cast<Real>(difference + lse.total.log_of_sum());
  }
  void invalid(Real nan) { *loss = *logsumexp = ignored ? 0 : nan; }
};

}  // namespace
}  // namespace fixclf
