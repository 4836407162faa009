// logits[j] = z[ids[j]], out[j] = z[ids[j]] - logsumexp(z). Cost: one exponential a class, one
// comparison an id and block.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V>
struct LogProbEpilogue : EpilogueDefaults {
  using Real = typename V::Real;

  ChunkedLogSumExp<V> lse;
  const int64_t* ids;
  int64_t count;
  Real* logits;
  Real* out;
  Real* logsumexp;

  bool start(const HeadProblem& p, int64_t row, void* /*scratch*/) {
    count = p.ids_per_row;
    ids = p.ids + row * count;
    logits = static_cast<Real*>(p.logits) + row * count;
    out = static_cast<Real*>(p.out.data) + row * p.out.stride;
    logsumexp = static_cast<Real*>(p.logsumexp) + row;
    return true;
  }
  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    lse.chunk.add(z);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = ids[j] - z.first_class;
      if (i >= 0 && i < z.count) logits[j] = z.at(i);
    }
  }
  // A forbidden id may lie in a block that was passed over.
  bool needs_forbidden() const { return true; }
  void end_chunk() { lse.end_chunk(); }
  void merge(const LogProbEpilogue& later) { lse.total.merge(later.lse.total); }
  void finish() {
    *logsumexp = lse.total.value();
    for (int64_t j = 0; j < count; ++j) out[j] = lse.total.log_probability(logits[j]);
  }
  void invalid(Real nan) {
    *logsumexp = nan;
    for (int64_t j = 0; j < count; ++j) out[j] = logits[j] = nan;
  }
};

}  // namespace
}  // namespace fixclf
