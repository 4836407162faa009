// The adjoint of the projection, u = W^T g, and the gradients of the negative log-likelihood.
#pragma once

#include "cpu/features-inl.h"
#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

// P_b^T, packed as P_b is.
struct TransposedBase {
  uint8_t bits[kMaxBaseOrder * kMaxBaseOrder / 8];

  explicit TransposedBase(const Codebook& cb) {
    if (cb.base == nullptr) return;
    memset(bits, 0, static_cast<size_t>(cb.base_order * cb.base_stride()));
    for (int64_t i = 0; i < cb.base_order; ++i) {
      for (int64_t j = 0; j < cb.base_order; ++j) {
        const int bit = cb.base[i * cb.base_stride() + j / 8] >> j % 8 & 1;
        bits[j * cb.base_stride() + i / 8] |= static_cast<uint8_t>(bit << i % 8);
      }
    }
  }
};

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

// How many rows of a block take part in the products with its transpose.
FIXCLF_INLINE int64_t adjoint_width(const Codebook& cb, int64_t rows) {
  return cb.base_order == 1 ? int64_t{1} << log2_ceil(rows) : cb.order();
}

template <class V>
FIXCLF_INLINE void clear(typename V::Real* y, int64_t width) {
  for (int64_t i = 0; i < round_up(width, kPad<V>); i += V::kWidth)
    V::store(y + i, typename V::F{});
}

// out = (or +=) D (P^T (x) H_{2^k}) y for one block, y zero outside of the classes' rows and
// overwritten. Cost: that of the forward direction.
template <class V>
void block_adjoint(const Codebook& cb, const TransposedBase& transposed, int64_t block,
                   bool accumulate, typename V::Real* y, typename V::Real* a,
                   typename V::Real* out) {
  using F = typename V::F;
  using Real = typename V::Real;
  const int k = static_cast<int>(cb.log2);
  const int64_t n = cb.order(), rows = rows_needed(cb, block);
  if (cb.center) {
    const F stretch = V::set(static_cast<Real>(center<V>(cb, y)));
    for_lanes<V>(rows,
                 [&](int64_t i, auto lanes) { lanes.store(y + i, V::load(y + i) * stretch); });
  }
  if (cb.base_order == 1) {
    transform<V, false>(y, y, log2_ceil(rows), 1);
    unfold<V>(y, adjoint_width(cb, rows), n, a);
  } else {
    transforms<V, false>(y, y, k, cb.base_order, 1);
    mix<V>(transposed.bits, cb.base_order, k, cb.base_order, nullptr, y, a);
  }
  const uint8_t* signs = cb.signs == nullptr ? nullptr : cb.signs + block * cb.sign_stride();
  for_lanes<V>(cb.features, [&](int64_t j, auto lanes) {
    F value = flipped<V>(a, signs, j + cb.column_offset, n);
    if (accumulate) value += lanes.load(out + j);
    lanes.store(out + j, value);
  });
}

// out = W^T g: for each block the negated classes' gradients are subtracted before the transform.
template <class V, class T>
void adjoint_rows(const AdjointProblem& p, int64_t begin, int64_t end, void* scratch) {
  using F = typename V::F;
  using Real = typename V::Real;
  const Codebook& cb = p.codebook;
  Real* a = static_cast<Real*>(scratch);
  Real* y = a + padded_row<V>(cb.order());
  const TransposedBase transposed(cb);
  for (int64_t row = begin; row < end; ++row) {
    const T* g = static_cast<const T*>(p.g.data) + row * p.g.stride;
    Real* out = static_cast<Real*>(p.out.data) + row * p.out.stride;
    for (int64_t block = cb.first_block(); block <= cb.last_block(); ++block) {
      clear<V>(y, adjoint_width(cb, rows_needed(cb, block)));
      for_segments(cb, block, [&](int64_t first, int sign, int64_t row0, int64_t count) {
        for_lanes<V>(count, [&](int64_t i, auto lanes) {
          const F value = lanes.load(g + first + i);
          Real* at = y + row0 + i;
          lanes.store(at, sign > 0 ? lanes.load(at) + value : lanes.load(at) - value);
        });
      });
      block_adjoint<V>(cb, transposed, block, block != cb.first_block(), y, a, out);
    }
  }
}

