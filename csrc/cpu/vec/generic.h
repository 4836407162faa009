// Vectors of kWidth lanes, written once on GNU vector extensions. An ISA header derives from
// Generic and replaces what its instruction set does better.
//
// Nothing here may have external linkage: every ISA compiles its own copy of this file, and one
// shared symbol would let the linker keep an AVX-512 body for a machine that has none. Hence the
// anonymous namespace, and no function of the standard library that could be emitted out of line.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "core/types.h"

namespace fixclf {
namespace {

// Spelled out for each width: GCC loses the vector attribute on types of dependent size.
template <class Real, int kWidth>
struct Types;
#define FIXCLF_TYPES(RealT, IntT, width)                                            \
  template <>                                                                       \
  struct Types<RealT, width> {                                                      \
    typedef IntT Int;                                                               \
    typedef RealT F __attribute__((vector_size(sizeof(RealT) * width)));            \
    typedef IntT I __attribute__((vector_size(sizeof(RealT) * width)));             \
    typedef double D __attribute__((vector_size(width == 1 ? 8 : 4 * width)));      \
    typedef RealT HalfF                                                             \
        __attribute__((vector_size(sizeof(RealT) * (width == 1 ? 1 : width / 2)))); \
    typedef int32_t S __attribute__((vector_size(4 * width)));                      \
    typedef uint32_t U __attribute__((vector_size(4 * width)));                     \
    typedef uint16_t H __attribute__((vector_size(2 * width)));                     \
    typedef int16_t Q __attribute__((vector_size(2 * width)));                      \
    typedef int8_t B __attribute__((vector_size(width)));                           \
  };
FIXCLF_TYPES(double, int64_t, 1)
FIXCLF_TYPES(float, int32_t, 1)
FIXCLF_TYPES(float, int32_t, 4)
FIXCLF_TYPES(float, int32_t, 8)
FIXCLF_TYPES(float, int32_t, 16)
FIXCLF_TYPES(int16_t, int16_t, 1)
FIXCLF_TYPES(int16_t, int16_t, 8)
FIXCLF_TYPES(int16_t, int16_t, 16)
FIXCLF_TYPES(int16_t, int16_t, 32)
#undef FIXCLF_TYPES

template <class RealT, int kWidthT>
struct Generic {
  using Real = RealT;
  static constexpr int kWidth = kWidthT;
  static constexpr int kLog2Width = __builtin_ctz(kWidth);
  using T = Types<Real, kWidth>;
  using Int = typename T::Int;
  using F = typename T::F;  // of Real
  using I = typename T::I;  // of integers as wide
  using D = typename T::D;  // of double, half as many: a register
  using S = typename T::S;  // of int32_t
  using U = typename T::U;  // of uint32_t
  using H = typename T::H;  // of uint16_t, for the 16-bit dtypes
  using Q = typename T::Q;  // of int16_t
  using B = typename T::B;  // of int8_t

