// The fused head, one row at a time, and the adjoint of its projection.
//
//   z_i = alpha <w_i, x^> / sqrt(N) + b_i,   x^ = x / max(|x|_2, 1e-12)
//
// x is never divided: W x and |x|^2 are computed side by side, and alpha / (|x| sqrt(N)) scales the
// result once. Reads N features and C/8 bytes of signs, writes what the epilogue writes; scratch is
// two rows of n. Accumulates in float32 (float64 for float64 features).
#pragma once

#include "core/problem.h"
#include "cpu/block-inl.h"
#include "cpu/epilogues/all-inl.h"

namespace fixclf {
namespace {

template <class V>
int64_t padded_row(int64_t order) {
  return round_up(order, kPad<V>) + kPad<V>;
}

// One Sylvester block without sign flips: a row is folded while it is read.
FIXCLF_INLINE bool is_direct(const Codebook& cb) {
  return cb.base_order == 1 && cb.signs == nullptr && cb.column_offset == 0;
}

// All classes of the shard come from one block, which therefore stays in scratch between passes.
FIXCLF_INLINE bool is_resident(const Codebook& cb) { return first_block(cb) == last_block(cb); }

// Rows that share each block's signs and biases while these are in the L1 cache.
constexpr int kRowTile = 4;

// Elements of one row of scratch: what is transformed, and room for whole vectors at its end.
template <class V>
int64_t head_row(const Codebook& cb) {
  if (!is_direct(cb)) return padded_row<V>(cb.order());
  return padded_row<V>(fold_width<V>(cb.features, int64_t{1} << log2_ceil(rows_needed(cb, 0))));
}
template <class V>
int64_t head_scratch(const Codebook& cb) {
  return head_row<V>(cb) * (is_resident(cb) ? 2 : kRowTile + 1);
}

// What one row's features became: y = W x / factor, z = scale y + bias; scale is NaN for a row that
// holds a NaN or an infinity.
template <class V, class T>
struct RowLoader {
  using Real = typename V::Real;
  const HeadProblem& p;
  const bool direct = is_direct(p.codebook);
  const int64_t rows = direct ? rows_needed(p.codebook, 0) : 0;
  const double root = p.normalize ? __builtin_sqrt(static_cast<double>(p.codebook.features)) : 1;

