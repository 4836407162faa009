// Walsh-Hadamard transform of one row, in float32 (or float64):
//
//   y[i] = scale sum_j (-1)^popcount(i & j) x[j],   0 <= i, j < n = 2^k      (natural order)
//
// Cost: n k additions. Up to kBlock elements, ceil((k - log2 W - kCodelet) / kRadix) + 1 passes
// read and write the row in the L1 cache; above, one radix-8 pass per factor of 8 goes through the
// larger caches, and each eighth is finished before the next is begun.
//
// Finite rows give finite results or infinite ones, never NaN: where a sum overflowed, which the
// processor notes at no cost, a row is done again in a smaller unit.
#pragma once

#include "cpu/math-inl.h"
#include "cpu/overflow-inl.h"
#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

// 2^12 floats, half of the smallest L1 cache.
constexpr int kBlockLog2 = 12;

// The stages from kFrom on over 2^R registers.
template <class V, int R, int kFrom = 0>
FIXCLF_INLINE void butterflies(typename V::F (&v)[1 << R], typename V::F one) {
#pragma GCC unroll 8
  for (int stage = kFrom; stage < R; ++stage) {
#pragma GCC unroll 64
    for (int i = 0; i < 1 << R; ++i) {
      if (i >> stage & 1) continue;
      const int j = i | 1 << stage;
      const auto u = v[i];
      v[i] = u + v[j];
      v[j] = V::difference(u, v[j], one);
    }
  }
}

// The stages inside a register: lane l becomes v[l ^ 2^bit] +- v[l].
template <class V, int bit = 0>
FIXCLF_INLINE typename V::F lane_butterflies(typename V::F v, int stages = V::kLog2Width) {
  if constexpr (bit == V::kLog2Width) {
    return v;
  } else {
    if (bit >= stages) return v;
    return lane_butterflies<V, bit + 1>(
        V::fma(v, V::template lane_signs<bit>(), V::template swap_lanes<bit>(v)), stages);
  }
}

// R stages between vectors that lie `stride` elements apart; 2^R * stride elements in all.
// Addresses are a base and 0 to 3 strides: 2^R pointers would not fit in the registers.
template <class V, int R>
FIXCLF_INLINE void radix_pass(const typename V::Real* x, typename V::Real* y, int64_t stride) {
  constexpr int kGroups = R > 2 ? 1 << (R - 2) : 1, kEach = (1 << R) / kGroups;
  const auto one = V::opaque_one();
  const typename V::Real* from[kGroups];
  typename V::Real* to[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
    from[g] = x + g * kEach * stride;
    to[g] = y + g * kEach * stride;
    asm("" : "+r"(from[g]), "+r"(to[g]));
  }
  for (int64_t i = 0; i < stride; i += V::kWidth) {
    typename V::F v[1 << R];
#pragma GCC unroll 64
    for (int j = 0; j < 1 << R; ++j) v[j] = V::load(from[j / kEach] + i + j % kEach * stride);
    butterflies<V, R>(v, one);
#pragma GCC unroll 64
    for (int j = 0; j < 1 << R; ++j) V::store(to[j / kEach] + i + j % kEach * stride, v[j]);
  }
}

// v = the transform of the 2^R vectors at x, in registers; without the stages of the kFirst lowest
// bits, which have been done.
template <class V, int R, int kFirst = 0>
FIXCLF_INLINE void load_codelet(const typename V::Real* x, typename V::F (&v)[1 << R],
                                typename V::F one) {
  constexpr int kLanes = kFirst < V::kLog2Width ? kFirst : V::kLog2Width;
#pragma GCC unroll 64
  for (int j = 0; j < 1 << R; ++j) v[j] = lane_butterflies<V, kLanes>(V::load(x + j * V::kWidth));
  butterflies<V, R, kFirst - kLanes>(v, one);
}

// `count` of them, contiguous.
template <class V, int R, bool kScale, int kFirst = 0, class Out = typename V::Real>
FIXCLF_INLINE void codelets(const typename V::Real* x, Out* y, int64_t count, typename V::F scale) {
  const auto one = V::opaque_one();
  for (; count > 0; --count, x += V::kWidth << R, y += V::kWidth << R) {
    typename V::F v[1 << R];
    load_codelet<V, R, kFirst>(x, v, one);
#pragma GCC unroll 64
    for (int j = 0; j < 1 << R; ++j) V::store(y + j * V::kWidth, kScale ? v[j] * scale : v[j]);
  }
}

// Calls body with the constant that equals `value`, 0 <= value <= kMax.
template <int kMax, class Body>
FIXCLF_INLINE void with_constant(int value, Body body) {
  if constexpr (kMax > 0) {
    if (value < kMax) return with_constant<kMax - 1>(value, body);
  }
  body(std::integral_constant<int, kMax>());
}

