// index = argmax z, the lowest class on ties, NaN above any number. Cost: a multiply-add, a
// comparison and two selections a class; no exponential.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V>
struct ArgMaxEpilogue : EpilogueDefaults {
  static constexpr bool kTakesNaN = true;

  Best<V> best;
  int64_t* index;

  bool start(const HeadProblem& p, int64_t row, void* /*scratch*/) {
    index = p.indices + row;
    return true;
  }
  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    best.add(z, [](int64_t, typename V::F value) { return value; });
  }
  void merge(const ArgMaxEpilogue& later) { best.merge(later.best); }
  void take_nan(int64_t id) { best.take_nan(id); }
  void finish() { *index = best.id; }
  void invalid(typename V::Real /*nan*/) { *index = 0; }
};

}  // namespace
}  // namespace fixclf
