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
      v = V::held(kScaled ? v * factor : v);
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
      total = V::add_double(total, (squares[0] + squares[1]) + (squares[2] + squares[3]));
      for (F& square : squares) square = F{};
      pending = 0;
    }
  }
  return V::reduce_add_double(total);
}

// The transform of x folded to 2^k elements, as far as its first pass, that of the kRadix highest
// bits: what is left are 2^kRadix transforms of 2^(k - kRadix) elements. x has kDepth 2^k elements,
// each multiplied by factor. Returns factor^2 |x|^2. The sums need not be stored and read again.
template <class V, class T, bool kScaled, int kDepth>
double fold_and_pass(const T* x, int k, typename V::Real factor, typename V::Real* y) {
  using F = typename V::F;
  constexpr int kSums = 1 << V::kRadix, kEach = 4, kGroups = kSums / kEach;
  const int64_t width = int64_t{1} << k, stride = width >> V::kRadix;
  const auto one = V::opaque_one();
  const T* from[kGroups];
  typename V::Real* to[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
    from[g] = x + g * kEach * stride;
    to[g] = y + g * kEach * stride;
    asm("" : "+r"(from[g]), "+r"(to[g]));
  }
  F squares[kEach] = {};
  typename V::D total = {};
  int terms = 0;
  for (int64_t i = 0; i < stride; i += V::kWidth) {
    F v[kSums];
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) {
#pragma GCC unroll 2
      for (int c = 0; c < kDepth; ++c) {
        F term = V::load(from[j / kEach] + c * width + i + j % kEach * stride);
        term = V::held(kScaled ? term * factor : term);
        squares[j % kEach] = V::fma(term, term, squares[j % kEach]);
        v[j] = c == 0 ? term : v[j] + term;
      }
    }
    butterflies<V, V::kRadix>(v, one);
#pragma GCC unroll 16
    for (int j = 0; j < kSums; ++j) V::store(to[j / kEach] + i + j % kEach * stride, v[j]);
    terms += kDepth * kGroups;
    if (terms >= 2 * kFoldDepth || i + V::kWidth >= stride) {
      total = V::add_double(total, (squares[0] + squares[1]) + (squares[2] + squares[3]));
      for (F& square : squares) square = F{};
      terms = 0;
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

// Columns of P_b that are mixed at a time: their tables stay within the L1 cache, and their groups
// of four are unrolled.
constexpr int64_t kMixTile = 32;
constexpr int kMaxMixGroups = kMixTile / 4;

// table[s] = sum of +-t[c], minus where bit c of s is set; two vectors that are each other's
// negation cost one addition.
template <class V>
FIXCLF_INLINE void signed_sums(const typename V::F (&t)[4], typename V::F (&table)[16]) {
  const auto a = t[0] + t[1], b = t[0] - t[1], c = t[2] + t[3], d = t[2] - t[3];
  const typename V::F half[8] = {a + c, c - b, b + c, c - a, a + d, d - b, b + d, d - a};
  constexpr int kPlace[8] = {0, 1, 2, 3, 8, 9, 10, 11};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    table[kPlace[i]] = half[i];
    table[15 - kPlace[i]] = -half[i];
  }
}

// One vector of lanes, at m, of mix() below, for kGroups groups of four columns from `first` on;
// picks[i][g] is the byte within the tables that row i adds for group g.
template <class V, int kGroups, class Lanes>
FIXCLF_INLINE void mix_strip(int64_t base_order, int k, int64_t rows, const uint8_t* signs,
                             const uint16_t (*picks)[kMaxMixGroups], const typename V::Real* a,
                             typename V::Real* y, int64_t first, int64_t m, Lanes lanes) {
  typedef typename V::F F;
  F tables[kGroups][16];
#pragma GCC unroll 8
  for (int group = 0; group < kGroups; ++group) {
    F t[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const int64_t j = first + 4 * group + c;
      t[c] = j < base_order ? flipped<V>(a, signs, (j << k) + m, base_order << k) : F{};
    }
    signed_sums<V>(t, tables[group]);
  }
  const char* const bytes = reinterpret_cast<const char*>(tables);
  typename V::Real* at = y + m;
  for (int64_t i = 0; i < rows; ++i, at += int64_t{1} << k) {
    F sum = V::load(reinterpret_cast<const typename V::Real*>(bytes + picks[i][0]));
#pragma GCC unroll 8
    for (int group = 1; group < kGroups; ++group)
      sum += V::load(reinterpret_cast<const typename V::Real*>(bytes + picks[i][group]));
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
  const int64_t stride = (base_order + 7) / 8;
  uint16_t picks[kMaxBaseOrder][kMaxMixGroups];
  for (int64_t first = 0; first < base_order; first += kMixTile) {
    const int64_t columns = base_order - first < kMixTile ? base_order - first : kMixTile;
    const int groups = static_cast<int>((columns + 3) / 4);
    for (int64_t i = 0; i < rows; ++i) {
      for (int g = 0; g < groups; ++g) {
        const int four = base[i * stride + first / 8 + g / 2] >> g % 2 * 4 & 15;
        picks[i][g] = static_cast<uint16_t>((16 * g + four) * sizeof(typename V::F));
      }
    }
    with_constant<kMaxMixGroups>(groups, [&](auto constant) {
      if constexpr (constant > 0) {
        for_lanes<V>(int64_t{1} << k, [&](int64_t m, auto lanes) {
          mix_strip<V, constant>(base_order, k, rows, signs, picks, a, y, first, m, lanes);
        });
      }
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
  const int64_t classes = cb.computed(), order = cb.order();
  for (int half = 0; half < (cb.negate ? 2 : 1); ++half) {
    const int64_t base = cb.class_at(block, half);
    const int64_t first = base > 0 ? base : 0;
    const int64_t last = base + order < classes ? base + order : classes;
    if (first < last) body(first, half == 0 ? 1 : -1, first - base, last - first);
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

}  // namespace
}  // namespace fixclf
