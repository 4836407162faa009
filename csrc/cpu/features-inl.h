// One row of features of any dtype: its norm, and the row folded, padded or transformed.
#pragma once

#include "core/problem.h"
#include "cpu/integers-inl.h"
#include "cpu/math-inl.h"

namespace fixclf {
namespace {

template <class V>
int64_t padded_row(int64_t order) {
  return round_up(order, kPad<V>) + kPad<V>;
}

// One Sylvester block without sign flips: a row is folded and transformed while it is read.
FIXCLF_INLINE bool is_direct(const Codebook& cb, DType dtype) {
  return cb.base_order == 1 && cb.signs == nullptr && cb.column_offset == 0 &&
         (is_floating(dtype) || fits_short(dtype, cb.features, log2_ceil(rows_needed(cb, 0))));
}

// Elements of one row of scratch: what is transformed, and room for whole vectors at its end.
template <class V>
int64_t row_stride(const Codebook& cb, DType dtype) {
  if (!is_direct(cb, dtype)) return padded_row<V>(cb.order());
  return padded_row<V>(fold_width<V>(cb.features, int64_t{1} << log2_ceil(rows_needed(cb, 0))));
}

// z = scale y + bias, where y = W x / factor; scale is NaN for a row that holds a NaN or an
// infinity.
template <class V>
struct RowLoader {
  using Real = typename V::Real;
  const HeadProblem& p;
  const bool direct = is_direct(p.codebook, p.x.dtype);
  const int r = direct ? log2_ceil(rows_needed(p.codebook, 0)) : 0;
  // Whether the first pass of the transform goes with the reading of a row.
  const bool joined = direct && is_floating(p.x.dtype) && r <= kBlockLog2 &&
                      r > V::kLog2Width + V::kCodelet &&
                      (p.codebook.features >> r == 1 || p.codebook.features >> r == 2) &&
                      p.codebook.features % (int64_t{1} << r) == 0;
  const double root = p.normalize ? __builtin_sqrt(static_cast<double>(p.codebook.features)) : 1;

  // What codelets() then has to do, where a joined row is loaded without them: 2^codelet vectors
  // each.
  const int codelet = codelet_stages<V>(r - V::kRadix - V::kLog2Width);

  // Returns the scale; leaves the block's rows in y (direct), but for the codelets if `open`, or
  // the padded row in a. One copy for all epilogues.
  __attribute__((noinline)) Real load(int64_t row, Real* a, Real* y, bool open = false) const {
    if constexpr (sizeof(Real) == 8) {
      return load_floating(row_of<double>(row), a, y, open);
    } else {
      switch (p.x.dtype) {
        case DType::kFloat32:
          return load_floating(row_of<float>(row), a, y, open);
        case DType::kBFloat16:
          return load_floating(row_of<BFloat16>(row), a, y, open);
        case DType::kFloat16:
          return load_floating(row_of<Float16>(row), a, y, open);
        default:
          return load_integers(row_of<int8_t>(row), a, y);
      }
    }
  }

 private:
  template <class T>
  FIXCLF_INLINE const T* row_of(int64_t row) const {
    return static_cast<const T*>(p.x.data) + row * p.x.stride;
  }

  template <bool kScaled, class T>
  FIXCLF_INLINE double read(const T* x, Real factor, Real* a, Real* y) const {
    const int64_t features = p.codebook.features;
    if (direct) {
      const int64_t needed = int64_t{1} << r;
      if (joined && features == needed) return fold_and_pass<V, T, kScaled, 1>(x, r, factor, y);
      if (joined) return fold_and_pass<V, T, kScaled, 2>(x, r, factor, y);
      const int64_t width = fold_width<V>(features, needed);
      const double squares = fold<V, T, kScaled>(x, features, width, factor, y);
      fold_in_place<V>(y, width, needed);
      return squares;
    }
    const int64_t offset = p.codebook.column_offset;
    const int64_t width = round_up(p.codebook.order(), kPad<V>);
    const double squares = fold<V, T, kScaled>(x, features, width, factor, a + offset);
    if (offset == 1) a[0] = 0;
    return squares;
  }

  template <class T>
  FIXCLF_INLINE Real load_floating(const T* x, Real* a, Real* y, bool open) const {
    const Real scale = read_in_range(x, a, y);
    if (joined) {
      constexpr int64_t kParts = int64_t{1} << V::kRadix;
      const int k = r - V::kRadix;
      if (open) {
        radix_passes<V>(y, y, k, V::kLog2Width + codelet, kParts);
      } else {
        transforms<V, false>(y, y, k, kParts, 1);
      }
    } else if (direct) {
      transform<V, false>(y, y, r, 1);
    }
    return scale;
  }