  static FIXCLF_INLINE F set(Real value) { return F{} + value; }
  static FIXCLF_INLINE F load(const Real* p) {
    F v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static FIXCLF_INLINE void store(Real* p, F v) { memcpy(p, &v, sizeof v); }

  // a * b + c, and c - a * b; rounded once where the ISA has a fused instruction.
  static FIXCLF_INLINE F fma(F a, F b, F c) { return a * b + c; }
  static FIXCLF_INLINE F fnma(F a, F b, F c) { return c - a * b; }

  // u - v. Where the ISA has one, a fused multiply by a `one` that the compiler cannot see through:
  // it computes the same bits on the FMA pipe, while the additions have the add pipe to themselves.
  static FIXCLF_INLINE F difference(F u, F v, F /*one*/) { return u - v; }
  static FIXCLF_INLINE F opaque_one() { return set(1); }
  // v, kept in its register: a compiler may prefer to load it again at every use.
  static FIXCLF_INLINE F held(F v) { return v; }

  // A NaN in `b` survives.
  static FIXCLF_INLINE F max(F a, F b) { return a > b ? a : b; }
  static FIXCLF_INLINE F min(F a, F b) { return a < b ? a : b; }
  static FIXCLF_INLINE F abs(F v) {
    return reinterpret_cast<F>(reinterpret_cast<I>(v) & ~sign_bits());
  }
  static FIXCLF_INLINE I sign_bits() {
    return I{} + static_cast<Int>(Int{1} << (8 * sizeof(Int) - 1));
  }
  // The bits of 2^(j / 2^kPowerBits) - (j << 23 - kPowerBits) for the lowest kPowerBits bits j of a
  // lane, where a permutation of a register can look them up; see exp2() in math-inl.h.
  static constexpr int kPowerBits = 0;
  static FIXCLF_INLINE I power(I) { return I{}; }

  static FIXCLF_INLINE F from_int(I v) { return __builtin_convertvector(v, F); }

  // The lane that differs from this one in `bit` of its number.
  template <int bit>
  static FIXCLF_INLINE F swap_lanes(F v) {
    return swap_lanes_impl<bit>(v, std::make_integer_sequence<int, kWidth>());
  }
  // +1 in lanes with `bit` clear, -1 where it is set.
  template <int bit>
  static FIXCLF_INLINE F lane_signs() {
    return lane_signs_impl<bit>(std::make_integer_sequence<int, kWidth>());
  }

  static FIXCLF_INLINE Real reduce_add(F v) { return reduce_add_impl<0>(v)[0]; }
  // sum + the upper half of v + its lower half, in double.
  static FIXCLF_INLINE D add_double(D sum, F v) {
    typename T::HalfF halves[kWidth == 1 ? 1 : 2];
    memcpy(halves, &v, sizeof v);
    if constexpr (kWidth > 1) sum += __builtin_convertvector(halves[1], D);
    return sum + __builtin_convertvector(halves[0], D);
  }
  static FIXCLF_INLINE double reduce_add_double(D v) {
    constexpr int kLanes = sizeof(D) / sizeof(double);
    double lanes[kLanes];
    memcpy(lanes, &v, sizeof v);
#pragma GCC unroll 8
    for (int n = kLanes / 2; n > 0; n /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
    return lanes[0];
  }
  static FIXCLF_INLINE Real reduce_max(F v) { return reduce_max_impl<0>(v)[0]; }

  // Flips the sign of every lane whose bit is set: lane 0 has bit `first`, lane 1 the next.
  template <int first = 0>
  static FIXCLF_INLINE F flip(F v, uint32_t bits) {
    const I lane_bit = lane_bits<first>(std::make_integer_sequence<int, kWidth>());
    const I minus = ((I{} + static_cast<Int>(bits)) & lane_bit) == lane_bit;
    return reinterpret_cast<F>(reinterpret_cast<I>(v) ^ (minus & sign_bits()));
  }

  // One bit a lane from a comparison, lane 0 lowest.
  static FIXCLF_INLINE uint32_t bits(I mask) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kWidth; ++lane) bits |= (mask[lane] & 1u) << lane;
    return bits;
  }
  // v where the lane's bit is set, `other` elsewhere.
  static FIXCLF_INLINE F where(uint32_t bits, F v, F other) {
    const I lane_bit = lane_bits<0>(std::make_integer_sequence<int, kWidth>());
    return ((I{} + static_cast<Int>(bits)) & lane_bit) == lane_bit ? v : other;
  }
  // 0, 1, 2, ...
  static FIXCLF_INLINE U lane_numbers() {
    return lane_numbers_impl(std::make_integer_sequence<int, kWidth>());
  }

  static FIXCLF_INLINE F load(const int8_t* p) {
    B bytes;
    memcpy(&bytes, p, sizeof bytes);
    if constexpr (sizeof(Real) == 2) {
      return __builtin_convertvector(bytes, F);
    } else {
      return __builtin_convertvector(__builtin_convertvector(bytes, S), F);
    }
  }