// The stages of the bits [low, k) of `count` rows of 2^k elements, in passes of at most radix
// 2^kRadix; 2^low is a vector at least.
template <class V>
FIXCLF_INLINE void radix_passes(const typename V::Real* x, typename V::Real* y, int k, int low,
                                int64_t count = 1) {
  const int64_t n = count << k;
  int64_t length = int64_t{1} << k;
  for (int left = k - low; left > 0;) {
    const int passes = (left + V::kRadix - 1) / V::kRadix;
    const int radix = (left + passes - 1) / passes;
    with_constant<V::kRadix>(radix, [&](auto r) {
      for (int64_t i = 0; i < n; i += length) radix_pass<V, r>(x + i, y + i, length >> r);
    });
    length >>= radix;
    left -= radix;
    x = y;
  }
}

// How many of the `stages` between vectors are left to the codelets: all, or what remains of whole
// passes of radix 2^kRadix. These wait for their stores and may as well do all the additions that
// the registers allow.
template <class V>
FIXCLF_INLINE int codelet_stages(int stages) {
  static_assert(V::kCodelet == V::kRadix, "some stage must remain for the codelets");
  if (stages <= V::kCodelet) return stages;
  return stages - (stages - V::kCodelet + V::kRadix - 1) / V::kRadix * V::kRadix;
}

// `count` transforms of 2^k elements, one after the other in memory.
template <class V, bool kScale, int kFirst = 0>
void transforms(const typename V::Real* x, typename V::Real* y, int k, int64_t count,
                typename V::Real scale) {
  const int64_t n = int64_t{1} << k;
  const int stages = k - V::kLog2Width;
  if (stages < 0) {
    for (int64_t i = 0; i < count; ++i, x += n, y += n) {
      const auto v = lane_butterflies<V>(V::load_first(x, n), k);
      V::store_first(y, n, kScale ? v * scale : v);
    }
    return;
  }
  if (k > kBlockLog2) {
    for (int64_t i = 0; i < count; ++i, x += n, y += n) {
      // Streams that lie a power of two apart meet in the sets of the L1 cache: 8 at most, reads
      // and writes together.
      const int top = x != y ? 2 : k == kBlockLog2 + 1 ? V::kRadix : 3;
      with_constant<V::kRadix>(top, [&](auto r) { radix_pass<V, r>(x, y, n >> r); });
      transforms<V, kScale, kFirst>(y, y, k - top, int64_t{1} << top, scale);
    }
    return;
  }
  const int last = codelet_stages<V>(stages);
  // So many rows at a time as stay in the L1 cache from pass to pass.
  const int64_t most = stages == last ? count : int64_t{1} << (kBlockLog2 - k);
  for (int64_t i = 0; i < count; i += most, x += most << k, y += most << k) {
    const int64_t rows = count - i < most ? count - i : most;
    radix_passes<V>(x, y, k, V::kLog2Width + last, rows);
    with_constant<V::kCodelet>(last, [&](auto r) {
      codelets<V, r, kScale, kFirst>(stages > last ? y : x, y, rows << (stages - last),
                                     V::set(scale));
    });
  }
}

template <class V, bool kScale>
FIXCLF_INLINE void transform(const typename V::Real* x, typename V::Real* y, int k,
                             typename V::Real scale) {
  transforms<V, kScale>(x, y, k, 1, scale);
}

// One row of any dtype into another place; the 16-bit ones pass through `scratch`, n Reals.
template <class V, class T>
FIXCLF_INLINE void transform_row(const T* x, T* y, int k, typename V::Real scale,
                                 typename V::Real* scratch) {
  using Real = typename V::Real;
  const int64_t n = int64_t{1} << k;
  const Real* source;
  Real* target;
  if constexpr (std::is_same_v<T, Real>) {
    source = x;
    target = y;
  } else {
    source = target = scratch;
    for_lanes<V>(n, [&](int64_t i, auto lanes) { lanes.store(target + i, lanes.load(x + i)); });
  }
  if (scale == 1) {
    transform<V, false>(source, target, k, scale);
  } else {
    transform<V, true>(source, target, k, scale);
  }
  if constexpr (!std::is_same_v<T, Real>)
    for_lanes<V>(n, [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(target + i)); });
}

