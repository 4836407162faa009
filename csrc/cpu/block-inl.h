// From a row of features to the rows of one block: fold, flip, mix, transform.
#pragma once

#include "core/codebook.h"
#include "cpu/hadamard-inl.h"

namespace fixclf {
namespace {

// Rows of scratch are padded to a multiple of this, so that whole vectors can be read and written.
template <class V>
constexpr int64_t kPad = 4 * V::kWidth;

FIXCLF_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

FIXCLF_INLINE int log2_ceil(int64_t n) { return n <= 1 ? 0 : 64 - __builtin_clzll(n - 1); }

// Vectors that are added one after the other before a sum goes on as a tree, or in double: it keeps
// the rounding error of a long row of like values within the bound.
constexpr int64_t kFoldDepth = 8;

// The width to which fold() may fold `features` for a transform of `target` rows at least: not so
// narrow that more than kFoldDepth values meet in one sum. fold_in_place() does the rest.
template <class V>
FIXCLF_INLINE int64_t fold_width(int64_t features, int64_t target) {
  int64_t width = target < kPad<V> ? kPad<V> : target;
  while (width * kFoldDepth < features) width *= 2;
  return width;
}

// y[j] = factor sum_c x[c width + j] for j < width, x zero beyond `features`; returns
// factor^2 sum_j x[j]^2. width is a multiple of kPad. The first 2^r rows of a Sylvester matrix only
// depend on x folded to width 2^r: its columns repeat. Cost: N additions, N fused multiply-adds.
template <class V, class T, bool kScaled>
double fold(const T* x, int64_t features, int64_t width, typename V::Real factor,
            typename V::Real* y) {
  using F = typename V::F;
  constexpr int kUnroll = 4;
  F squares[kUnroll] = {};
  typename V::D total = {};
  int64_t pending = 0;
  for (int64_t j = 0; j < width; j += kPad<V>) {
    F sum[kUnroll] = {};
    const auto add = [&](int u, F v) __attribute__((always_inline)) {
      if (kScaled) v *= factor;
      sum[u] += v;
      squares[u] = V::fma(v, v, squares[u]);
    };
    int64_t c = j;
    for (; c + kPad<V> <= features; c += width) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) add(u, V::load(x + c + u * V::kWidth));
      ++pending;
    }
    if (c < features) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t left = features - c - u * V::kWidth;
        if (left >= V::kWidth) {
          add(u, V::load(x + c + u * V::kWidth));
        } else if (left > 0) {
          add(u, V::load_first(x + c + u * V::kWidth, left));
        }
      }
      ++pending;
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) V::store(y + j + u * V::kWidth, sum[u]);
    if (pending >= 2 * kFoldDepth || j + kPad<V> >= width) {
      total += V::to_double((squares[0] + squares[1]) + (squares[2] + squares[3]));
      for (F& square : squares) square = F{};
      pending = 0;
    }
  }
  return V::reduce_add_double(total);
}

// Folds y further, in place, from `width` elements to `target`; both powers of two.
template <class V>
FIXCLF_INLINE void fold_in_place(typename V::Real* y, int64_t width, int64_t target) {
  while (width > target) {
    width /= 2;
    for_lanes<V>(width, [&](int64_t i, auto lanes) {
      lanes.store(y + i, lanes.load(y + i) + lanes.load(y + width + i));
    });
  }
}

// The W bits from bit `first` on, others above them; those at or beyond `limit` are not read, and
// come as 0 if there is no byte after them.
template <class V>
FIXCLF_INLINE uint32_t bits_from(const uint8_t* packed, int64_t first, int64_t limit) {
  uint32_t bits = 0;
  if (V::kWidth >= 8 && first % 8 == 0 && first + V::kWidth <= limit) {
    memcpy(&bits, packed + first / 8, V::kWidth / 8);
    return bits;
  }
  if (first / 8 + 4 <= limit / 8) {
    memcpy(&bits, packed + first / 8, sizeof bits);
    return bits >> first % 8;
  }
  for (int lane = 0; lane < V::kWidth && first + lane < limit; ++lane)
    bits |= (packed[(first + lane) / 8] >> (first + lane) % 8 & 1u) << lane;
  return bits;
}

