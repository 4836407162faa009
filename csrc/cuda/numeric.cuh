// Scalars on the device: conversions, sign flips, exp and log.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/types.h"

namespace fixclf::cuda {

template <class Real>
constexpr Real kLowest = -__builtin_huge_val();

__device__ inline float nan_of(float) { return __uint_as_float(0x7fffffffu); }
__device__ inline double nan_of(double) { return __longlong_as_double(0x7fffffffffffffffll); }

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(int8_t v) { return static_cast<float>(v); }
__device__ inline float to_float(BFloat16 v) {
  return __uint_as_float(static_cast<uint32_t>(v.bits) << 16);
}
__device__ inline float to_float(Float16 v) { return __half2float(__ushort_as_half(v.bits)); }

// x with its sign flipped where bit, 0 or 1, is set.
__device__ inline float flip(float x, uint32_t bit) {
  return __uint_as_float(__float_as_uint(x) ^ bit << 31);
}
__device__ inline double flip(double x, uint32_t bit) {
  return __longlong_as_double(__double_as_longlong(x) ^
                              static_cast<long long>(static_cast<unsigned long long>(bit) << 63));
}

// The exponent e of |x| = m 2^e, 1 <= m < 2, kept within [-126, 126] ([-1022, 1022]), where both
// 2^e and 2^-e are normal numbers; for a NaN and an infinity the largest.
__device__ inline int exponent_of(float x) {
  const int e = static_cast<int>(__float_as_uint(x) >> 23 & 255) - 127;
  return e < -126 ? -126 : e > 126 ? 126 : e;
}
__device__ inline int exponent_of(double x) {
  const int e = static_cast<int>(__double_as_longlong(x) >> 52 & 2047) - 1023;
  return e < -1022 ? -1022 : e > 1022 ? 1022 : e;
}
// The largest finite number.
__device__ inline float most(float) { return 3.402823466385288598e38f; }
__device__ inline double most(double) { return 1.797693134862315708e308; }

template <class Real>
__device__ inline bool is_nan(Real x) {
  return x != x;
}

// 2^e for a normal result.
__device__ inline float power_of_two(float, int e) {
  return __uint_as_float(static_cast<uint32_t>(e + 127) << 23);
}
__device__ inline double power_of_two(double, int e) {
  return __longlong_as_double(static_cast<long long>(e + 1023) << 52);
}

// e^x; float32: 2^(x log2 e) by the special function unit, of relative error 2^-22 + |x| 2^-24.
__device__ inline float exp_of(float x) { return __expf(x); }
__device__ inline double exp_of(double x) { return exp(x); }

__device__ inline float max_of(float a, float b) { return fmaxf(a, b); }
__device__ inline double max_of(double a, double b) { return fmax(a, b); }
__device__ inline float min_of(float a, float b) { return fminf(a, b); }
__device__ inline double min_of(double a, double b) { return fmin(a, b); }
__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

// log x for normal x > 0, operation by operation as cpu/math-inl.h has it: samples agree.
__device__ inline float log_of(float x) {
  const int32_t root_half = 0x3f3504f3;
  const int32_t shifted = static_cast<int32_t>(__float_as_uint(x)) - root_half;
  const auto exponent = static_cast<float>(shifted >> 23);
  const float m = __uint_as_float(static_cast<uint32_t>((shifted & 0x7fffff) + root_half));
  const float s = (m - 1) / (m + 1);
  const float s2 = s * s;
  float series = fmaf(s2, 2.f / 9, 2.f / 7);
  series = fmaf(series, s2, 2.f / 5);
  series = fmaf(series, s2, 2.f / 3);
  series = fmaf(series * s2, s, s + s);
  return fmaf(exponent, 0.69314718246459960938f, series);
}
__device__ inline double log_of(double x) { return log(x); }

__device__ inline float log1p_of(float x) { return log1pf(x); }
__device__ inline double log1p_of(double x) { return log1p(x); }

__device__ inline double from_real(double v, double) { return v; }
__device__ inline float from_real(float v, float) { return v; }
__device__ inline BFloat16 from_real(float v, BFloat16) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}
__device__ inline Float16 from_real(float v, Float16) {
  return {__half_as_ushort(__float2half_rn(v))};
}

// Stores one value in a floating dtype: float64 for a double, any other for a float.
__device__ inline void store(void* data, DType, int64_t i, double value) {
  static_cast<double*>(data)[i] = value;
}
__device__ inline void store(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::kBFloat16:
      static_cast<BFloat16*>(data)[i] = from_real(value, BFloat16());
      break;
    case DType::kFloat16:
      static_cast<Float16*>(data)[i] = from_real(value, Float16());
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

}  // namespace fixclf::cuda
