// out[i] = z[i]. Cost: one fused multiply-add a class.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V, class Out>
struct LogitsEpilogue : MapDefaults<V, Out> {
  static constexpr bool kReadsOnce = true;

  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    Out* to = this->out + z.first_class;
    const int64_t head = z.codelet < 0 ? to_line<V>(to, z.count) : 0;
    if (head > 0) write(z.part(0, head), to);
    write(head > 0 ? z.part(head, z.count - head) : z, to + head);
  }

 private:
  template <class Logits>
  static FIXCLF_INLINE void write(const Logits& z, Out* to) {
    z.template for_logits<true>(0,
                                [&](int64_t i, typename V::F value, auto lanes)
                                    __attribute__((always_inline)) { lanes.store(to + i, value); });
  }
};

}  // namespace
}  // namespace fixclf