// Rows of scratch: a tile, the block's rows, their gradients, and the adjoint's own.
constexpr int kReductionBackwardRows = kRowTile + 3;

// The gradients that reach the logits of one row (core/problem.h): a, c, d, e and b at ids.
template <class Real>
struct RowGradient {
  Real softmax, uniform, linear, sigmoid, logsumexp;
  const Real* at_ids;
  const int64_t* ids;
  int64_t count;

  RowGradient() = default;
  RowGradient(const ReductionBackwardProblem& p, int64_t row)
      : softmax(of_row(p.softmax_grad, row)),
        uniform(of_row(p.uniform_grad, row)),
        linear(of_row(p.linear_grad, row)),
        sigmoid(of_row(p.sigmoid_grad, row)),
        logsumexp(of_row(p.head.logsumexp, row)),
        at_ids(static_cast<const Real*>(p.ids_grad) + row * p.head.ids_per_row),
        ids(p.head.ids + row * p.head.ids_per_row),
        count(p.head.ids_per_row) {}

  bool zero() const {
    bool all = softmax == 0 && uniform == 0 && linear == 0 && sigmoid == 0;
    for (int64_t m = 0; m < count; ++m) all = all && at_ids[m] == 0;
    return all;
  }

 private:
  static Real of_row(const void* values, int64_t row) {
    return values == nullptr ? 0 : static_cast<const Real*>(values)[row];
  }
};

// Calls body(gradient) with the function of a logit that gives its dz, but for what reaches it by
// an id. Which terms there are is decided here, outside of the loops; a softmax alone is the common
// case. Forbidden classes, whose z is -inf, get 0.
template <class V, Addend kAddend, class Body>
FIXCLF_INLINE void with_gradient(const ReductionBackwardProblem& p,
                                 const RowGradient<typename V::Real>& row, Body body) {
  using F = typename V::F;
  const F shift = V::set(row.logsumexp), softmax = V::set(row.softmax);
  const F uniform = V::set(row.uniform), linear = V::set(row.linear);
  const F slope = V::set(row.sigmoid);
  const auto allowed = [](F z, F g) __attribute__((always_inline)) {
    return kAddend == kMasked ? unless_lowest<V>(z, g) : g;
  };
  if (p.linear_grad == nullptr && p.sigmoid_grad == nullptr &&
      (kAddend != kMasked || (p.uniform_grad == nullptr && !p.others)))
    return body([&](F z) __attribute__((always_inline)) {
      return V::fma(exp<V>(z - shift), softmax, uniform);
    });
  if (p.softmax_grad == nullptr && p.sigmoid_grad == nullptr)
    return body(
        [&](F z) __attribute__((always_inline)) { return allowed(z, V::fma(z, linear, uniform)); });
  if (p.softmax_grad == nullptr)
    return body([&](F z) __attribute__((always_inline)) {
      return allowed(z, V::fma(sigmoid<V>(z), slope, V::fma(z, linear, uniform)));
    });
  // A softmax, and any of the others.
  const bool curved = p.sigmoid_grad != nullptr;
  body([&](F z) __attribute__((always_inline)) {
    F g = V::fma(exp<V>(z - shift), softmax, V::fma(z, linear, uniform));
    if (curved) g = V::fma(sigmoid<V>(z), slope, g);
    return allowed(z, g);
  });
}

