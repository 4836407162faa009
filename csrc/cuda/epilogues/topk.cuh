// The k largest logits of a row, sorted, the lowest class first on ties, and logsumexp(z).
//
// A buffer of S >= 2k places in shared memory holds the best so far and new candidates: logits not
// worse than the k-th best known. When it is full it is sorted (bitonic, log2(S) (log2(S) + 1) / 2
// steps) and cut to k. As (value, id) is a total order, the order in which threads append changes
// no result. The first threshold is the k-th best of the threads' own maxima.
// One exponential a class; about k log(C / k) candidates a chunk.
#pragma once

#include "cuda/logits.cuh"

namespace fixclf::cuda {

// A logit and its class, ordered as one: larger value first, then lower id. NaN is the largest.
template <class Bits>
struct Key {
  Bits rank;
  uint32_t id;

  __device__ bool before(const Key& other) const {
    return rank > other.rank || (rank == other.rank && id < other.id);
  }
  // After every logit.
  __device__ static Key none() { return {0, 0xffffffffu}; }
};

template <class Real>
struct Ranks;
template <>
struct Ranks<float> {
  using Bits = uint32_t;
  __device__ static Bits of(float value) {
    if (value != value) return 0xffffffffu;
    const Bits bits = __float_as_uint(value + 0.f);  // -0 is 0
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  }
  __device__ static float value(Bits rank) {
    return __uint_as_float((rank >> 31) != 0 ? rank & 0x7fffffffu : ~rank);
  }
};
template <>
struct Ranks<double> {
  using Bits = unsigned long long;
  __device__ static Bits of(double value) {
    if (value != value) return ~Bits{0};
    const Bits bits = static_cast<Bits>(__double_as_longlong(value + 0.));
    return (bits >> 63) != 0 ? ~bits : bits | Bits{1} << 63;
  }
  __device__ static double value(Bits rank) {
    return __longlong_as_double(
        static_cast<long long>((rank >> 63) != 0 ? rank & ~(Bits{1} << 63) : ~rank));
  }
};

template <class Real>
struct TopKEpilogue : Reduction<Real, LogSumExp<Real>> {
  using Rank = Ranks<Real>;
  using Entry = Key<typename Rank::Bits>;
  using Base = Reduction<Real, LogSumExp<Real>>;

  // So that no CTA has more than a few buffers.
  static constexpr int kLeastThreads = kWarp;
  static constexpr int64_t kHeader = 16;  // the count, before the buffer
  Entry* entries;
  int* count;  // of candidates that came; those beyond the buffer come again
  int size;    // S
  int k;
  Entry threshold;
  bool started = false;

  static __host__ __device__ int buffer_size(int64_t k, int threads) {
    int size = 64;
    while (size < 2 * k || size <= threads) size *= 2;
    return size;
  }
  static int64_t area_bytes(const HeadProblem& p, const Layout& layout) {
    return kHeader + buffer_size(p.k, layout.threads) * static_cast<int64_t>(sizeof(Entry));
  }
  static int64_t saved_bytes(const HeadProblem& p) {
    return p.k * static_cast<int64_t>(sizeof(Entry));
  }

  __device__ TopKEpilogue(const HeadArguments& a, int64_t row, const Group& group, char* area)
      : Base(a, row, group, area),
        entries(reinterpret_cast<Entry*>(area + kHeader)),
        count(reinterpret_cast<int*>(area)),
        size(buffer_size(a.p.k, group.threads())),
        k(static_cast<int>(a.p.k)),
        threshold(Entry::none()) {
    clear_from(0);
    group.sync();
  }

  __device__ void add(const Logits<Real>& logits) {
    const Real top = logits.top();
    this->state.add(logits, top);
    const auto entry = [&](int e) {
      return Entry{Rank::of(logits.z[e]), static_cast<uint32_t>(logits.id(e))};
    };
    if (!started) start(logits.live, entry);
    offer(logits.live, entry);
  }