  // Other dtypes. bfloat16 is the upper half of a float; rounding is to nearest even.
  static FIXCLF_INLINE F load(const BFloat16* p) {
    H half;
    memcpy(&half, p, sizeof half);
    return reinterpret_cast<F>(__builtin_convertvector(half, U) << 16);
  }
  static FIXCLF_INLINE void store(BFloat16* p, F v) {
    const U bits = reinterpret_cast<U>(v);
    U rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    rounded = (bits & 0x7fffffff) > 0x7f800000 ? U{} + 0x7fc0 : rounded;
    const H half = __builtin_convertvector(rounded, H);
    memcpy(p, &half, sizeof half);
  }
  // float16 without conversion instructions: the exponent is rebiased by a multiplication, which
  // also normalises subnormals exactly.
  static FIXCLF_INLINE F load(const Float16* p) {
    H half;
    memcpy(&half, p, sizeof half);
    const U bits = __builtin_convertvector(half, U);
    const U magnitude = (bits & 0x7fff) << 13;
    const F scaled = reinterpret_cast<F>(magnitude) * 0x1p112f;
    const U special = reinterpret_cast<U>(scaled) | 0x7f800000;
    const U finite_or_not = (bits & 0x7c00) == 0x7c00 ? special : reinterpret_cast<U>(scaled);
    return reinterpret_cast<F>(finite_or_not | (bits & 0x8000) << 16);
  }
  static FIXCLF_INLINE void store(Float16* p, F v) {
    const U bits = reinterpret_cast<U>(v);
    const U magnitude = bits & 0x7fffffff;
    // Subnormal results: adding 0.5 leaves the rounded significand in the low bits.
    const U subnormal = reinterpret_cast<U>(reinterpret_cast<F>(magnitude) + 0.5f) - 0x3f000000;
    const U normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    U rounded = magnitude < 0x38800000 ? subnormal : normal;
    rounded = magnitude >= 0x477ff000 ? U{} + 0x7c00 : rounded;
    rounded = magnitude > 0x7f800000 ? U{} + 0x7e00 : rounded;
    const H half = __builtin_convertvector(rounded | (bits >> 16 & 0x8000), H);
    memcpy(p, &half, sizeof half);
  }

