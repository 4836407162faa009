// x86-64-v2: SSE4.2. 4 lanes, 16 registers, no FMA.
#pragma once

#include <smmintrin.h>

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

struct Float : Generic<float, 4> {
  using Short = GenericShort<8>;
  static constexpr int kCodelet = 3;
  static constexpr int kRadix = 3;

  static FIXCLF_INLINE uint32_t bits(I mask) {
    return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
  }
  static FIXCLF_INLINE F max(F a, F b) { return _mm_max_ps(a, b); }
  static FIXCLF_INLINE F min(F a, F b) { return _mm_min_ps(a, b); }
};

}  // namespace
}  // namespace fixclf