  __device__ void save(void* to, bool active) {
    sort();
    if (!active) return;
    for (int i = this->group.rank(); i < k; i += this->group.threads())
      static_cast<Entry*>(to)[i] = entries[i];
  }
  __device__ void join_saved(const void* from) {
    const auto* saved = static_cast<const Entry*>(from);
    for (int first = 0; first < k; first += this->group.threads()) {
      const int i = first + this->group.rank();
      const Entry mine = i < k ? saved[i] : Entry::none();
      offer(mine.id != Entry::none().id ? 1u : 0u, [&](int) { return mine; });
    }
  }

  __device__ void finish(const LogSumExp<Real>& total, bool valid, bool active) {
    sort();
    const HeadProblem& p = this->a.p;
    const Real lse = valid ? total.value() : nan_of(Real());
    Real* values = static_cast<Real*>(p.out.data) + this->row * p.out.stride;
    if (!active) return;
    for (int i = this->group.rank(); i < k; i += this->group.threads()) {
      const Real z = valid ? Rank::value(entries[i].rank) : nan_of(Real());
      values[i] = p.log_probabilities ? total.log_probability(z) : z;
      p.indices[this->row * k + i] = valid ? static_cast<int64_t>(entries[i].id) : i;
    }
    if (active && this->group.rank() == 0) static_cast<Real*>(p.logsumexp)[this->row] = lse;
  }

 private:
  __device__ void clear_from(int first) {
    for (int i = first + this->group.rank(); i < size; i += this->group.threads())
      entries[i] = Entry::none();
    if (this->group.rank() == 0) *count = first;
  }

  // The k-th best of the threads' maxima bounds the k-th best of all from below.
  template <class EntryOf>
  __device__ void start(uint32_t live, EntryOf entry) {
    started = true;
    const int threads = this->group.threads();
    if (k > threads) return;
    Entry best = Entry::none();
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if ((live >> e & 1) != 0 && entry(e).before(best)) best = entry(e);
    entries[this->group.rank()] = best;
    this->group.sync();
    int better = 0;
    for (int i = 0; i < threads; ++i) better += entries[i].before(best) ? 1 : 0;
    this->group.sync();
    // Ranks are distinct, but for threads without a class. The last place holds no maximum.
    if (better == k - 1) entries[size - 1] = best;
    this->group.sync();
    threshold = entries[size - 1];
    this->group.sync();
    clear_from(0);
    this->group.sync();
  }

  template <class EntryOf>
  __device__ void offer(uint32_t live, EntryOf entry) {
    uint32_t wanted = candidates(live, entry);
    while (this->group.any(wanted != 0)) {
#pragma unroll
      for (int e = 0; e < kItem; ++e) {
        if ((wanted >> e & 1) == 0) continue;
        const int place = atomicAdd(count, 1);
        if (place >= size) continue;
        entries[place] = entry(e);
        wanted &= ~(1u << e);
      }
      this->group.sync();
      if (!this->group.any(*count >= size)) continue;
      sort();
      this->group.sync();
      clear_from(k);
      this->group.sync();
      threshold = entries[k - 1];
      wanted = candidates(wanted, entry);
    }
  }
  template <class EntryOf>
  __device__ uint32_t candidates(uint32_t live, EntryOf entry) const {
    uint32_t wanted = 0;
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if ((live >> e & 1) != 0 && !threshold.before(entry(e))) wanted |= 1u << e;
    return wanted;
  }

  // Bitonic, best first (Batcher 1968).
  __device__ void sort() const {
    for (int span = 2; span <= size; span *= 2) {
      for (int stride = span / 2; stride > 0; stride /= 2) {
        this->group.sync();
        for (int i = this->group.rank(); i < size / 2; i += this->group.threads()) {
          const int low = 2 * i - (i & (stride - 1)), high = low + stride;
          const bool descending = (low & span) == 0;
          const Entry a = entries[low], b = entries[high];
          if (b.before(a) != descending) continue;
          entries[low] = b;
          entries[high] = a;
        }
      }
    }
    this->group.sync();
  }
};

}  // namespace fixclf::cuda
