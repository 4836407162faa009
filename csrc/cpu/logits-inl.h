// The logits of one segment of one row, computed on the fly from its transformed features, and what
// several epilogues do with them.
#pragma once

#include "core/problem.h"
#include "cpu/block-inl.h"
#include "cpu/math-inl.h"

namespace fixclf {
namespace {

// What joins scale y[i]: nothing; the bias; the bias, if there is one, and the mask.
enum Addend { kNothing, kBias, kMasked };

constexpr double kLog2E = 0x1.71547652b82fep0;
// Exponentials of logits up to this one need no maximum: 2^24 of them have a finite sum, and the
// smallest is a normal number.
constexpr double kLargestExponent = 60;

// z[i] = scale y[i] + bias[i] for `count` classes that follow first_class; -inf where the mask
// has no bit.
template <class V, Addend kAddend>
struct Segment {
  using F = typename V::F;
  using Real = typename V::Real;
  static constexpr Real kLowest = -__builtin_huge_val();
  // W x and the scale are finite: only a bias makes a NaN.
  static constexpr bool kMayBeNaN = kAddend != kNothing;
  static constexpr bool kHasMask = kAddend == kMasked;

  Real* y;  // may be overwritten, with whole vectors of padding: `spare` says where to
  Real scale;
  const Real* bias;        // of the first class of this segment
  const uint8_t* allowed;  // of the row
  int64_t allowed_bits;
  int64_t first_class;  // of the classes computed
  int64_t count;
  // Where the epilogue may keep one value a class from one pass to the next; null when the segment
  // will have been recomputed by then. It may be y itself.
  Real* spare;
  // If not negative, y is not transformed to the end: each 2^codelet vectors lack their stages. It
  // starts at row first_row < V::kWidth of the block. Only for epilogues that ask for the logits
  // once (kReadsOnce), with kOnce.
  int codelet = -1;
  int64_t first_row = 0;

  // The classes [begin, begin + size) of the segment, whose y must be complete.
  FIXCLF_INLINE Segment part(int64_t begin, int64_t size) const {
    Segment part = *this;
    part.y += begin;
    if (bias != nullptr) part.bias += begin;
    part.first_class += begin;
    part.count = size;
    part.spare = nullptr;
    return part;
  }

  // body(i, z, lanes); z is `filler` in the lanes beyond the last class. kOnce: y may lack the
  // codelets, and is not there for a second time.
  template <bool kOnce = false, class Body>
  FIXCLF_INLINE void for_logits(Real filler, Body body) const {
    visit<kOnce, false>(filler, body);
  }

  // body(i, exp(z), lanes), and their sum, without the maximum's help: where no |z| is above
  // kLargestExponent.
  template <class Body>
  FIXCLF_INLINE double for_exponentials(Body body) const {
    return visit<false, true>(0, body);
  }

