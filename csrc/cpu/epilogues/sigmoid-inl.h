// out[i] = 1 / (1 + exp(-z[i])). Cost: one exponential and one division a class.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V, class Out>
struct SigmoidEpilogue : MapDefaults<V, Out> {
  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    Out* to = this->out + z.first_class;
    z.for_logits(0, [&](int64_t i, typename V::F value, auto lanes)
                        __attribute__((always_inline)) { lanes.store(to + i, sigmoid<V>(value)); });
  }
};

}  // namespace
}  // namespace fixclf