// The same where sums, or the scale, leave the range of Real: the row is transformed multiplied by
// a power of two, and both factors meet in double.
template <class V, class T>
__attribute__((noinline, cold)) void transform_wide_row(const T* x, T* y, int k, double scale,
                                                        typename V::Real* scratch) {
  using F = typename V::F;
  using Real = typename V::Real;
  const int64_t n = int64_t{1} << k;
  F tops = {};
  for_lanes<V>(n, [&](int64_t i, auto lanes) {
    const F value = lanes.load(x + i);
    tops = V::max(V::abs(value), tops);
    lanes.store(scratch + i, value);
  });
  const Real top = V::reduce_max(tops);
  // Sums are at most n top < 2^(k + 1 + the exponent of top).
  constexpr int kHighest = sizeof(Real) == 8 ? __DBL_MAX_EXP__ - 1 : __FLT_MAX_EXP__ - 1;
  const int headroom = top > 0 ? kHighest - 1 - k - __builtin_ilogb(top) : 0;
  const double factor = __builtin_ldexp(1, headroom < 0 ? headroom : 0);
  for_lanes<V>(n, [&](int64_t i, auto lanes) {
    lanes.store(scratch + i, lanes.load(scratch + i) * static_cast<Real>(factor));
  });
  transform<V, false>(scratch, scratch, k, 1);
  for (int64_t i = 0; i < n; ++i)
    scratch[i] = static_cast<Real>(static_cast<double>(scratch[i]) * scale / factor);
  for_lanes<V>(n, [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(scratch + i)); });
}

// Whether no sum of 2^k of these, nor `size` times one, can leave the range of Real.
template <class V>
FIXCLF_INLINE bool stays_small(const typename V::Real* x, int64_t count, int k, double size) {
  typename V::F tops = {};
  for_lanes<V>(count,
               [&](int64_t i, auto lanes) { tops = V::max(V::abs(lanes.load(x + i)), tops); });
  constexpr int kHighest =
      sizeof(typename V::Real) == 8 ? __DBL_MAX_EXP__ - 2 : __FLT_MAX_EXP__ - 2;
  const double top = V::reduce_max(tops);
  return top * (size > 1 ? size : 1) < __builtin_ldexp(1, kHighest - k);
}

// Scratch: n Reals and, in place, as many for a row that is still needed when it was overwritten.
template <class V, class T>
void transform_rows(const TransformProblem& p, int64_t begin, int64_t end, void* scratch) {
  using Real = typename V::Real;
  using Range = NormRange<Real>;
  const int64_t n = p.x.columns;
  const int k = __builtin_ctzll(n);
  const Real scale = static_cast<Real>(p.scale);
  const double size = __builtin_fabs(p.scale);
  // Zero, an infinity and NaN are what they are in Real.
  const bool scale_fits =
      !(size > 0 && size < __builtin_huge_val()) || (size >= Range::kLeast && size <= Range::kMost);
  const bool in_place = p.x.data == p.y.data;
  Real* const spare = static_cast<Real*>(scratch);
  T* const saved = reinterpret_cast<T*>(spare + n);
  const auto x = [&](int64_t row) { return static_cast<const T*>(p.x.data) + row * p.x.stride; };
  const auto y = [&](int64_t row) { return static_cast<T*>(p.y.data) + row * p.y.stride; };
  if (scale_fits && !in_place) {
    clear_overflow();
    if (std::is_same_v<T, Real> && p.x.stride == n && p.y.stride == n) {
      const auto whole = scale == 1 ? transforms<V, false> : transforms<V, true>;
      whole(static_cast<const Real*>(p.x.data) + begin * n,
            static_cast<Real*>(p.y.data) + begin * n, k, end - begin, scale);
    } else {
      for (int64_t row = begin; row < end; ++row) transform_row<V>(x(row), y(row), k, scale, spare);
    }
    if (!overflowed()) return;
  }
  // In place, a look at the rows is cheaper than to save them: where they are too small to
  // overflow, they need not be there for a second time.
  int64_t row = begin;
  if (V::kWidth > 1 && std::is_same_v<T, Real> && scale_fits && in_place && p.x.stride == n &&
      p.y.stride == n) {
    const int64_t most = n < int64_t{1} << kBlockLog2 ? (int64_t{1} << kBlockLog2) / n : 1;
    const auto whole = scale == 1 ? transforms<V, false> : transforms<V, true>;
    for (int64_t rows; row < end; row += rows) {
      rows = end - row < most ? end - row : most;
      Real* const at = static_cast<Real*>(p.y.data) + row * n;
      if (!stays_small<V>(at, rows * n, k, size)) break;
      whole(at, at, k, rows, scale);
    }
  }
  // Whether a row is wide is found on that row alone.
  for (; row < end; ++row) {
    const T* source = x(row);
    if (in_place) {
      memcpy(saved, source, static_cast<size_t>(n) * sizeof(T));
      source = saved;
    }
    if (scale_fits) {
      clear_overflow();
      transform_row<V>(source, y(row), k, scale, spare);
      if (!overflowed()) continue;
    }
    transform_wide_row<V>(source, y(row), k, p.scale, spare);
  }
}

}  // namespace
}  // namespace fixclf
