// out[i] = z[i] - logsumexp(z). Cost: one exponential a class, and the logits twice.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V, class Out>
struct LogSoftmaxEpilogue : MapDefaults<V, Out> {
  ChunkedLogSumExp<V> lse;

  static constexpr int passes(bool /*resident*/) { return 2; }

  template <class Logits>
  FIXCLF_INLINE void segment(int pass, const Logits& z) {
    if (pass == 0) {
      lse.chunk.add(z);
      return;
    }
    Out* to = this->out + z.first_class;
    const auto max = V::set(lse.total.max);
    const auto log_of_sum = V::set(static_cast<typename V::Real>(lse.total.log_of_sum()));
    z.for_logits(0, [&](int64_t i, typename V::F value, auto lanes) {
      lanes.store(to + i, (value - max) - log_of_sum);  // as LogSumExp::log_probability
    });
  }
  void end_chunk() { lse.end_chunk(); }
  void merge(const LogSoftmaxEpilogue& later) { lse.total.merge(later.lse.total); }
};

}  // namespace
}  // namespace fixclf
