// exp on vectors, and the constants that keep a norm in range.
#pragma once

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

// 2^r for |r| <= 1/2: a minimax polynomial of relative error 9.2e-8, exact at 0 and evaluated in
// Estrin's form: the latency of its chain, not the operations, is what limits a loop over
// exponentials.
template <class V>
FIXCLF_INLINE typename V::F power_of_two(typename V::F r) {
  const auto r2 = r * r;
  const auto p01 = V::fma(r, V::set(0x1.62e42ap-1f), V::set(1));
  const auto p23 = V::fma(r, V::set(0x1.c6b752p-5f), V::set(0x1.ebf9bcp-3f));
  const auto p45 = V::fma(r, V::set(0x1.5bba14p-10f), V::set(0x1.3cea88p-7f));
  return V::fma(r2, V::fma(r2, p45, p23), p01);
}

// e^x for x <= 88: exactly 0 below -88 (-inf included); NaN stays NaN. float32: 2^(k + r) with k
// the integer nearest to x log2(e), |r| <= 1/2.
template <class V>
FIXCLF_INLINE typename V::F exp(typename V::F x) {
  using F = typename V::F;
  using I = typename V::I;
  if constexpr (sizeof(typename V::Real) == 8) {
    return V::set(__builtin_exp(x[0]));
  } else {
    const F log2e = V::set(0x1.715476p0f);
    const F shift = V::set(0x1.8p23f + 127);  // low mantissa bits of x log2(e) + shift: k + 127
    x = V::max(V::set(-88.0296919f), x);      // k >= -127, where the factor 2^k comes out as 0
    const F shifted = V::fma(x, log2e, shift);
    const F r = V::fma(x, log2e, shift - shifted);
    const I scale = reinterpret_cast<I>(shifted) << 23;
    return power_of_two<V>(r) * reinterpret_cast<F>(scale);
  }
}

// 2^x for |x| <= 120; NaN stays NaN. float32: x = k + j / 2^P + r with |r| <= 2^-(P + 1); 2^(j /
// 2^P) is looked up and 2^r a minimax polynomial, exact at 0: relative errors 9.2e-8 (P =
// 0), 2.7e-8 (P = 3) and 5.4e-8 (P = 5), before rounding.
template <class V>
FIXCLF_INLINE typename V::F exp2(typename V::F x) {
  using F = typename V::F;
  using I = typename V::I;
  if constexpr (sizeof(typename V::Real) == 8) {
    return V::set(__builtin_exp2(x[0]));
  } else {
    constexpr int kBits = V::kPowerBits;
    static_assert(kBits == 0 || kBits == 3 || kBits == 5, "there is no polynomial for this table");
    // The low mantissa bits of x + shift: 2^P k + j, and the exponent's bias where no table has it.
    const F shift = V::set(1.5f * (1 << (23 - kBits)) + (kBits == 0 ? 127 : 0));
    const F shifted = x + shift;
    const F r = x - (shifted - shift);
    F p;
    if constexpr (kBits == 5) {
      p = V::fma(r, V::set(0x1.ebfbdep-3f), V::set(0x1.62e584p-1f));
      p = V::fma(r, p, V::set(1));
    } else if constexpr (kBits == 3) {
      p = V::fma(r, V::set(0x1.c6a004p-5f), V::set(0x1.ec0c32p-3f));
      p = V::fma(r, p, V::set(0x1.62e432p-1f));
      p = V::fma(r, p, V::set(1));
    } else {
      p = power_of_two<V>(r);
    }
    // Unsigned, as a NaN's bits overflow.
    using U = typename V::U;
    const U power = (reinterpret_cast<U>(shifted) << (23 - kBits)) +
                    reinterpret_cast<U>(V::power(reinterpret_cast<I>(shifted)));
    return p * reinterpret_cast<F>(power);
  }
}

template <class V>
FIXCLF_INLINE typename V::Real scalar_exp(typename V::Real x) {
  return exp<V>(V::set(x))[0];
}

// log x for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and the Taylor series of
// 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172, to s^9: relative error below 1e-7.
template <class V>
FIXCLF_INLINE typename V::F log(typename V::F x) {
  using F = typename V::F;
  using I = typename V::I;
  if constexpr (sizeof(typename V::Real) == 8) {
    return V::set(__builtin_log(x[0]));
  } else {
    const I root_half = I{} + 0x3f3504f3;
    const I shifted = reinterpret_cast<I>(x) - root_half;
    const F exponent = V::from_int(shifted >> 23);
    const F m = reinterpret_cast<F>((shifted & 0x7fffff) + root_half);
    const F s = (m - 1) / (m + 1);
    const F s2 = s * s;
    F series = V::fma(s2, V::set(2.f / 9), V::set(2.f / 7));
    series = V::fma(series, s2, V::set(2.f / 5));
    series = V::fma(series, s2, V::set(2.f / 3));
    series = V::fma(series * s2, s, s + s);
    return V::fma(exponent, V::set(0x1.62e430p-1f), series);
  }
}

// log(1 + q) for q >= 0, precise where q is small: the rounding of 1 + q is divided out (Kahan).
template <class V>
FIXCLF_INLINE typename V::F log1p(typename V::F q) {
  const auto sum = 1 + q, rounded = sum - 1;
  return rounded > 0 ? log<V>(sum) * q / rounded : q;
}

// 1 / (1 + e^-x); e^-x is kept from overflow.
template <class V>
FIXCLF_INLINE typename V::F sigmoid(typename V::F x) {
  const auto one = V::set(1);
  return one / (one + exp<V>(V::min(V::set(88), -x)));
}

// A sum of squares within [kLow, kHigh] is accurate: nothing that overflowed, and nothing that
// underflowed and mattered. Otherwise the row is multiplied by kFactor or its inverse first.
template <class Real>
struct NormRange;
template <>
struct NormRange<float> {
  static constexpr float kLow = 0x1p-60f, kHigh = 0x1p120f, kFactor = 0x1p90f;
  static constexpr float kLeast = __FLT_MIN__, kMost = __FLT_MAX__;  // of the normal numbers
};
template <>
struct NormRange<double> {
  static constexpr double kLow = 0x1p-500, kHigh = 0x1p1000, kFactor = 0x1p600;
  static constexpr double kLeast = __DBL_MIN__, kMost = __DBL_MAX__;
};

}  // namespace
}  // namespace fixclf
