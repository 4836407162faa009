// x86-64-v4: AVX-512 F, BW, CD, DQ, VL. 16 lanes, 32 registers.
#pragma once

#include <immintrin.h>

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

// GCC widens half a register at a time where it is not told the instruction.
struct Short : GenericShort<32> {
  using GenericShort::load;
  using GenericShort::store;
  static FIXCLF_INLINE F load(const int8_t* p) {
    return reinterpret_cast<F>(
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static FIXCLF_INLINE void store(float* p, F v) {
    const auto lanes = reinterpret_cast<__m512i>(v);
    const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(lanes));
    const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(lanes, 1));
    _mm512_storeu_ps(p, _mm512_cvtepi32_ps(low));
    _mm512_storeu_ps(p + 16, _mm512_cvtepi32_ps(high));
  }
  typedef int32_t Sum __attribute__((vector_size(64)));
  static FIXCLF_INLINE Sum add_squares(Sum sum, F v) {
    const auto lanes = reinterpret_cast<__m512i>(v);
    return sum + reinterpret_cast<Sum>(_mm512_madd_epi16(lanes, lanes));
  }
};

struct Float : Generic<float, 16> {
  using Short = fixclf::Short;
  static constexpr int kCodelet = 4;
  static constexpr int kRadix = 4;

  using Generic::load;
  using Generic::store;
  static FIXCLF_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static FIXCLF_INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static FIXCLF_INLINE F difference(F u, F v, F one) { return fnma(v, one, u); }
  static FIXCLF_INLINE F opaque_one() {
    F one = set(1);
    asm("" : "+v"(one));
    return one;
  }
  static FIXCLF_INLINE F held(F v) {
    asm("" : "+v"(v));
    return v;
  }
  static FIXCLF_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static FIXCLF_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static FIXCLF_INLINE F load(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static FIXCLF_INLINE F load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static FIXCLF_INLINE void store(Float16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  template <int kFirst = 0>
  static FIXCLF_INLINE F flip(F v, uint32_t bits) {
    return _mm512_mask_xor_ps(v, static_cast<__mmask16>(bits >> kFirst), v,
                              reinterpret_cast<F>(sign_bits()));
  }
  static FIXCLF_INLINE uint32_t bits(I mask) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
  }
  static FIXCLF_INLINE F where(uint32_t bits, F v, F other) {
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(bits), v);
  }

  static constexpr int kPowerBits = 5;
  static FIXCLF_INLINE I power(I index) {
    const I low = {0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a,
                   0x3f79c3d3, 0x3f78f4f0, 0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043,
                   0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6};
    const I high = {0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be,
                    0x3f76248c, 0x3f76a81e, 0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907,
                    0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
    return reinterpret_cast<I>(_mm512_permutex2var_epi32(reinterpret_cast<__m512i>(low),
                                                         reinterpret_cast<__m512i>(index),
                                                         reinterpret_cast<__m512i>(high)));
  }

  static FIXCLF_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static FIXCLF_INLINE F load_first(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(first(n), p);
  }
  static FIXCLF_INLINE void store_first(float* p, int64_t n, F v) {
    _mm512_mask_storeu_ps(p, first(n), v);
  }
  template <class Stored>
  static FIXCLF_INLINE F load_first(const Stored* p, int64_t n) {
    Stored lanes[kWidth];
    if constexpr (sizeof(Stored) == 2) {
      const __m256i halves = _mm256_maskz_loadu_epi16(first(n), p);
      memcpy(lanes, &halves, sizeof lanes);
    } else {
      const __m128i bytes = _mm_maskz_loadu_epi8(first(n), p);
      memcpy(lanes, &bytes, sizeof lanes);
    }
    return load(lanes);
  }
  template <class Stored>
  static FIXCLF_INLINE void store_first(Stored* p, int64_t n, F v) {
    Stored lanes[kWidth];
    store(lanes, v);
    __m256i halves;
    memcpy(&halves, lanes, sizeof halves);
    _mm256_mask_storeu_epi16(p, first(n), halves);
  }
  static FIXCLF_INLINE F keep_first(int64_t n, F v, F other) {
    return _mm512_mask_mov_ps(other, first(n), v);
  }
};

}  // namespace
}  // namespace fixclf
