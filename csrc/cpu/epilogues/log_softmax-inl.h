// out[i] = z[i] - logsumexp(z). Cost: one exponential a class.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V, class Out>
struct LogSoftmaxEpilogue {
  LogSumExp<V> lse;

  static constexpr int passes(bool /*resident*/) { return 2; }

  template <class Logits>
  FIXCLF_INLINE void segment(int pass, const Logits& z, Out* out) {
    if (pass == 0) return lse.add(z);
    const auto shift = V::set(lse.value());
    z.for_logits(0, [&](int64_t i, typename V::F value, auto lanes) {
      lanes.store(out + i, value - shift);
    });
  }
};

}  // namespace
}  // namespace fixclf
