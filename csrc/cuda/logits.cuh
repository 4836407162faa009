// The logits of one item, and what several epilogues do with them.
#pragma once

#include "cuda/block.cuh"

namespace fixclf::cuda {

// What the kernels of the head share.
struct HeadArguments {
  HeadProblem p;
  const void* alpha;  // one element of the accumulation dtype
  Layout layout;
  int64_t row_begin, row_end;  // the rows of this launch
  int chunks;                  // parts of the blocks, merged in order
  int area;                    // bytes of shared memory for each row's epilogue
  void* partials;              // [rows of this launch, chunks]
  int64_t partial_bytes;
  bool write_only;  // maps: the row's state has been merged
};

// z of 32 classes of one row: class first + (e << shift) for the elements that are live. -inf for
// those that are not, and for forbidden ones. They take the place of y: both would not fit in the
// registers.
template <class Real>
struct Logits {
  Real (&z)[kItem];
  uint32_t live;
  int first, shift;

  __device__ int id(int e) const { return first + (e << shift); }

  __device__ Logits(const HeadArguments& a, int64_t row, const Place& place, Real (&y)[kItem],
                    bool there, int first_class, Real scale, Real mean)
      : z(y), first(first_class + place.first), shift(place.shift) {
    const HeadProblem& p = a.p;
    const int classes = static_cast<int>(p.codebook.computed());
    live = there ? live_elements(place, a.layout.width, first_class, classes) : 0;
    const auto* bias = p.has_bias ? static_cast<const Real*>(p.bias) : nullptr;
    const uint8_t* allowed = p.allowed_of(row);
#pragma unroll
    for (int e = 0; e < kItem; ++e) {
      const bool is_class = (live >> e & 1) != 0;
      Real value = (y[e] - mean) * scale;
      if (bias != nullptr) value = fused(y[e] - mean, scale, is_class ? __ldg(bias + id(e)) : 0);
      const bool takes_part =
          is_class && (allowed == nullptr || (__ldg(allowed + id(e) / 8) >> id(e) % 8 & 1) != 0);
      z[e] = takes_part ? value : kLowest<Real>;
    }
  }

  __device__ bool holds_nan() const {
    bool found = false;
#pragma unroll
    for (int e = 0; e < kItem; ++e) found = found || is_nan(z[e]);
    return found;
  }

  // Of those that are numbers.
  __device__ Real top() const {
    Real most = z[0];
#pragma unroll
    for (int e = 1; e < kItem; ++e) most = max_of(most, z[e]);
    return most;
  }
};

// The elements of the item that are classes among the ids; found(m, z) for the m-th of these.
template <class Real, class Found>
__device__ inline uint32_t elements_at(const Logits<Real>& logits, const int64_t* ids,
                                       int64_t count, Found found) {
  uint32_t at = 0;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t steps = ids[m] - logits.first;
    if (steps < 0 || steps >> logits.shift >= kItem) continue;
    if ((steps & ((1 << logits.shift) - 1)) != 0) continue;
#pragma unroll
    for (int e = 0; e < kItem; ++e) {
      if (steps >> logits.shift != e || (logits.live >> e & 1) == 0) continue;
      found(m, logits.z[e]);
      at |= 1u << e;
    }
  }
  return at;
}

// Running maximum and sum of exp(z - maximum). A NaN among the logits makes both NaN; +inf as the
// maximum makes the sum NaN.
template <class Real>
struct LogSumExp {
  double sum = 0;
  Real max = kLowest<Real>;

  __device__ void add(const Logits<Real>& logits, Real top) {
    const Real higher = larger(max, top), shift = higher == kLowest<Real> ? 0 : higher;
    Real sums[4] = {};
#pragma unroll
    for (int e = 0; e < kItem; ++e) sums[e % 4] += exp_of(logits.z[e] - shift);
    sum = relative_to(higher) + static_cast<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    max = higher;
    if (is_nan(sum) && logits.holds_nan()) max = nan_of(Real());
  }
  __device__ static LogSumExp join(const LogSumExp& a, const LogSumExp& b) {
    LogSumExp joined;
    joined.max = larger(a.max, b.max);
    joined.sum = a.relative_to(joined.max) + b.relative_to(joined.max);
    return joined;
  }
  __device__ Real value() const {
    return max == -kLowest<Real> ? max : static_cast<Real>(max + log(sum));
  }
  // z - logsumexp, precise where |z| is so large that it swallows the logarithm.
  __device__ Real log_probability(Real z) const { return (z - max) - static_cast<Real>(log(sum)); }