 private:
  // In the order of i. Every closure must be inlined: one that is not keeps in memory what it
  // holds.
  template <bool kOnce, bool kExponential, class Body>
  FIXCLF_INLINE double visit(Real filler, Body body) const {
    // Copies: what body stores might alias the members.
    const Real* const y = this->y;
    const Real* const bias = this->bias;
    const int64_t count = this->count;
    const Real unit = kExponential ? static_cast<Real>(kLog2E) : 1;
    const F factor = V::set(scale * unit);
    LongSum<V> sum;
    const auto add = [&](int64_t i, F v, auto lanes) __attribute__((always_inline)) {
      if (kAddend == kBias || (kAddend == kMasked && bias != nullptr)) {
        v = V::fma(v, factor, kExponential ? lanes.load(bias + i) * unit : lanes.load(bias + i));
      } else {
        v *= factor;
      }
      if (kExponential) v = exp2<V>(v);
      if (kAddend == kMasked)
        v = V::where(bits_from<V>(allowed, first_class + i, allowed_bits), v,
                     V::set(kExponential ? 0 : kLowest));
      v = lanes.keep(v, filler);
      if (kExponential) sum.part += v;
      body(i, v, lanes);
    };
    // Classes whose codelet holds rows that are none of theirs, at either end, come from y.
    const bool open = kOnce && codelet >= 0;
    const int64_t whole = open ? int64_t{V::kWidth} << codelet : count;
    int64_t i = 0, end = !open ? count : first_row > 0 ? whole - first_row : 0;
    if (end > count) end = count;
    if (open && end > 0) finish(0);
    for (;;) {
      while (i + V::kWidth <= end) {
        const int64_t most = i + LongSum<V>::kShort * V::kWidth, last = end < most ? end : most;
#pragma GCC unroll 2
        for (; i + V::kWidth <= last; i += V::kWidth) add(i, V::load(y + i), AllLanes<V>());
        if (kExponential) sum.flush();
      }
      if (i < end) add(i, V::load(y + i), FirstLanes<V>{end - i});
      i = end;
      if (!kOnce || i == count) return kExponential ? sum.value() : 0;
      with_constant<V::kCodelet>(codelet, [&](auto r) __attribute__((always_inline)) {
        constexpr int kStages = decltype(r)::value, kVectors = 1 << kStages;
        if constexpr (kStages > 0) {
          const auto one = V::opaque_one();
          for (; i + whole <= count; i += whole) {
            F v[kVectors];
            load_codelet<V, kStages>(y + i, v, one);
#pragma GCC unroll 16
            for (int j = 0; j < kVectors; ++j) add(i + j * V::kWidth, v[j], AllLanes<V>());
          }
        }
      });
      end = count;
      if (i < count) finish(i);
    }
  }
  // Does the codelet of class i, in place.
  FIXCLF_INLINE void finish(int64_t i) const {
    Real* at = y + i - (i == 0 ? first_row : 0);
    transforms<V, false>(at, at, V::kLog2Width + codelet, 1, 1);
  }

