// x86-64-v4: AVX-512 F, BW, CD, DQ, VL. 16 lanes, 32 registers.
#pragma once

#include <immintrin.h>

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

struct Float : Generic<float, 16> {
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
  static FIXCLF_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static FIXCLF_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static FIXCLF_INLINE F load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static FIXCLF_INLINE void store(Float16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace
}  // namespace fixclf
