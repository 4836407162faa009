// Rows of int8 or packed +-1 features, through one Sylvester block without sign flips: folded and
// transformed in int16_t as far as that can't overflow, then in float32. Every value is an integer
// below 2^24: exact.
#pragma once

#include "cpu/block-inl.h"

namespace fixclf {
namespace {

// rows[x] = kOffset + H_8 s, s the eight signs of the byte x: a byte an element, all positive, so
// that several rows add as one 64-bit integer.
struct SignTransforms {
  static constexpr int kOffset = 8;
  static constexpr int kMaxSum = 255 / (2 * kOffset);  // rows that add without a carry

  uint8_t rows[256][8];
  constexpr SignTransforms() : rows() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int i = 0; i < 8; ++i) {
        int sum = kOffset;
        for (int j = 0; j < 8; ++j) {
          const int both = i & j;
          const int odd = (both ^ both >> 1 ^ both >> 2 ^ byte >> j) & 1;
          sum += odd != 0 ? -1 : 1;
        }
        rows[byte][i] = static_cast<uint8_t>(sum);
      }
    }
  }
};
constexpr SignTransforms kSignTransforms;
constexpr int kSignStages = 3;

// How many features one int16_t may sum. Of m in int8 a sum lies in [-128 m, 127 m], and in
// [-127.5 m, 127.5 m] where half of them are subtracted: both fit for m = 256.
FIXCLF_INLINE int64_t most_summands(DType dtype) { return dtype == DType::kInt8 ? 256 : 32767; }

// Whether a row of these goes through int16_t: 2^r sums of `depth` features each, and at least the
// stages within a vector of 32 lanes.
FIXCLF_INLINE bool fits_short(DType dtype, int64_t features, int r) {
  const int64_t depth = (features + (int64_t{1} << r) - 1) >> r;
  if (r < 7) return false;
  return depth << 5 <= most_summands(dtype) &&
         (dtype == DType::kInt8 || depth <= SignTransforms::kMaxSum);
}

// h[j] = sum_c x[c width + j] for j < width, a multiple of 32; returns |x|^2.
template <class Short>
int64_t fold_short(const int8_t* x, int64_t features, int64_t width, int16_t* h) {
  constexpr int kUnroll = 32 / Short::kWidth;
  typename Short::Sum squares = {};
  for (int64_t j = 0; j < width; j += 32) {
    typename Short::F sum[kUnroll] = {};
    const auto add = [&](const int8_t* from) __attribute__((always_inline)) {
#pragma GCC unroll 32
      for (int u = 0; u < kUnroll; ++u) {
        const auto v = Short::load(from + u * Short::kWidth);
        sum[u] += v;
        squares = Short::add_squares(squares, v);
      }
    };
    int64_t c = j;
    for (; c + 32 <= features; c += width) add(x + c);
    if (c < features) {
      int8_t tail[32] = {};
      memcpy(tail, x + c, static_cast<size_t>(features - c));
      add(tail);
    }
#pragma GCC unroll 32
    for (int u = 0; u < kUnroll; ++u) Short::store(h + j + u * Short::kWidth, sum[u]);
  }
  int64_t total = 0;
  for (size_t lane = 0; lane < sizeof squares / sizeof squares[0]; ++lane) total += squares[lane];
  return total;
}

// bytes[8 g + i] = sum over `kDepth` rows of the table for the groups of eight from g on; missing
// ones count as zeros.
template <int kDepth>
FIXCLF_INLINE void add_sign_rows(const uint8_t* x, int64_t whole, int64_t groups, uint8_t* bytes) {
  const auto row = [&](int64_t byte) __attribute__((always_inline)) {
    uint64_t eight = 0x0101010101010101 * SignTransforms::kOffset;
    if (byte < whole) memcpy(&eight, kSignTransforms.rows[x[byte]], sizeof eight);
    return eight;
  };
  const int64_t common = whole - (kDepth - 1) * groups;  // groups that have all their bytes
  for (int64_t g = 0; g < common; ++g) {
    uint64_t sum = 0;
#pragma GCC unroll 16
    for (int c = 0; c < kDepth; ++c) {
      uint64_t eight;
      memcpy(&eight, kSignTransforms.rows[x[g + c * groups]], sizeof eight);
      sum += eight;
    }
    memcpy(bytes + 8 * g, &sum, sizeof sum);
  }
  for (int64_t g = common; g < groups; ++g) {
    uint64_t sum = 0;
    for (int c = 0; c < kDepth; ++c) sum += row(g + c * groups);
    memcpy(bytes + 8 * g, &sum, sizeof sum);
  }
}

