// x86-64-v3: AVX2, FMA, F16C. 8 lanes, 16 registers.
#pragma once

#include <immintrin.h>

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

// GCC widens half a register at a time where it is not told the instruction.
struct Short : GenericShort<16> {
  using GenericShort::load;
  using GenericShort::store;
  static FIXCLF_INLINE F load(const int8_t* p) {
    return reinterpret_cast<F>(
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static FIXCLF_INLINE void store(float* p, F v) {
    const auto lanes = reinterpret_cast<__m256i>(v);
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(lanes));
    const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(lanes, 1));
    _mm256_storeu_ps(p, _mm256_cvtepi32_ps(low));
    _mm256_storeu_ps(p + 8, _mm256_cvtepi32_ps(high));
  }
  typedef int32_t Sum __attribute__((vector_size(32)));
  static FIXCLF_INLINE Sum add_squares(Sum sum, F v) {
    const auto lanes = reinterpret_cast<__m256i>(v);
    return sum + reinterpret_cast<Sum>(_mm256_madd_epi16(lanes, lanes));
  }
};

struct Float : Generic<float, 8> {
  using Short = fixclf::Short;
  static constexpr int kCodelet = 3;
  static constexpr int kRadix = 3;

  using Generic::load;
  using Generic::store;
  static FIXCLF_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static FIXCLF_INLINE F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  static FIXCLF_INLINE F difference(F u, F v, F one) { return fnma(v, one, u); }
  static FIXCLF_INLINE F opaque_one() {
    F one = set(1);
    asm("" : "+x"(one));
    return one;
  }
  static FIXCLF_INLINE F held(F v) {
    asm("" : "+x"(v));
    return v;
  }
  static FIXCLF_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static FIXCLF_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  static FIXCLF_INLINE uint32_t bits(I mask) {
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
  }
  static FIXCLF_INLINE F load(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static FIXCLF_INLINE F load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FIXCLF_INLINE void store(Float16* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  // Each lane's bit is shifted to the place of the sign.
  template <int kFirst = 0>
  static FIXCLF_INLINE F flip(F v, uint32_t bits) {
    const __m256i places = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    const __m256i shifted =
        _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(bits >> kFirst)), places);
    return _mm256_xor_ps(
        v, _mm256_and_ps(_mm256_castsi256_ps(shifted), reinterpret_cast<F>(sign_bits())));
  }

  static constexpr int kPowerBits = 3;
  static FIXCLF_INLINE I power(I index) {
    const I powers = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                      0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
    return reinterpret_cast<I>(_mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(powers),
                                                           reinterpret_cast<__m256i>(index)));
  }

  using Generic::load_first;
  using Generic::store_first;
  static FIXCLF_INLINE F load_first(const float* p, int64_t n) {
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p,
                              _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), numbers));
  }
  // By halves: the masked store is microcode on some machines.
  static FIXCLF_INLINE void store_first(float* p, int64_t n, F v) {
    __m128 rest = _mm256_castps256_ps128(v);
    if ((n & 4) != 0) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if ((n & 2) != 0) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if ((n & 1) != 0) _mm_store_ss(p, rest);
  }
};

}  // namespace
}  // namespace fixclf