 public:
  // z[i], bit for bit as for_logits computes it.
  FIXCLF_INLINE Real at(int64_t i) const {
    const int64_t bit = first_class + i;
    if (kAddend == kMasked && (allowed[bit / 8] >> bit % 8 & 1) == 0) return kLowest;
    const F value = V::set(y[i]), factor = V::set(scale);
    return (kAddend != kNothing && bias != nullptr ? V::fma(value, factor, V::set(bias[i]))
                                                   : value * factor)[0];
  }
};

// body(part) for the stretches of the segment between the ids, which ascend.
template <class Logits, class Body>
FIXCLF_INLINE void for_others(const Logits& z, const int64_t* ids, int64_t count, Body body) {
  int64_t begin = 0;
  for (int64_t m = 0; begin < z.count; ++m) {
    int64_t end = m < count ? ids[m] - z.first_class : z.count;
    if (end < begin) continue;
    if (end > z.count) end = z.count;
    if (end > begin) body(z.part(begin, end - begin));
    begin = end + 1;
  }
}

// value where z is above -inf, or NaN; 0 elsewhere.
template <class V>
FIXCLF_INLINE typename V::F unless_lowest(typename V::F z, typename V::F value) {
  return z == V::set(static_cast<typename V::Real>(-__builtin_huge_val())) ? typename V::F{}
                                                                           : value;
}

template <class Real>
FIXCLF_INLINE bool is_nan(Real value) {
  return value != value;
}

// Whether a logit is NaN. Takes a copy, so that the loops of its caller keep theirs in registers.
template <class V, class Logits>
__attribute__((noinline, cold)) bool holds_nan(Logits z) {
  bool found = false;
  z.for_logits(z.kLowest, [&](int64_t, typename V::F value, auto) {
    for (int lane = 0; lane < V::kWidth; ++lane) found = found || is_nan(value[lane]);
  });
  return found;
}

// Whether a bias of the classes [begin, end) may be NaN. The sum is then; and for infinities of
// either sign, which costs no more than a look.
template <class V>
__attribute__((noinline)) bool may_hold_nan(const HeadProblem& p, int64_t begin, int64_t end) {
  if (!p.has_bias) return false;
  const auto* bias = static_cast<const typename V::Real*>(p.bias);
  typename V::F sums[4] = {};
  for (; begin + 4 * V::kWidth <= end; begin += 4 * V::kWidth)
    for (int u = 0; u < 4; ++u) sums[u] += V::load(bias + begin + u * V::kWidth);
  for_lanes<V>(end - begin,
               [&](int64_t i, auto lanes) { sums[0] += lanes.load(bias + begin + i); });
  return is_nan(V::reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

// The first class of [begin, end) whose bias, and so whose logit, is NaN and which the mask allows;
// `end` if there is none.
template <class V>
int64_t first_nan(const HeadProblem& p, int64_t row, int64_t begin, int64_t end) {
  const auto* bias = static_cast<const typename V::Real*>(p.bias);
  const uint8_t* allowed = p.allowed_of(row);
  for (int64_t i = begin; i < end; ++i)
    if (is_nan(bias[i]) && (allowed == nullptr || (allowed[i / 8] >> i % 8 & 1) != 0)) return i;
  return end;
}

// Running maximum m and sum of exp(z - m) over segments, in the order in which they come. A NaN
// among the logits makes both NaN; +inf as the maximum makes the sum NaN.
template <class V>
struct LogSumExp {
  using Real = typename V::Real;
  static constexpr Real kLowest = -__builtin_huge_val();

  Real max = kLowest;
  double sum = 0;

  // Passes over NaN.
  template <class Logits>
  FIXCLF_INLINE static Real max_of(const Logits& z) {
    auto running = V::set(kLowest);
    z.for_logits(kLowest,
                 [&](int64_t, typename V::F value, auto) { running = V::max(value, running); });
    return V::reduce_max(running);
  }

  // Returns the largest logit of the segment that is a number.
  template <class Logits>
  FIXCLF_INLINE Real add(const Logits& z) {
    const Real top = max_of(z);
    const Real higher = larger(max, top);
    LongSum<V> terms;
    const auto shift = V::set(higher == kLowest ? 0 : higher);
    z.for_logits(kLowest,
                 [&](int64_t, typename V::F value, auto) { terms.add(exp<V>(value - shift)); });
    sum = relative_to(higher) + terms.value();
    max = higher;
    if (Logits::kMayBeNaN && is_nan(sum) && !is_nan(max) && holds_nan<V>(z))
      max = static_cast<Real>(sum);
    return top;
  }

  FIXCLF_INLINE void merge(const LogSumExp& later) {
    const Real higher = larger(max, later.max);
    sum = relative_to(higher) + later.relative_to(higher);
    max = higher;
  }

  FIXCLF_INLINE double log_of_sum() const { return __builtin_log(sum); }
  FIXCLF_INLINE Real value() const {
    return max == -kLowest ? max : static_cast<Real>(max + log_of_sum());
  }
  // z - logsumexp, precise where |z| is so large that it swallows the logarithm.
  FIXCLF_INLINE Real log_probability(Real z) const {
    return (z - max) - static_cast<Real>(log_of_sum());
  }

 private:
  // NaN if one is.
  static FIXCLF_INLINE Real larger(Real a, Real b) { return a > b || is_nan(a) ? a : b; }
  FIXCLF_INLINE double relative_to(Real higher) const {
    return max == higher ? sum : sum * static_cast<double>(scalar_exp<V>(max - higher));
  }
};

// Sums over the classes of a row go chunk by chunk, each from zero: as threads share a row by
// chunks, its result does not depend on how many there are.
template <class V>
struct ChunkedLogSumExp {
  LogSumExp<V> total, chunk;

  FIXCLF_INLINE void end_chunk() {
    total.merge(chunk);
    chunk = {};
  }
};

// The largest of the values that came, the lowest class on ties; NaN is larger than any number.
// Class 0 if none is above -inf.
template <class V>
struct Best {
  using F = typename V::F;
  using I = typename V::I;
  using Real = typename V::Real;

  Real value = -__builtin_huge_val();
  int64_t id = 0;

  // value_of(i, z) for every logit of the segment. The lanes remember in which vector they rose
  // last; one reduction follows.
  template <class Logits, class ValueOf>
  FIXCLF_INLINE void add(const Logits& z, ValueOf value_of) {
    F best = V::set(value);
    I vector = {}, at = {};
    z.for_logits(z.kLowest, [&](int64_t i, F logit, auto) __attribute__((always_inline)) {
      const F candidate = value_of(i, logit);
      vector = candidate > best ? at : vector;
      best = V::max(candidate, best);
      at += V::kWidth;
    });
    const Real top = V::reduce_max(best);
    if (!(top > value)) return;
    int64_t first = z.count;
    for (int lane = 0; lane < V::kWidth; ++lane) {
      const int64_t i = vector[lane] + lane;
      if (best[lane] == top && i < first) first = i;
    }
    value = top;
    id = z.first_class + first;
  }

  // The logit of this class is NaN; no value that comes later is larger.
  FIXCLF_INLINE void take_nan(int64_t nan_id) {
    value = static_cast<Real>(__builtin_nan(""));
    id = nan_id;
  }

  FIXCLF_INLINE void merge(const Best& later) {
    if (later.value > value || (is_nan(later.value) && !is_nan(value))) *this = later;
  }
};

// How many of `count` elements to write before the stores reach the start of a cache line: where a
// vector is a line, one that crosses costs as much as two. Values do not depend on it.
template <class V, class Out>
FIXCLF_INLINE int64_t to_line(const Out* to, int64_t count) {
  constexpr uint64_t kLine = 64, kBytes = V::kWidth * sizeof(Out);
  const uint64_t over = reinterpret_cast<uint64_t>(to) % kLine;
  if (kBytes != kLine || count < 8 * V::kWidth || over % sizeof(Out) != 0) return 0;
  return static_cast<int64_t>((kLine - over) % kLine / sizeof(Out));
}

// What an epilogue does unless it says otherwise. One object a row; segments come in class order,
// passes(resident) times; a chunk is some blocks of them.
struct EpilogueDefaults {
  static constexpr bool kBackwards = false;  // the segments of a block in reverse
  // Wants to be told where biases are NaN, after start(): its loops don't look for it.
  static constexpr bool kTakesNaN = false;
  void take_nan(int64_t /*id*/) {}
  // Bytes beside the object, for each row.
  static constexpr int64_t scratch(const HeadProblem&) { return 0; }
  static constexpr int passes(bool /*resident*/) { return 1; }
  // Whether for_logits or for_exponentials is called once for each segment of one block.
  static constexpr bool kReadsOnce = false;
  // Whether forbidden classes can matter yet.
  static constexpr bool needs_forbidden() { return false; }
  void end_chunk() {}
  // Called before the first segment of a chunk with the object of the chunk before it, if that one
  // is at hand.
  template <class Same>
  void follow(const Same&) {}
  // Joins the object of the next chunk.
  template <class Same>
  void merge(const Same&) {}
  void finish() {}
};

// A map's row of the output.
template <class V, class Out>
struct MapDefaults : EpilogueDefaults {
  Out* out;
  int64_t columns;

  // False where the row needs no logits; invalid() then writes its results.
  bool start(const HeadProblem& p, int64_t row, void* /*scratch*/) {
    out = static_cast<Out*>(p.out.data) + row * p.out.stride;
    columns = p.out.columns;
    return true;
  }
  // Instead of segments and finish(), for a row that holds a NaN or an infinity.
  void invalid(typename V::Real nan) {
    for_lanes<V>(columns, [&](int64_t i, auto lanes) { lanes.store(out + i, V::set(nan)); });
  }
};

}  // namespace
}  // namespace fixclf