  // The first n lanes; the others are read as zero and never written.
  template <class Stored>
  static FIXCLF_INLINE F load_first(const Stored* p, int64_t n) {
    Stored lanes[kWidth] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  template <class Stored>
  static FIXCLF_INLINE void store_first(Stored* p, int64_t n, F v) {
    Stored lanes[kWidth];
    store(lanes, v);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
  // v in the first n lanes, `other` behind them.
  static FIXCLF_INLINE F keep_first(int64_t n, F v, F other) {
    const I numbers = __builtin_convertvector(lane_numbers(), I);
    return numbers < static_cast<Int>(n) ? v : other;
  }

 private:
  template <int bit, int... lane>
  static FIXCLF_INLINE F swap_lanes_impl(F v, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(v, v, (lane ^ (1 << bit))...);
  }
  template <int bit, int... lane>
  static FIXCLF_INLINE F lane_signs_impl(std::integer_sequence<int, lane...>) {
    return F{static_cast<Real>(lane >> bit & 1 ? -1 : 1)...};
  }
  template <int first, int... lane>
  static FIXCLF_INLINE I lane_bits(std::integer_sequence<int, lane...>) {
    return I{static_cast<Int>(1u << (first + lane))...};
  }
  template <int... lane>
  static FIXCLF_INLINE U lane_numbers_impl(std::integer_sequence<int, lane...>) {
    return U{static_cast<uint32_t>(lane)...};
  }
  template <int bit>
  static FIXCLF_INLINE F reduce_add_impl(F v) {
    if constexpr (bit == kLog2Width) {
      return v;
    } else {
      return reduce_add_impl<bit + 1>(v + swap_lanes<bit>(v));
    }
  }
  template <int bit>
  static FIXCLF_INLINE F reduce_max_impl(F v) {
    if constexpr (bit == kLog2Width) {
      return v;
    } else {
      return reduce_max_impl<bit + 1>(max(v, swap_lanes<bit>(v)));
    }
  }
};

// Integer sums in int16_t, for transforms of small integers.
template <int kWidthT>
struct GenericShort : Generic<int16_t, kWidthT> {
  using F = typename Generic<int16_t, kWidthT>::F;
  using S = typename Generic<int16_t, kWidthT>::S;
  static constexpr int kCodelet = 3;
  static constexpr int kRadix = 3;

  using Generic<int16_t, kWidthT>::store;
  // By halves: GCC takes vectors wider than a register through the stack.
  static FIXCLF_INLINE void store(float* p, F v) {
    if constexpr (kWidthT == 1) {
      *p = v[0];
    } else {
      using Half = Types<float, kWidthT / 2>;
      typename Half::Q halves[2];
      memcpy(halves, &v, sizeof v);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const auto wide = __builtin_convertvector(
            __builtin_convertvector(halves[i], typename Half::S), typename Half::F);
        memcpy(p + i * kWidthT / 2, &wide, sizeof wide);
      }
    }
  }

  // sum + v^2 in int32_t; how lanes meet is the instruction set's choice, only their total counts.
  using Sum = S;
  static FIXCLF_INLINE Sum add_squares(Sum sum, F v) {
    const S wide = __builtin_convertvector(v, S);
    return sum + wide * wide;
  }
};

// How many lanes of a vector count: all of them, or the first n at the end of a row.
template <class V>
struct AllLanes {
  static FIXCLF_INLINE int count() { return V::kWidth; }
  template <class T>
  FIXCLF_INLINE typename V::F load(const T* p) const {
    return V::load(p);
  }
  template <class T>
  FIXCLF_INLINE void store(T* p, typename V::F v) const {
    V::store(p, v);
  }
  FIXCLF_INLINE typename V::F keep(typename V::F v, typename V::Real) const { return v; }
};
template <class V>
struct FirstLanes {
  int64_t n;
  FIXCLF_INLINE int count() const { return static_cast<int>(n); }
  template <class T>
  FIXCLF_INLINE typename V::F load(const T* p) const {
    return V::load_first(p, n);
  }
  template <class T>
  FIXCLF_INLINE void store(T* p, typename V::F v) const {
    V::store_first(p, n, v);
  }
  // The lanes that do not count become `other`.
  FIXCLF_INLINE typename V::F keep(typename V::F v, typename V::Real other) const {
    return V::keep_first(n, v, V::set(other));
  }
};

// A long sum: kShort vectors at a time in the accumulation dtype, then in double. Without the
// second level the rounding errors of many like terms add up, all with the same sign.
template <class V>
struct LongSum {
  static constexpr int kShort = 16;

  FIXCLF_INLINE void add(typename V::F v) {
    part += v;
    if (++terms == kShort) flush();
  }
  FIXCLF_INLINE void flush() {
    total = V::add_double(total, part);
    part = typename V::F{};
    terms = 0;
  }
  FIXCLF_INLINE double value() {
    flush();
    return V::reduce_add_double(total);
  }

  typename V::F part = {};
  typename V::D total = {};
  int terms = 0;
};

// body(i, lanes) for i = 0, W, 2W, ... up to count.
template <class V, class Body>
FIXCLF_INLINE void for_lanes(int64_t count, Body body) {
  int64_t i = 0;
#pragma GCC unroll 2
  for (; i + V::kWidth <= count; i += V::kWidth) body(i, AllLanes<V>());
  if (i < count) body(i, FirstLanes<V>{count - i});
}

}  // namespace
}  // namespace fixclf
