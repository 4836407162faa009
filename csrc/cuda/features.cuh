// One row of features of any dtype: 32 of them with 16-byte loads where the row is aligned, and its
// norm. Bytes moved: the row, once from memory; later reads find it in the L1 cache, which costs
// less than 32 registers to keep it. Integers are exact in float32.
#pragma once

#include "core/problem.h"
#include "cuda/hadamard.cuh"

namespace fixclf::cuda {

template <class T, class Real>
__device__ inline void load_as(const T* x, int64_t first, int64_t count, Real (&v)[kItem]) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const T* from = x + first;
  if (first >= 0 && first + kItem <= count && (reinterpret_cast<uintptr_t>(from) & 15) == 0) {
#pragma unroll
    for (int i = 0; i < kItem / kVector; ++i) {
      union {
        uint4 vector;
        T values[kVector];
      } loaded;
      loaded.vector = __ldg(reinterpret_cast<const uint4*>(from) + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if constexpr (sizeof(Real) == 8) {
          v[i * kVector + j] = loaded.values[j];
        } else {
          v[i * kVector + j] = to_float(loaded.values[j]);
        }
      }
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kItem; ++e) {
    const bool inside = first + e >= 0 && first + e < count;
    if constexpr (sizeof(Real) == 8) {
      v[e] = inside ? from[e] : 0;
    } else {
      v[e] = inside ? to_float(from[e]) : 0;
    }
  }
}

// 32 packed bits from bit `first` on, a multiple of 8; those at or beyond `count` are 0 or padding.
__device__ inline uint32_t load_bits(const uint8_t* packed, int64_t first, int64_t count) {
  const uint8_t* from = packed + first / 8;
  if (first + 32 <= count && (reinterpret_cast<uintptr_t>(from) & 3) == 0)
    return __ldg(reinterpret_cast<const uint32_t*>(from));
  uint32_t bits = 0;
  for (int i = 0; i < 4 && first + 8 * i < count; ++i)
    bits |= static_cast<uint32_t>(from[i]) << 8 * i;
  return bits;
}

// v[e] = x[first + e], 0 outside of [0, count). first may be -1, and is a multiple of 32 otherwise.
template <class Real>
__device__ inline void load_item(const void* x, DType dtype, int64_t first, int64_t count,
                                 Real (&v)[kItem]) {
  if constexpr (sizeof(Real) == 8) {
    load_as(static_cast<const double*>(x), first, count, v);
  } else {
    switch (dtype) {
      case DType::kFloat32:
        return load_as(static_cast<const float*>(x), first, count, v);
      case DType::kBFloat16:
        return load_as(static_cast<const BFloat16*>(x), first, count, v);
      case DType::kFloat16:
        return load_as(static_cast<const Float16*>(x), first, count, v);
      case DType::kInt8:
        return load_as(static_cast<const int8_t*>(x), first, count, v);
      default: {
        const auto* packed = static_cast<const uint8_t*>(x);
#pragma unroll
        for (int e = 0; e < kItem; ++e) {
          const int64_t i = first + e;
          v[e] = i >= 0 && i < count ? flip(1.f, __ldg(packed + i / 8) >> i % 8 & 1) : 0.f;
        }
      }
    }
  }
}

// One feature.
template <class Real>
__device__ inline Real load_one(const void* x, DType dtype, int64_t i) {
  if constexpr (sizeof(Real) == 8) {
    return static_cast<const double*>(x)[i];
  } else {
    switch (dtype) {
      case DType::kFloat32:
        return static_cast<const float*>(x)[i];
      case DType::kBFloat16:
        return to_float(static_cast<const BFloat16*>(x)[i]);
      case DType::kFloat16:
        return to_float(static_cast<const Float16*>(x)[i]);
      case DType::kInt8:
        return to_float(static_cast<const int8_t*>(x)[i]);
      default:
        return flip(1.f, static_cast<const uint8_t*>(x)[i / 8] >> i % 8 & 1);
    }
  }
}

// s 4^exponent, s = 0 or within [1, 4 count): a sum of squares that neither overflows nor
// underflows. NaN where a summand is NaN or infinite.
struct Squares {
  double sum;
  int exponent;
  int unused;

  __device__ static Squares join(const Squares& a, const Squares& b) {
    const int top = a.exponent > b.exponent ? a.exponent : b.exponent;
    return {a.sum * shrink(a.exponent - top) + b.sum * shrink(b.exponent - top), top, 0};
  }