 private:
  // NaN if one is.
  __device__ static Real larger(Real a, Real b) { return a > b || is_nan(a) ? a : b; }
  __device__ double relative_to(Real higher) const {
    return max == higher ? sum : sum * static_cast<double>(exp_of(max - higher));
  }
};

// The largest value, the lowest class on ties; NaN is larger than any number.
template <class Real>
struct Best {
  static constexpr int kNone = 0x7fffffff;
  Real value = kLowest<Real>;
  int id = kNone;

  __device__ void offer(Real candidate, int candidate_id) {
    const bool same = candidate == value || (is_nan(candidate) && is_nan(value));
    if (same ? candidate_id < id : !(candidate <= value) && !is_nan(value)) {
      value = candidate;
      id = candidate_id;
    }
  }
  __device__ static Best join(Best a, const Best& b) {
    a.offer(b.value, b.id);
    return a;
  }
  // Class 0 where there is none above -inf.
  __device__ int64_t index() const { return id == kNone ? 0 : id; }
};

// What an epilogue is: one object a thread and row.
//   State             what its threads' and then the chunks' results join to, by State::join
//   add(logits)       every thread of the group, equally often
//   write(logits, s)  maps: the outputs of these classes, s the state of the whole row
//   finish(s, valid, active)  reductions: the row's results; `valid` is false for a row with a NaN,
//                     `active` for a group that has no row and must not write
//   save(to, active), join_saved  what a chunk leaves beside its State
struct Empty {
  int nothing = 0;
  __device__ static Empty join(const Empty& a, const Empty&) { return a; }
};

template <class Real, class State_>
struct Map {
  using State = State_;
  static constexpr bool kMap = true;
  static constexpr bool kAccumulates = true;
  static constexpr int kLeastThreads = 1;  // of a row, whatever its length
  static int64_t area_bytes(const HeadProblem&, const Layout&) { return 0; }
  static int64_t saved_bytes(const HeadProblem&) { return 0; }

  const HeadArguments& a;
  int64_t row;
  State state;

  __device__ Map(const HeadArguments& arguments, int64_t row_, const Group&, char*)
      : a(arguments), row(row_) {}
  __device__ void finish(const State&, bool, bool) {}
  __device__ void save(void*, bool) {}
  __device__ void join_saved(const void*) {}

  template <class Value>
  __device__ void write_each(const Logits<Real>& logits, Value value) const {
    char* out = static_cast<char*>(a.p.out.data) + row * a.p.out.stride * size_of(a.p.out.dtype);
#pragma unroll
    for (int e = 0; e < kItem; ++e)
      if ((logits.live >> e & 1) != 0) store(out, a.p.out.dtype, logits.id(e), value(logits.z[e]));
  }
};

template <class Real, class State_>
struct Reduction {
  using State = State_;
  static constexpr bool kMap = false;
  static constexpr bool kAccumulates = true;
  static constexpr int kLeastThreads = 1;  // of a row, whatever its length
  static int64_t area_bytes(const HeadProblem&, const Layout&) { return 0; }
  static int64_t saved_bytes(const HeadProblem&) { return 0; }

  const HeadArguments& a;
  int64_t row;
  const Group& group;
  State state;

  __device__ Reduction(const HeadArguments& arguments, int64_t row_, const Group& group_, char*)
      : a(arguments), row(row_), group(group_) {}
  __device__ void write(const Logits<Real>&, const State&) {}
  __device__ void save(void*, bool) {}
  __device__ void join_saved(const void*) {}
  __device__ int64_t classes() const { return a.p.codebook.computed(); }
};

}  // namespace fixclf::cuda
