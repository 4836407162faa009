// The conversions of cuda_fp16.h that the kernels use, in portable code.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half value) { return value.bits; }
inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const float sign = value.bits >> 15 != 0 ? -1.f : 1.f;
  if (exponent == 31) return mantissa != 0 ? std::nanf("") : sign * HUGE_VALF;
  return sign * (exponent != 0 ? std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25)
                               : std::ldexp(static_cast<float>(mantissa), -24));
}
inline __half __float2half_rn(float value) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const float size = std::fabs(value);
  if (size != size) return {0x7fff};
  if (size == 0) return {sign};
  if (size >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(size, &exponent);  // size = m 2^exponent, 1/2 <= m < 1
  exponent = exponent < -13 ? -13 : exponent;
  // In units of the last place; carries into the exponent by itself.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  return {static_cast<uint16_t>(sign | (((exponent + 13) << 10) + units))};
}