  // Powers of two bring rows back whose squares, or whose alpha / norm, would leave the range of
  // Real.
  template <class T>
  FIXCLF_INLINE Real read_in_range(const T* x, Real* a, Real* y) const {
    using Range = NormRange<Real>;
    double squares = read<false>(x, 1, a, y);
    if (!p.normalize && squares <= Range::kHigh) return static_cast<Real>(p.alpha);
    double factor = 1;
    if (!(squares >= Range::kLow && squares <= Range::kHigh)) {
      factor = squares < Range::kLow ? Range::kFactor : 1 / Range::kFactor;
      squares = read<true>(x, static_cast<Real>(factor), a, y);
      if (!(squares <= Range::kHigh)) return static_cast<Real>(__builtin_nan(""));
    }
    if (!p.normalize)
      return read_large(x, __builtin_ilogb(squares) / 2 - __builtin_ilogb(factor), a, y);
    // What follows is of the row times factor, its norm and eps included.
    const double norm = __builtin_sqrt(squares);
    const double divisor = (norm > 1e-12 * factor ? norm : 1e-12 * factor) * root;
    double scale = p.alpha / divisor;
    const double size = __builtin_fabs(scale);
    if (p.alpha != 0 && !(size >= 0x1p-60 && size <= 0x1p60)) {
      const int exponent = __builtin_ilogb(divisor) - __builtin_ilogb(factor);
      const double better = __builtin_ldexp(1, exponent < -120  ? 120
                                               : exponent > 120 ? -120
                                                                : -exponent);
      read<true>(x, static_cast<Real>(better), a, y);
      scale = p.alpha / (divisor * (better / factor));
    }
    return static_cast<Real>(scale);
  }

  // A row without normalisation of so large a norm, about 2^exponent, that sums of its elements may
  // overflow: a power of two brings its norm to kHigh^(1/2). Where the scale is cut off, logits
  // that are no mere rounding errors are beyond the range of Real.
  template <class T>
  Real read_large(const T* x, int exponent, Real* a, Real* y) const {
    using Range = NormRange<Real>;
    const double factor = __builtin_ldexp(1, __builtin_ilogb(Range::kHigh) / 2 - exponent);
    read<true>(x, static_cast<Real>(factor), a, y);
    const double scale = p.alpha / factor;
    return static_cast<Real>(scale > Range::kMost    ? Range::kMost
                             : scale < -Range::kMost ? -Range::kMost
                                                     : scale);
  }

  // Sums and norm are exact: the result does not depend on a common factor of the features.
  FIXCLF_INLINE Real load_integers(const int8_t* x, Real* a, Real* y) const {
    const int64_t features = p.codebook.features;
    double squares;
    if (direct) {
      squares = transform_integers<V>(p.x.dtype, x, features, r, reinterpret_cast<int16_t*>(a), y);
    } else if (p.x.dtype == DType::kInt8) {
      squares = read<false>(x, 1, a, y);
    } else {
      const int64_t offset = p.codebook.column_offset;
      if (offset == 1) a[0] = 0;
      expand_signs<V>(reinterpret_cast<const uint8_t*>(x), features,
                      round_up(p.codebook.order(), kPad<V>), a + offset);
      squares = static_cast<double>(features);
    }
    if (!p.normalize) return static_cast<Real>(p.alpha);
    return squares == 0 ? 0 : static_cast<Real>(p.alpha / (__builtin_sqrt(squares) * root));
  }
};

// The simplex ETF: subtracts from y the mean of the classes' values; returns sqrt(C / (C - 1)).
template <class V>
double center(const Codebook& cb, typename V::Real* y) {
  using F = typename V::F;
  F sum = {};
  typename V::Real* first = y + cb.row_offset;
  for_lanes<V>(cb.classes, [&](int64_t i, auto lanes) { sum += lanes.load(first + i); });
  const F mean = V::set(V::reduce_add(sum) / static_cast<typename V::Real>(cb.classes));
  for_lanes<V>(cb.classes, [&](int64_t i, auto lanes) {
    lanes.store(first + i, lanes.load(first + i) - mean);
  });
  return __builtin_sqrt(static_cast<double>(cb.classes) / static_cast<double>(cb.classes - 1));
}

}  // namespace
}  // namespace fixclf
