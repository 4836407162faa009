// out[i] = z[i]. Cost: one fused multiply-add a class.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V, class Out>
struct LogitsEpilogue : MapDefaults<V, Out> {
  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    Out* to = this->out + z.first_class;
    z.for_logits(0,
                 [&](int64_t i, typename V::F value, auto lanes) { lanes.store(to + i, value); });
  }
};

}  // namespace
}  // namespace fixclf
