// x86-64-v3: AVX2, FMA, F16C. 8 lanes, 16 registers.
#pragma once

#include <immintrin.h>

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

struct Float : Generic<float, 8> {
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
  static FIXCLF_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  static FIXCLF_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  static FIXCLF_INLINE F load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FIXCLF_INLINE void store(Float16* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace
}  // namespace fixclf