// Rows [begin, end) and blocks [first, last]: `projected` (row `begin` first) is set, `bias_grad`
// (null: not wanted) added to. The logits are computed again: no array of [B, C].
template <class V, Addend kAddend>
void reduction_backward_part(const ReductionBackwardProblem& problem, int64_t begin, int64_t end,
                             int64_t first, int64_t last, typename V::Real* projected,
                             typename V::Real* bias_grad, void* scratch) {
  using F = typename V::F;
  using Real = typename V::Real;
  const HeadProblem& p = problem.head;
  const Codebook& cb = p.codebook;
  const int64_t n = cb.features, stride = padded_row<V>(cb.order());
  const RowLoader<V> loader{p};
  const TransposedBase transposed(cb);
  Real* y = static_cast<Real*>(scratch);
  Real* dz = y + stride;
  Real* a = dz + stride;
  Real* staged = a + stride;
  const int64_t tile = loader.direct ? 1 : kRowTile;
  for (int64_t row = begin; row < end; row += tile) {
    const int count = static_cast<int>(end - row < tile ? end - row : tile);
    Real scales[kRowTile];
    RowGradient<Real> gradients[kRowTile];
    for (int t = 0; t < count; ++t) {
      scales[t] = loader.load(row + t, staged + t * stride, y);
      gradients[t] = RowGradient<Real>(problem, row + t);
    }
    for (int64_t block = first; block <= last; ++block) {
      for (int t = 0; t < count; ++t) {
        Real* out = projected + (row + t - begin) * n;
        const RowGradient<Real>& gradient = gradients[t];
        const bool counts = !gradient.zero();
        // Rows with a NaN, whose gradients are NaN, and rows that do not count.
        if (!counts || scales[t] != scales[t]) {
          const Real fill = counts ? scales[t] : 0;
          for (int64_t j = 0; j < n; ++j) out[j] = fill;
          if (bias_grad != nullptr && counts) {
            for_segments(cb, block, [&](int64_t first_class, int, int64_t, int64_t length) {
              for (int64_t i = 0; i < length; ++i) bias_grad[first_class + i] += fill;
            });
          }
          continue;
        }
        if (!loader.direct)
          block_rows<V>(cb, block, rows_needed(cb, block), staged + t * stride, y);
        const double stretch = cb.center ? center<V>(cb, y) : 1;
        clear<V>(dz, adjoint_width(cb, rows_needed(cb, block)));
        const int64_t* left_out = problem.others ? p.sorted_ids_of(row + t) : nullptr;
        const int64_t left_out_count = problem.others ? gradient.count : 0;
        for_segments(cb, block, [&](int64_t first_class, int sign, int64_t row0, int64_t length) {
          Segment<V, kAddend> z{};
          z.y = y + row0;
          z.scale = static_cast<Real>(sign * stretch * scales[t]);
          z.bias = p.has_bias ? static_cast<const Real*>(p.bias) + first_class : nullptr;
          if (kAddend == kMasked) z.allowed = p.allowed_of(row + t);
          z.allowed_bits = cb.computed();
          z.first_class = first_class;
          z.count = length;
          Real* db = bias_grad == nullptr ? nullptr : bias_grad + first_class;
          Real* dy = dz + row0;
          const F direction = V::set(static_cast<Real>(sign));
          with_gradient<V, kAddend>(problem, gradient, [&](auto of) __attribute__((always_inline)) {
            for_others(z, left_out, left_out_count, [&](const auto& part) {
              const int64_t from = part.first_class - first_class;
              Real* const db_of = db == nullptr ? nullptr : db + from;
              Real* const dy_of = dy + from;
              part.for_logits(0, [&](int64_t i, F value, auto lanes) {
                const F g = of(value);
                if (db_of != nullptr) lanes.store(db_of + i, lanes.load(db_of + i) + g);
                lanes.store(dy_of + i, V::fma(g, direction, lanes.load(dy_of + i)));
              });
            });
          });
          for (int64_t m = 0; m < gradient.count; ++m) {
            const int64_t i = gradient.ids[m] - first_class;
            if (i < 0 || i >= length) continue;
            if (kAddend == kMasked && z.at(i) == z.kLowest) continue;
            dy[i] += static_cast<Real>(sign) * gradient.at_ids[m];
            if (db != nullptr) db[i] += gradient.at_ids[m];
          }
        });
        block_adjoint<V>(cb, transposed, block, block != first, dz, a, out);
      }
    }
  }
}

}  // namespace
}  // namespace fixclf
