// AArch64 Advanced SIMD. 4 lanes, 32 registers.
#pragma once

#include <arm_neon.h>

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

struct Float : Generic<float, 4> {
  using Short = GenericShort<8>;
  static constexpr int kCodelet = 4;
  static constexpr int kRadix = 4;

  using Generic::load;
  using Generic::store;
  static FIXCLF_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static FIXCLF_INLINE F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
  static FIXCLF_INLINE F load(const Float16* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
  }
  static FIXCLF_INLINE void store(Float16* p, F v) {
    vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
};

}  // namespace
}  // namespace fixclf
