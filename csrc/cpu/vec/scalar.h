// No vector instructions: the reference for every other ISA, and the only one with float64.
#pragma once

#include "cpu/vec/generic.h"

namespace fixclf {
namespace {

template <class Real>
struct Scalar : Generic<Real, 1> {
  using Short = GenericShort<1>;
  static constexpr int kCodelet = 3;
  static constexpr int kRadix = 3;
};

using Float = Scalar<float>;
using Double = Scalar<double>;
#define FIXCLF_HAS_DOUBLE 1

}  // namespace
}  // namespace fixclf
