// out[i] = exp(z[i] - m) / sum_j exp(z[j] - m), m = max z; float32 until the last rounding. Where
// alpha and the bias bound every logit (largest_logit), m = 0 does as well, and one pass fewer.
//
// Resident (the logits of the row stay in scratch): maximum, if needed; exponentials, kept;
// scaling. Otherwise the row is transformed twice: running maximum and sum; then the outputs. Two
// exponentials a class cost less than a C-sized temporary that falls out of the cache.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V, class Out>
struct SoftmaxEpilogue : MapDefaults<V, Out> {
  using F = typename V::F;

  ChunkedLogSumExp<V> lse;
  bool bounded;

  // Values are kept: the negated segment moves its own out of the way of the other's.
  static constexpr bool kBackwards = true;
  static constexpr int passes(bool resident) { return resident ? 3 : 2; }

  bool start(const HeadProblem& p, int64_t row, void* scratch) {
    bounded = p.largest_logit <= kLargestExponent;
    return MapDefaults<V, Out>::start(p, row, scratch);
  }

  FIXCLF_INLINE typename V::Real inverse_sum() const {
    return static_cast<typename V::Real>(1 / lse.total.sum);
  }

  template <class Logits>
  FIXCLF_INLINE void segment(int pass, const Logits& z) {
    Out* to = this->out + z.first_class;
    typename V::Real* const scratch = z.spare;
    LogSumExp<V>& total = lse.total;
    if (pass == 0 && bounded) {
      lse.chunk.max = total.max = 0;
      if (scratch == nullptr) {
        lse.chunk.sum += z.for_exponentials([](int64_t, F, auto) {});
      } else {
        total.sum +=
            z.for_exponentials([&](int64_t i, F e, auto lanes)
                                   __attribute__((always_inline)) { lanes.store(scratch + i, e); });
      }
    } else if (scratch == nullptr) {
      if (pass == 0) {
        lse.chunk.add(z);
        return;
      }
      const F shift = V::set(total.max), inverse = V::set(inverse_sum());
      if (bounded) {
        z.for_exponentials([&](int64_t i, F e, auto lanes) __attribute__((always_inline)) {
          lanes.store(to + i, e * inverse);
        });
      } else {
        z.for_logits(0, [&](int64_t i, F value, auto lanes) __attribute__((always_inline)) {
          lanes.store(to + i, exp<V>(value - shift) * inverse);
        });
      }
    } else if (pass == 0) {
      const auto top = total.max_of(z);
      total.max = total.max > top ? total.max : top;
    } else if (pass == 1 && !bounded) {
      const F shift = V::set(total.max);
      LongSum<V> terms;
      z.for_logits(z.kLowest, [&](int64_t i, F value, auto) __attribute__((always_inline)) {
        const F e = exp<V>(value - shift);
        V::store(scratch + i, e);
        terms.add(e);
      });
      total.sum += terms.value();
    } else if (pass == 2) {
      const F inverse = V::set(inverse_sum());
      const int64_t head = to_line<V>(to, z.count);
      for_lanes<V>(head, [&](int64_t i, auto lanes) {
        lanes.store(to + i, V::load(scratch + i) * inverse);
      });
      for_lanes<V>(z.count - head, [&](int64_t i, auto lanes) {
        lanes.store(to + head + i, V::load(scratch + head + i) * inverse);
      });
    }
  }
  void end_chunk() { lse.end_chunk(); }
  void merge(const SoftmaxEpilogue& later) { lse.total.merge(later.lse.total); }
};

}  // namespace
}  // namespace fixclf