// h = the stages of the three lowest bits of the row folded to `width`, by table; `bytes` is room
// for as many.
FIXCLF_INLINE void fold_signs(const uint8_t* x, int64_t features, int64_t width, int64_t depth,
                              uint8_t* bytes, int16_t* h) {
  const int64_t whole = features / 8, groups = width / 8;
  with_constant<SignTransforms::kMaxSum>(static_cast<int>(depth), [&](auto constant) {
    add_sign_rows<constant>(x, whole, groups, bytes);
  });
  const auto offset = static_cast<int16_t>(depth * SignTransforms::kOffset);
  for (int64_t i = 0; i < width; ++i) h[i] = static_cast<int16_t>(bytes[i] - offset);
  if (features % 8 == 0) return;
  // Of the last byte only some bits are features: (H_8 s)_i, s zero beyond them.
  int16_t* last = h + 8 * (whole % groups);
  for (int64_t j = 0; j < features % 8; ++j) {
    const int sign = x[whole] >> j & 1 ? -1 : 1;
    for (int i = 0; i < 8; ++i) {
      const bool odd = __builtin_popcount(static_cast<unsigned>(i & j)) % 2 != 0;
      last[i] = static_cast<int16_t>(last[i] + (odd ? -sign : sign));
    }
  }
}

// y = H_{2^k} h for `count` transforms; h is overwritten.
template <class V, int kFirst>
void short_transforms(int16_t* h, int k, int64_t count, typename V::Real* y) {
  using Short = typename V::Short;
  const int stages = k - Short::kLog2Width;
  const int last = stages < Short::kCodelet ? stages : Short::kCodelet;
  for (int64_t i = 0; i < count << k; i += int64_t{1} << k)
    radix_passes<Short>(h + i, h + i, k, Short::kLog2Width + last);
  with_constant<Short::kCodelet>(last, [&](auto r) {
    codelets<Short, r, false, kFirst>(h, y, count << (stages - last), Short::set(1));
  });
}

// y = H_n x for the first 2^r rows; h is room for 2^r values. Returns |x|^2.
template <class V>
double transform_integers(DType dtype, const void* x, int64_t features, int r, int16_t* h,
                          typename V::Real* y) {
  const int64_t width = int64_t{1} << r, depth = (features + width - 1) >> r;
  int64_t squares = features;
  if (dtype == DType::kInt8) {
    squares = fold_short<typename V::Short>(static_cast<const int8_t*>(x), features, width, h);
  } else {
    fold_signs(static_cast<const uint8_t*>(x), features, width, depth,
               reinterpret_cast<uint8_t*>(y), h);
  }
  int stages = r;
  while (depth << stages > most_summands(dtype)) --stages;
  if (dtype == DType::kInt8) {
    short_transforms<V, 0>(h, stages, width >> stages, y);
  } else {
    short_transforms<V, kSignStages>(h, stages, width >> stages, y);
  }
  radix_passes<V>(y, y, r, stages);
  return static_cast<double>(squares);
}

// a[j] = feature j as +-1 for j < features, 0 from there to `width`.
template <class V>
void expand_signs(const uint8_t* x, int64_t features, int64_t width, typename V::Real* a) {
  for_lanes<V>(features, [&](int64_t j, auto lanes) {
    lanes.store(a + j, V::flip(V::set(1), bits_from<V>(x, j, features)));
  });
  for (int64_t j = features; j < width; ++j) a[j] = 0;
}

}  // namespace
}  // namespace fixclf
