// v4's shape, 16 lanes and radix 16, on whatever vectors this machine has: the AVX-512 unit's
// source is tested where there is no AVX-512.
#pragma once

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

struct Float : Generic<float, 16> {
  using Short = GenericShort<32>;
  static constexpr int kCodelet = 4;
  static constexpr int kRadix = 4;
};

}  // namespace
}  // namespace fixclf