  template <bool kScaled>
  FIXCLF_INLINE double read(const T* x, Real factor, Real* a, Real* y) const {
    const int64_t features = p.codebook.features;
    if (direct) {
      const int64_t needed = int64_t{1} << log2_ceil(rows);
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

  // Returns the scale; leaves the folded row in y (direct) or the padded row in a. Powers of two
  // bring rows back whose squares, or whose alpha / norm, would leave the range of Real.
  FIXCLF_INLINE Real load(const T* x, Real* a, Real* y) const {
    using Range = NormRange<Real>;
    double squares = read<false>(x, 1, a, y);
    if (!p.normalize) return static_cast<Real>(squares == squares ? p.alpha : squares);
    double factor = 1;
    if (!(squares >= Range::kLow && squares <= Range::kHigh)) {
      factor = squares < Range::kLow ? Range::kFactor : 1 / Range::kFactor;
      squares = read<true>(x, static_cast<Real>(factor), a, y);
      if (!(squares <= Range::kHigh)) return static_cast<Real>(__builtin_nan(""));
    }
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

template <class V, class T, class Out, template <class, class> class Epilogue, bool kBias>
void head_rows(const HeadProblem& p, int64_t begin, int64_t end, void* scratch) {
  using Real = typename V::Real;
  const Codebook& cb = p.codebook;
  const RowLoader<V, T> loader{p};
  const int64_t first = first_block(cb), last = last_block(cb);
  const bool resident = is_resident(cb);
  const int tile = resident ? 1 : kRowTile;
  const int64_t room = head_row<V>(cb);
  Real* y = static_cast<Real*>(scratch);
  Real* staged = y + room;
  for (int64_t row = begin; row < end; row += tile) {
    const int count = static_cast<int>(end - row < tile ? end - row : tile);
    Real scales[kRowTile];
    Epilogue<V, Out> epilogues[kRowTile];
    for (int t = 0; t < count; ++t) {
      const T* x = static_cast<const T*>(p.x.data) + (row + t) * p.x.stride;
      scales[t] = loader.load(x, staged + t * room, y);
      if (scales[t] == scales[t]) continue;
      Out* out = static_cast<Out*>(p.out.data) + (row + t) * p.out.stride;
      for_lanes<V>(p.out.columns,
                   [&](int64_t i, auto lanes) { lanes.store(out + i, V::set(scales[t])); });
    }
    double stretch = 1;
    for (int pass = 0; pass < Epilogue<V, Out>::passes(resident); ++pass) {
      for (int64_t block = first; block <= last; ++block) {
        for (int t = 0; t < count; ++t) {
          if (scales[t] != scales[t]) continue;
          Real* a = staged + t * room;
          Out* out = static_cast<Out*>(p.out.data) + (row + t) * p.out.stride;
          if (pass == 0 || !resident) {
            if (loader.direct) {
              transform<V, false>(y, y, log2_ceil(loader.rows), 1);
            } else {
              block_rows<V>(cb, block, rows_needed(cb, block), a, y);
            }
            if (cb.center) stretch = center<V>(cb, y);
          }
          // Backwards where values are kept: the negated segment moves its values from y to a
          // before the other one overwrites y.
          Segment<V, kBias> segments[2];
          int parts = 0;
          for_segments(
              cb, block, [&](int64_t first_class, int sign, int64_t row0, int64_t classes) {
                Segment<V, kBias>& segment = segments[parts];
                segment.y = y + row0;
                segment.scale = static_cast<Real>(sign * stretch * scales[t]);
                segment.bias = kBias ? static_cast<const Real*>(p.bias) + first_class : nullptr;
                segment.first_class = first_class;
                segment.count = classes;
                segment.room = !resident ? nullptr : parts == 0 ? segment.y : a;
                ++parts;
              });
          while (parts-- > 0)
            epilogues[t].segment(pass, segments[parts], out + segments[parts].first_class);
        }
      }
    }
  }
}

template <class V, class T, class Out>
void head_for(const HeadProblem& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.epilogue) {
#define FIXCLF_EPILOGUE(enumerator, value, name)                                                 \
  case Epilogue::k##enumerator:                                                                  \
    return p.has_bias ? head_rows<V, T, Out, enumerator##Epilogue, true>(p, begin, end, scratch) \
                      : head_rows<V, T, Out, enumerator##Epilogue, false>(p, begin, end, scratch);
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
  }
}

// a[j] = y[j mod width] for j < n, n a multiple of width, both powers of two.
template <class V>
FIXCLF_INLINE void unfold(const typename V::Real* y, int64_t width, int64_t n,
                          typename V::Real* a) {
  if (width >= V::kWidth) {
    for (int64_t j = 0; j < n; j += V::kWidth) V::store(a + j, V::load(y + (j & (width - 1))));
  } else {
    for (int64_t j = 0; j < n; ++j) a[j] = y[j & (width - 1)];
  }
}

// out = W^T g: for each block D (P^T (x) H_{2^k}) (g+ - g-), the negated classes' gradients
// subtracted before the transform. Cost of a block: that of the forward direction.
template <class V, class T>
void adjoint_rows(const AdjointProblem& p, int64_t begin, int64_t end, void* scratch) {
  using F = typename V::F;
  using Real = typename V::Real;
  const Codebook& cb = p.codebook;
  const int k = static_cast<int>(cb.log2);
  const int64_t n = cb.order();
  Real* a = static_cast<Real*>(scratch);
  Real* y = a + padded_row<V>(n);

  uint8_t transposed[kMaxBaseOrder * kMaxBaseOrder / 8] = {};
  for (int64_t i = 0; cb.base != nullptr && i < cb.base_order; ++i) {
    for (int64_t j = 0; j < cb.base_order; ++j) {
      const int bit = cb.base[i * cb.base_stride() + j / 8] >> j % 8 & 1;
      transposed[j * cb.base_stride() + i / 8] |= static_cast<uint8_t>(bit << i % 8);
    }
  }

  for (int64_t row = begin; row < end; ++row) {
    const T* g = static_cast<const T*>(p.g.data) + row * p.g.stride;
    Real* out = static_cast<Real*>(p.out.data) + row * p.out.stride;
    for (int64_t block = first_block(cb); block <= last_block(cb); ++block) {
      const int64_t rows = rows_needed(cb, block);
      const int64_t width = cb.base_order == 1 ? int64_t{1} << log2_ceil(rows) : n;
      for (int64_t i = 0; i < round_up(width, kPad<V>); i += V::kWidth) V::store(y + i, F{});
      for_segments(cb, block, [&](int64_t first, int sign, int64_t row0, int64_t count) {
        for_lanes<V>(count, [&](int64_t i, auto lanes) {
          const F value = lanes.load(g + first + i);
          Real* at = y + row0 + i;
          lanes.store(at, sign > 0 ? lanes.load(at) + value : lanes.load(at) - value);
        });
      });
      if (cb.center) {
        const F stretch = V::set(static_cast<Real>(center<V>(cb, y)));
        for_lanes<V>(rows,
                     [&](int64_t i, auto lanes) { lanes.store(y + i, V::load(y + i) * stretch); });
      }
      if (cb.base_order == 1) {
        transform<V, false>(y, y, log2_ceil(rows), 1);
        unfold<V>(y, width, n, a);
      } else {
        transforms<V, false>(y, y, k, cb.base_order, 1);
        mix<V>(transposed, cb.base_order, k, cb.base_order, nullptr, y, a);
      }
      const uint8_t* signs = cb.signs == nullptr ? nullptr : cb.signs + block * cb.sign_stride();
      for_lanes<V>(cb.features, [&](int64_t j, auto lanes) {
        F value = flipped<V>(a, signs, j + cb.column_offset, n);
        if (block != first_block(cb)) value += lanes.load(out + j);
        lanes.store(out + j, value);
      });
    }
  }
}

}  // namespace
}  // namespace fixclf