 private:
  // 4^e, 0 where nothing of it would count.
  __device__ static double shrink(int e) { return e < -250 ? 0 : power_of_two(0., 2 * e); }
};

template <class Real>
__device__ inline Squares squares_of(const Real (&v)[kItem]) {
  Real top = 0;
  bool finite = true;
#pragma unroll
  for (int e = 0; e < kItem; ++e) {
    const Real size = v[e] < 0 ? -v[e] : v[e];
    finite = finite && size - size == 0;
    top = size > top ? size : top;
  }
  const int exponent = exponent_of(top);
  const Real factor = power_of_two(Real(), -exponent);
  Real sums[4] = {};
#pragma unroll
  for (int e = 0; e < kItem; ++e) {
    const Real scaled = v[e] * factor;
    sums[e % 4] = fused(scaled, scaled, sums[e % 4]);
  }
  const Real sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return {finite ? static_cast<double>(sum) : nan_of(0.), exponent, 0};
}

// One row as the transforms take it: features times `factor`, a power of two that brings the
// largest near 1 (without normalisation: that keeps sums within the range). Logits are scale W
// (factor x) + bias; scale is NaN for a row that holds a NaN or an infinity.
template <class Real>
struct Row {
  const void* x;
  DType dtype;
  int64_t features;
  int64_t offset;  // column_offset
  Real factor = 1;
  Real scale = 1;

  static constexpr int kMostExponent = sizeof(Real) == 8 ? 1022 : 126;  // of exponent_of
  // Without normalisation: from which size of a row's largest element on it is made smaller.
  static constexpr int kLargeExponent = sizeof(Real) == 8 ? 500 : 60;
  static constexpr int kCalmExponent = sizeof(Real) == 8 ? 400 : 40;

  __device__ Row(const Codebook& cb, const ConstMatrix& matrix, int64_t row)
      : x(static_cast<const char*>(matrix.data) + row * matrix.stride * size_of(matrix.dtype)),
        dtype(matrix.dtype),
        features(cb.features),
        offset(cb.column_offset) {}

  // Every thread of the group calls it; alpha lies on the device.
  __device__ void normalise(const Group& group, const Real* alpha, bool by_norm) {
    Squares squares{0, -1022, 0};
    for (int64_t first = kItem * group.rank(); first < features; first += kItem * group.threads()) {
      Real v[kItem];
      load_item(x, dtype, first, features, v);
      squares = Squares::join(squares, squares_of(v));
    }
    squares = group.reduce(squares, Squares::join);
    const double size = *alpha;
    scale = static_cast<Real>(size);
    if (by_norm && squares.sum != 0) {
      const double root = sqrt(static_cast<double>(features));
      const double eps = 1e-12 * power_of_two(0., -squares.exponent);
      const double norm = sqrt(squares.sum);
      factor = power_of_two(Real(), -squares.exponent);
      scale = static_cast<Real>(size / ((norm > eps ? norm : eps) * root));
    } else if (by_norm) {
      scale = 0;
    } else if (squares.exponent > kLargeExponent) {
      // Sums of such elements may overflow: 2^kCalmExponent becomes the largest's size. Where the
      // scale is cut off, logits that are no mere rounding errors are beyond the range of Real.
      const double back = power_of_two(0., squares.exponent - kCalmExponent);
      const double wanted = size * back, limit = static_cast<double>(most(Real()));
      factor = power_of_two(Real(), kCalmExponent - squares.exponent);
      scale = static_cast<Real>(wanted > limit ? limit : wanted < -limit ? -limit : wanted);
    }
    if (squares.sum != squares.sum || size - size != 0) scale = nan_of(Real());
  }

  // For sums of n = 2^log2 elements that don't overflow, where `wanted` by the group; every thread
  // calls it.
  __device__ void shrink(const Group& group, int log2, bool wanted) {
    int exponent = -kMostExponent;
    for (int64_t first = kItem * group.rank(); first < features; first += kItem * group.threads()) {
      Real v[kItem];
      load_item(x, dtype, first, features, v);
#pragma unroll
      for (int e = 0; e < kItem; ++e) {
        const int own = exponent_of(v[e]);
        exponent = own > exponent ? own : exponent;
      }
    }
    exponent = group.reduce(exponent, [](int a, int b) { return a > b ? a : b; });
    // The exponents of NaN, infinities and the largest numbers come one too small.
    const int room = kMostExponent - 1 - log2 - exponent;
    if (wanted) factor = power_of_two(Real(), room < 0 ? room : 0);
  }

  // Columns [first, first + 32) of the padded row.
  __device__ void load(int64_t first, Real (&v)[kItem]) const {
    load_item(x, dtype, first - offset, features, v);
#pragma unroll
    for (int e = 0; e < kItem; ++e) v[e] *= factor;
  }
  __device__ Real at(int64_t column) const {
    const int64_t i = column - offset;
    return i >= 0 && i < features ? load_one<Real>(x, dtype, i) * factor : 0;
  }
};

}  // namespace fixclf::cuda