// a[j] with the sign of D_j; `signs` may be null.
template <class V>
FIXCLF_INLINE typename V::F flipped(const typename V::Real* a, const uint8_t* signs, int64_t j,
                                    int64_t limit) {
  const auto v = V::load(a + j);
  return signs == nullptr ? v : V::flip(v, bits_from<V>(signs, j, limit));
}

// The 32 elements from a[j] on, with the signs of D_j, added to sum.
template <class V>
struct Flipped32 {
  static constexpr int kVectors = 32 / V::kWidth;
  typename V::F sum[kVectors] = {};

  FIXCLF_INLINE void add(const typename V::Real* a, const uint8_t* signs) {
    uint32_t bits = 0;
    if (signs != nullptr) memcpy(&bits, signs, sizeof bits);
    add_vectors(a, bits, std::make_integer_sequence<int, kVectors>());
  }

 private:
  template <int... u>
  FIXCLF_INLINE void add_vectors(const typename V::Real* a, uint32_t bits,
                                 std::integer_sequence<int, u...>) {
    ((sum[u] += V::template flip<u * V::kWidth>(V::load(a + u * V::kWidth), bits)), ...);
  }
};

// y[j] = sum_c d[c width + j] a[c width + j] for j < width; a is padded, n = 2^k elements of it
// count.
template <class V>
void fold_flipped(const typename V::Real* a, const uint8_t* signs, int64_t n, int64_t width,
                  typename V::Real* y) {
  int64_t step = width;
  if (n >= 32) {
    if (step < 32) step = 32;
    if (step * kFoldDepth < n) step = n / kFoldDepth;
    for (int64_t j = 0; j < step; j += 32) {
      Flipped32<V> part;
      for (int64_t c = j; c < n; c += step)
        part.add(a + c, signs == nullptr ? nullptr : signs + c / 8);
      for (int u = 0; u < part.kVectors; ++u) V::store(y + j + u * V::kWidth, part.sum[u]);
    }
  } else {
    if (step < V::kWidth) step = V::kWidth;
    for (int64_t j = 0; j < step; j += V::kWidth) {
      auto sum = flipped<V>(a, signs, j, n);
      for (int64_t c = j + step; c < n; c += step) sum += flipped<V>(a, signs, c, n);
      V::store(y + j, sum);
    }
  }
  fold_in_place<V>(y, step, width);
}

// Columns of P_b that are mixed at a time; their tables stay within the L1 cache.
constexpr int64_t kMixTile = 64;

// One vector of lanes, at m, of mix() below, for the `columns` columns from `first` on.
template <class V, class Lanes>
void mix_strip(const uint8_t* base, int64_t base_order, int k, int64_t rows, const uint8_t* signs,
               const typename V::Real* a, typename V::Real* y, int64_t first, int64_t m,
               Lanes lanes) {
  typedef typename V::F F;
  const int64_t stride = (base_order + 7) / 8;
  const int64_t columns = base_order - first < kMixTile ? base_order - first : kMixTile;
  F table[kMixTile / 4][16];
  const int64_t groups = (columns + 3) / 4;
  for (int64_t group = 0; group < groups; ++group) {
    F t[4];
    for (int64_t c = 0; c < 4; ++c) {
      const int64_t j = first + 4 * group + c;
      t[c] = j < base_order ? flipped<V>(a, signs, (j << k) + m, base_order << k) : F{};
    }
    const F low[4] = {t[0] + t[1], t[1] - t[0], t[0] - t[1], -t[0] - t[1]};
    const F high[4] = {t[2] + t[3], t[3] - t[2], t[2] - t[3], -t[2] - t[3]};
#pragma GCC unroll 16
    for (int s = 0; s < 16; ++s) table[group][s] = low[s % 4] + high[s / 4];
  }
  const uint8_t* bits = base + first / 8;
  for (int64_t i = 0; i < rows; ++i, bits += stride) {
    typename V::Real* at = y + (i << k) + m;
    F sum = {};
    for (int64_t group = 0; group + 1 < groups; group += 2) {
      const uint8_t eight = bits[group / 2];
      sum += table[group][eight % 16] + table[group + 1][eight / 16];
    }
    if (groups % 2 == 1) sum += table[groups - 1][bits[groups / 2] % 16];
    // Each tile sums by itself: a running sum over a large base would gather its rounding errors.
    lanes.store(at, first == 0 ? sum : lanes.load(at) + sum);
  }
}

