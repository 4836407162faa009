// The k largest logits of a row, sorted, the lowest class first on ties (NaN before any number),
// and logsumexp(z). A heap of the k best so far, its worst at the root; a segment is searched only
// where its maximum, which the logsumexp needs anyway, beats the root. Cost: one exponential a
// class, and about k log(C / k) insertions of log2 k steps. Room: k (id, value) a row.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V>
struct TopKEpilogue : EpilogueDefaults {
  using F = typename V::F;
  using Real = typename V::Real;
  struct Entry {
    Real value;
    int32_t id;
  };

  ChunkedLogSumExp<V> lse;
  Entry* heap;
  int64_t size;
  int64_t k;
  bool bounded;    // k values of at least `threshold` are known: only larger ones count
  Real threshold;  // the root's value in a full heap
  bool log_probabilities;
  Real* values;
  int64_t* indices;
  Real* logsumexp;

  static int64_t scratch(const HeadProblem& p) { return p.k * static_cast<int64_t>(sizeof(Entry)); }

  bool start(const HeadProblem& p, int64_t row, void* scratch) {
    heap = static_cast<Entry*>(scratch);
    size = 0;
    k = p.k;
    bounded = false;
    threshold = 0;
    log_probabilities = p.log_probabilities;
    values = static_cast<Real*>(p.out.data) + row * p.out.stride;
    indices = p.indices + row * p.k;
    logsumexp = static_cast<Real*>(p.logsumexp) + row;
    return true;
  }

  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    const Real top = lse.chunk.add(z);
    const bool nan = Logits::kMayBeNaN && is_nan(lse.chunk.max);
    if (!bounded || nan || top > threshold) search(z);
  }
  bool needs_forbidden() const { return !bounded; }
  void end_chunk() { lse.end_chunk(); }

  // Classes that do not beat the k best before them are not among the k best of all.
  void follow(const TopKEpilogue& before) {
    bounded = before.bounded;
    threshold = before.threshold;
  }
  void merge(const TopKEpilogue& later) {
    lse.total.merge(later.lse.total);
    for (int64_t i = 0; i < later.size; ++i) offer(later.heap[i]);
  }

  void finish() {
    *logsumexp = lse.total.value();
    // The worst goes last, and so on.
    while (size > 0) {
      const Entry worst = heap[0];
      --size;
      sift_down(heap[size]);
      values[size] = log_probabilities ? lse.total.log_probability(worst.value) : worst.value;
      indices[size] = worst.id;
    }
  }
  void invalid(Real nan) {
    *logsumexp = nan;
    for (int64_t i = 0; i < k; ++i) {
      values[i] = nan;
      indices[i] = i;
    }
  }

 private:
  template <class Logits>
  void search(const Logits& z) {
    z.for_logits(z.kLowest, [&](int64_t i, F value, auto lanes) {
      if (bounded) {
        const auto better = value > V::set(threshold);
        uint32_t above = V::bits(Logits::kMayBeNaN ? better | (value != value) : better);
        for (; above != 0; above &= above - 1) {
          const int lane = __builtin_ctz(above);
          offer({value[lane], static_cast<int32_t>(z.first_class + i + lane)});
        }
      } else {
        for (int lane = 0; lane < lanes.count(); ++lane)
          offer({value[lane], static_cast<int32_t>(z.first_class + i + lane)});
      }
    });
  }

  // NaN is better than any number.
  static FIXCLF_INLINE bool worse(const Entry& a, const Entry& b) {
    if (a.value < b.value) return true;
    if (a.value > b.value) return false;
    return is_nan(a.value) == is_nan(b.value) ? a.id > b.id : is_nan(b.value);
  }

  void offer(const Entry& entry) {
    if (size < k) {
      if (bounded && entry.value <= threshold) return;
      sift_up(entry);
    } else if (worse(heap[0], entry)) {
      sift_down(entry);
    } else {
      return;
    }
    if (size < k) return;
    bounded = true;
    threshold = heap[0].value;
  }

  void sift_up(const Entry& entry) {
    int64_t at = size++;
    for (; at > 0 && worse(entry, heap[(at - 1) / 2]); at = (at - 1) / 2)
      heap[at] = heap[(at - 1) / 2];
    heap[at] = entry;
  }

  // Puts the entry in the place of the root.
  void sift_down(const Entry& entry) {
    int64_t at = 0;
    for (int64_t child = 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && worse(heap[child + 1], heap[child])) ++child;
      if (!worse(heap[child], entry)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = entry;
  }
};

}  // namespace
}  // namespace fixclf
