// The logits of one segment of one row, computed on the fly from its transformed features.
#pragma once

#include "cpu/math-inl.h"

namespace fixclf {
namespace {

// z[i] = scale y[i] + bias[i] for `count` classes that follow first_class.
template <class V, bool kBias>
struct Segment {
  using F = typename V::F;
  using Real = typename V::Real;

  Real* y;  // may be overwritten, with whole vectors of room: `room` says where to
  Real scale;
  const Real* bias;  // of the first class of this segment
  int64_t first_class;
  int64_t count;
  // Where the epilogue may keep one value a class from one pass to the next; null when the segment
  // will have been recomputed by then. It may be y itself.
  Real* room;

  // body(i, z, lanes); z is `filler` in the lanes beyond the last class.
  template <class Body>
  FIXCLF_INLINE void for_logits(Real filler, Body body) const {
    const F factor = V::set(scale);
    for_lanes<V>(count, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      const F value = V::load(y + i);
      const F z = kBias ? V::fma(value, factor, lanes.load(bias + i)) : value * factor;
      body(i, lanes.keep(z, filler), lanes);
    });
  }
};

// Running maximum m and sum of exp(z - m) over segments, in the order in which they come.
template <class V>
struct LogSumExp {
  using Real = typename V::Real;
  static constexpr Real kLowest = -__builtin_huge_val();

  Real max = kLowest;
  double sum = 0;

  template <class Logits>
  FIXCLF_INLINE static Real max_of(const Logits& z, Real max) {
    auto running = V::set(max);
    z.for_logits(kLowest,
                 [&](int64_t, typename V::F value, auto) { running = V::max(running, value); });
    return V::reduce_max(running);
  }

  template <class Logits>
  FIXCLF_INLINE void add(const Logits& z) {
    const Real higher = max_of(z, max);
    if (higher == kLowest) return;
    LongSum<V> terms;
    const auto shift = V::set(higher);
    z.for_logits(kLowest,
                 [&](int64_t, typename V::F value, auto) { terms.add(exp<V>(value - shift)); });
    sum = sum * static_cast<double>(scalar_exp<V>(max - higher)) + terms.value();
    max = higher;
  }

  FIXCLF_INLINE Real value() const { return static_cast<Real>(max + __builtin_log(sum)); }
};

}  // namespace
}  // namespace fixclf