// y[i 2^k + m] = sum_j P[i, j] d[j 2^k + m] a[j 2^k + m] for i < rows, m < 2^k.
//
// Four columns at a time, all 16 signed sums of them are tabulated, and the four bits of a base row
// pick one (the method of four Russians): b/4 additions an output instead of b, and the packed bits
// serve as they are.
template <class V>
void mix(const uint8_t* base, int64_t base_order, int k, int64_t rows, const uint8_t* signs,
         const typename V::Real* a, typename V::Real* y) {
  for (int64_t first = 0; first < base_order; first += kMixTile) {
    for_lanes<V>(int64_t{1} << k, [&](int64_t m, auto lanes) {
      mix_strip<V>(base, base_order, k, rows, signs, a, y, first, m, lanes);
    });
  }
}

// Rows [0, rows) of one block, H_n D a, from the padded row a (n elements), into y.
template <class V>
void block_rows(const Codebook& cb, int64_t block, int64_t rows, const typename V::Real* a,
                typename V::Real* y) {
  const int k = static_cast<int>(cb.log2);
  const uint8_t* signs = cb.signs == nullptr ? nullptr : cb.signs + block * cb.sign_stride();
  if (cb.base_order == 1) {
    const int r = log2_ceil(rows);
    fold_flipped<V>(a, signs, int64_t{1} << k, int64_t{1} << r, y);
    transform<V, false>(y, y, r, 1);
    return;
  }
  const int64_t length = int64_t{1} << k;
  const int64_t base_rows = (rows + length - 1) / length;
  mix<V>(cb.base, cb.base_order, k, base_rows, signs, a, y);
  transforms<V, false>(y, y, k, base_rows, 1);
}

// Rows that share each block's signs and biases while these are in the L1 cache.
constexpr int kRowTile = 4;

// Calls body(first_class, sign, first_row, count) for the classes of one block that lie in the
// shard; first_class counts from the shard's begin.
template <class Body>
FIXCLF_INLINE void for_segments(const Codebook& cb, int64_t block, Body body) {
  const int64_t begin = cb.class_begin + cb.row_offset;
  const int64_t end = cb.class_end + cb.row_offset;
  for (int half = 0; half < (cb.negate ? 2 : 1); ++half) {
    const int64_t base = block * cb.rows_per_block() + half * cb.order();
    const int64_t first = begin > base ? begin : base;
    const int64_t last = end < base + cb.order() ? end : base + cb.order();
    if (first < last) body(first - begin, half == 0 ? 1 : -1, first - base, last - first);
  }
}

// How many rows of the block must be computed for the shard. Centring needs those of every class.
FIXCLF_INLINE int64_t rows_needed(const Codebook& cb, int64_t block) {
  if (cb.center) return cb.row_offset + cb.classes;
  int64_t rows = 0;
  for_segments(cb, block, [&](int64_t, int, int64_t first_row, int64_t count) {
    if (first_row + count > rows) rows = first_row + count;
  });
  return rows;
}

FIXCLF_INLINE int64_t first_block(const Codebook& cb) {
  return (cb.class_begin + cb.row_offset) / cb.rows_per_block();
}
FIXCLF_INLINE int64_t last_block(const Codebook& cb) {
  return (cb.class_end - 1 + cb.row_offset) / cb.rows_per_block();
}

}  // namespace
}  // namespace fixclf
