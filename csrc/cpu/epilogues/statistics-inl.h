// logits[j] = z[ids[j]], and sums over the other classes, those that are allowed and not among the
// ids: logsumexp(z), sum z, sum z^2, sum log(1 + exp(z)), as many of them as are wanted. That the
// ids are left out, not subtracted, keeps small differences: a row that is nearly certain has a
// loss of 1e-9, not 0. Cost: one exponential a class for the logsumexp and one for the last sum, a
// fused multiply-add for each of the others.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

// Sum of log(1 + exp(z)) = sum of max(z, 0) + log of the product of 1 + exp(-|z|): one logarithm
// for kShort vectors. Products less 1 are what is kept, as the factors may be closer to 1 than the
// next number; two of them take turns, as either is a chain of operations that wait.
template <class V>
struct SoftplusSum {
  using F = typename V::F;
  static constexpr int kShort = LongSum<V>::kShort;  // the product is below 2^kShort

  FIXCLF_INLINE void add(F z) {
    const F longer = joined(product, exp<V>(V::min(z, -z)));
    product = other;
    other = longer;
    part += V::max(F{}, z);
    if (++terms == kShort) flush();
  }
  FIXCLF_INLINE void flush() {
    total = V::add_double(V::add_double(total, part), log1p<V>(joined(product, other)));
    part = product = other = F{};
    terms = 0;
  }
  FIXCLF_INLINE double value() {
    flush();
    return V::reduce_add_double(total);
  }

  // (1 + p) (1 + q) - 1
  static FIXCLF_INLINE F joined(F p, F q) { return V::fma(p, q, p + q); }

  F part = {}, product = {}, other = {};
  typename V::D total = {};
  int terms = 0;
};

template <class V>
struct StatisticsEpilogue : EpilogueDefaults {
  using F = typename V::F;
  using Real = typename V::Real;

  struct Sums {
    double sum = 0, squares = 0, softplus = 0;
    void add(const Sums& later) {
      sum += later.sum;
      squares += later.squares;
      softplus += later.softplus;
    }
  };

  ChunkedLogSumExp<V> lse;
  Sums total, chunk;
  const int64_t* ids;
  const int64_t* sorted_ids;
  int64_t count;
  // Of this row; null: not wanted.
  Real* logits;
  Real* logsumexp;
  Real* sum;
  Real* squares;
  Real* softplus;

  bool start(const HeadProblem& p, int64_t row, void* /*room*/) {
    const auto of_row = [&](void* values) {
      return values == nullptr ? nullptr : static_cast<Real*>(values) + row;
    };
    count = p.ids_per_row;
    ids = p.ids + row * count;
    sorted_ids = p.sorted_ids_of(row);
    logits = static_cast<Real*>(p.logits) + row * count;
    logsumexp = of_row(p.logsumexp);
    sum = of_row(p.sum);
    squares = of_row(p.squares);
    softplus = of_row(p.softplus);
    return true;
  }
  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = ids[j] - z.first_class;
      if (i >= 0 && i < z.count) logits[j] = z.at(i);
    }
    for_others(z, sorted_ids, count, [&](const Logits& others) { add(others); });
  }
  // A forbidden id may lie in a block that was passed over.
  bool needs_forbidden() const { return count > 0; }
  void end_chunk() {
    lse.end_chunk();
    total.add(chunk);
    chunk = {};
  }
  void merge(const StatisticsEpilogue& later) {
    lse.total.merge(later.lse.total);
    total.add(later.total);
  }
  void finish() { write(lse.total.value(), total); }
  void invalid(Real nan) {
    write(nan, {nan, nan, nan});
    for (int64_t j = 0; j < count; ++j) logits[j] = nan;
  }

 private:
  template <class Logits>
  FIXCLF_INLINE void add(const Logits& z) {
    if (logsumexp != nullptr) lse.chunk.add(z);
    if (sum != nullptr) {
      // In double: a mean may be a small difference of large logits.
      typename V::D values = {};
      z.for_logits(0, [&](int64_t, F value, auto) __attribute__((always_inline)) {
        values = V::add_double(values, counted(z, value));
      });
      chunk.sum += V::reduce_add_double(values);
    }
    if (squares != nullptr) {
      LongSum<V> values;
      z.for_logits(0, [&](int64_t, F value, auto) __attribute__((always_inline)) {
        value = counted(z, value);
        values.add(value * value);
      });
      chunk.squares += values.value();
    }
    if (softplus != nullptr) {
      SoftplusSum<V> values;
      z.for_logits(z.kLowest, [&](int64_t, F value, auto)
                                  __attribute__((always_inline)) { values.add(value); });
      chunk.softplus += values.value();
    }
  }
  // 0 for a forbidden class.
  template <class Logits>
  static FIXCLF_INLINE F counted(const Logits&, F value) {
    return Logits::kHasMask ? unless_lowest<V>(value, value) : value;
  }
  void write(Real log_of_sum, const Sums& sums) {
    if (logsumexp != nullptr) *logsumexp = log_of_sum;
    if (sum != nullptr) *sum = static_cast<Real>(sums.sum);
    if (squares != nullptr) *squares = static_cast<Real>(sums.squares);
    if (softplus != nullptr) *softplus = static_cast<Real>(sums.softplus);
  }
};

}  // namespace
}  // namespace fixclf
