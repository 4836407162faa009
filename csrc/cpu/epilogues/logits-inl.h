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
    // A store that crosses a cache line costs as much as two: where a vector is a line, the classes
    // up to the start of a line go first.
    constexpr uint64_t kLine = 64, kBytes = V::kWidth * sizeof(Out);
    const uint64_t over = reinterpret_cast<uint64_t>(to) % kBytes;
    const int64_t before = static_cast<int64_t>((kBytes - over) % kBytes / sizeof(Out));
    if (kBytes == kLine && z.codelet < 0 && before > 0 && over % sizeof(Out) == 0 &&
        z.count >= 8 * V::kWidth) {
      write(z.part(0, before), to);
      write(z.part(before, z.count - before), to + before);
    } else {
      write(z, to);
    }
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
