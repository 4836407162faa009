// Whether a result was too large for its floating-point type: processors note it in a flag that
// stays until it is cleared. It costs a loop nothing; clearing and reading it, a few cycles.
#pragma once

#include "core/types.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace fixclf {
namespace {

// Arithmetic on memory stays on its side of such a line.
#define FIXCLF_MEMORY_FENCE asm volatile("" ::: "memory")

FIXCLF_INLINE bool overflowed() {
  FIXCLF_MEMORY_FENCE;
#if defined(__x86_64__)
  return (_mm_getcsr() & _MM_EXCEPT_OVERFLOW) != 0;
#elif defined(__aarch64__)
  uint64_t status;
  asm volatile("mrs %0, fpsr" : "=r"(status));
  return (status & 4) != 0;
#else
  return fetestexcept(FE_OVERFLOW) != 0;
#endif
}

FIXCLF_INLINE void clear_overflow() {
  if (overflowed()) {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() & ~static_cast<unsigned>(_MM_EXCEPT_OVERFLOW));
#elif defined(__aarch64__)
    uint64_t status;
    asm volatile("mrs %0, fpsr" : "=r"(status));
    asm volatile("msr fpsr, %0" : : "r"(status & ~uint64_t{4}));
#else
    feclearexcept(FE_OVERFLOW);
#endif
  }
  FIXCLF_MEMORY_FENCE;
}

#undef FIXCLF_MEMORY_FENCE

}  // namespace
}  // namespace fixclf
