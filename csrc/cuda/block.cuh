// One block of the codebook on one row: y = H_n D x and its transpose, n = b 2^k.
//
// Additions: n (b + k) a block, b = 0 for a Sylvester matrix; shared memory: n values. A single
// Sylvester block of which few rows are wanted is folded first, up to kMaxFolds columns into one.
#pragma once

#include "core/problem.h"
#include "cuda/features.cuh"

namespace fixclf::cuda {

constexpr int kMaxOrderLog2 = 15;
// Also what __launch_bounds__ promises, one CTA at least on a multiprocessor: it leaves a thread up
// to 255 registers, so that no float32 kernel spills. At 168, what 384 threads leave, several do.
constexpr int kMaxRowThreads = 256;
// A CTA is filled with rows up to this many threads.
constexpr int kCtaThreads = 128;
constexpr int kMaxFolds = 4;
// Rows of the base matrix that a thread mixes at a time.
constexpr int kMixRows = 16;

// How one row lies on the threads; depends on the codebook alone.
struct Layout {
  int log2;     // k of the rows computed; less than the codebook's where they are folded
  int base;     // b
  int width;    // b 2^k
  int folds;    // columns that are added into one
  int items;    // ceil(width / 32)
  int threads;  // of a row's group
  int first_block, blocks;

  explicit Layout(const Codebook& cb) {
    base = static_cast<int>(cb.base_order);
    log2 = static_cast<int>(cb.log2);
    first_block = static_cast<int>(cb.first_block());
    blocks = static_cast<int>(cb.last_block()) - first_block + 1;
    folds = 1;
    if (blocks == 1 && base == 1) {
      const int64_t order = cb.order(), begin = -cb.class_at(first_block);
      const int64_t end = begin + cb.computed();
      int64_t rows = end <= order ? end : begin < order ? order : end - order;
      if (cb.center) rows = cb.row_offset + cb.classes;
      while (folds < kMaxFolds && log2 > kItemLog2 && rows <= int64_t{1} << (log2 - 1)) {
        --log2;
        folds *= 2;
      }
    }
    width = base << log2;
    items = (width + kItem - 1) / kItem;
    threads = 1;
    while (threads < items && threads < kMaxRowThreads) threads *= 2;
  }
  __host__ __device__ int padded() const { return items * kItem; }
};

template <class Real>
class Block {
 public:
  // `row_memory`: layout.padded() values of shared memory.
  __device__ Block(const Group& group, const Layout& layout, const Codebook& cb, Real* row_memory)
      : group_(group), layout_(layout), cb_(cb), passes_(layout.log2), row_(row_memory) {}

  // All passes but the last over H D_block x; begins and ends with a barrier.
  __device__ void prepare(const Row<Real>& x, int block) {
    signs_ = cb_.signs == nullptr ? nullptr : cb_.signs + block * cb_.sign_stride();
    const int stages = passes_.single() ? 0 : kItemLog2;
    group_.sync();
    if (layout_.base > 1) {
      mix(x);
      group_.sync();
      if (stages > 0) pass(group_, layout_.items, 0, 0, stages, row_);
    } else {
      for (int item = group_.rank(); item < layout_.items; item += group_.threads()) {
        Real v[kItem];
        load(x, item, v);
        butterflies(v, 0, stages);
        write(v, Place(item, 0), row_);
      }
    }
    middle_passes(group_, layout_.items, passes_, row_);
  }

  // The last pass: body(place, v, there) with the rows y of the block, any number of times after
  // one prepare(). Every thread calls body equally often, with `there` false where it has no item.
  template <class Body>
  __device__ void outputs(Body body) const {
    for (int first = 0; first < layout_.items; first += group_.threads()) {
      const bool there = first + group_.rank() < layout_.items;
      const int item = there ? first + group_.rank() : layout_.items - 1;
      const Place place(item, passes_.high_shift());
      Real v[kItem];
      read(row_, place, v);
      butterflies(v, passes_.high_from(), passes_.high_to());
      body(place, v, there);
    }
  }

  // The other way: D_block H^T d, d by put() from within body of outputs() or of places().
  __device__ void put(const Place& place, const Real (&d)[kItem]) { write(d, place, row_); }

  // Adds to one value put; by one thread, between barriers.
  __device__ void add_at(int row, Real value) { row_[swizzled(row)] += value; }

  // body(place, v) over the values put, which it may change.
  template <class Body>
  __device__ void change(Body body) {
    for (int item = group_.rank(); item < layout_.items; item += group_.threads()) {
      const Place place(item, passes_.high_shift());
      Real v[kItem];
      read(row_, place, v);
      body(place, v);
      write(v, place, row_);
    }
  }
  // body(place, there) for the places to put values at, as outputs() has them.
  template <class Body>
  __device__ void places(Body body) const {
    for (int first = 0; first < layout_.items; first += group_.threads()) {
      const bool there = first + group_.rank() < layout_.items;
      const int item = there ? first + group_.rank() : layout_.items - 1;
      body(Place(item, passes_.high_shift()), there);
    }
  }

  // out[j] (or += with `accumulate`) for the features j; every element by the same thread each
  // time.
  __device__ void transposed(int block, bool accumulate, Real* out) {
    signs_ = cb_.signs == nullptr ? nullptr : cb_.signs + block * cb_.sign_stride();
    pass(group_, layout_.items, passes_.high_shift(), passes_.high_from(), passes_.high_to(), row_);
    if (!passes_.single()) middle_passes(group_, layout_.items, passes_, row_);
    if (layout_.base > 1) {
      if (!passes_.single()) pass(group_, layout_.items, 0, 0, kItemLog2, row_);
      group_.sync();
      mix_transposed(accumulate, out);
    } else {
      for (int item = group_.rank(); item < layout_.items; item += group_.threads()) {
        Real v[kItem];
        read(row_, Place(item, 0), v);
        if (!passes_.single()) butterflies(v, 0, kItemLog2);
        for (int fold = 0; fold < layout_.folds; ++fold) {
          const int64_t first = kItem * item + static_cast<int64_t>(fold) * layout_.width;
          const uint32_t bits = signs_ == nullptr ? 0 : load_bits(signs_, first, cb_.order());
#pragma unroll
          for (int e = 0; e < kItem; ++e)
            add(first + e, flip(v[e], bits >> e & 1), accumulate, out);
        }
      }
    }
    group_.sync();
  }

 private:
  __device__ void add(int64_t column, Real value, bool accumulate, Real* out) const {
    const int64_t j = column - cb_.column_offset;
    if (out == nullptr || j < 0 || j >= cb_.features) return;
    out[j] = accumulate ? out[j] + value : value;
  }

  // Item `item` of the flipped, folded row.
  __device__ void load(const Row<Real>& x, int item, Real (&v)[kItem]) const {
#pragma unroll
    for (int e = 0; e < kItem; ++e) v[e] = 0;
#pragma unroll 1
    for (int fold = 0; fold < layout_.folds; ++fold) {
      const int first = kItem * item + fold * layout_.width;
      const uint32_t bits = signs_ == nullptr ? 0 : load_bits(signs_, first, cb_.order());
      Real more[kItem];
      x.load(first, more);
#pragma unroll
      for (int e = 0; e < kItem; ++e) v[e] += flip(more[e], bits >> e & 1);
    }
  }

  __device__ uint32_t sign_at(int64_t column) const {
    return signs_ == nullptr ? 0 : signs_[column / 8] >> column % 8 & 1;
  }

  // row[i 2^k + m] = sum_j P[i, j] d[j 2^k + m] x[j 2^k + m]: b additions an output, x and the
  // base's bits read once for kMixRows outputs.
  __device__ void mix(const Row<Real>& x) {
    const int b = layout_.base, k = layout_.log2, length = 1 << k;
    const int64_t stride = cb_.base_stride();
    for (int unit = group_.rank(); unit < (b + kMixRows - 1) / kMixRows << k;
         unit += group_.threads()) {
      const int m = unit & (length - 1), first = (unit >> k) * kMixRows;
      Real sums[kMixRows] = {};
      for (int j0 = 0; j0 < b; j0 += 8) {
        uint32_t bits[kMixRows];
#pragma unroll
        for (int r = 0; r < kMixRows; ++r) {
          const int i = first + r < b ? first + r : b - 1;
          bits[r] = __ldg(cb_.base + i * stride + j0 / 8);
        }
        for (int j = j0; j < j0 + 8 && j < b; ++j) {
          const int column = (j << k) + m;
          const Real value = flip(x.at(column), sign_at(column));
#pragma unroll
          for (int r = 0; r < kMixRows; ++r) sums[r] += flip(value, bits[r] >> (j - j0) & 1);
        }
      }
#pragma unroll
      for (int r = 0; r < kMixRows; ++r)
        if (first + r < b) row_[swizzled(((first + r) << k) + m)] = sums[r];
    }
  }

  // out[j 2^k + m] = d sum_i P[i, j] row[i 2^k + m].
  __device__ void mix_transposed(bool accumulate, Real* out) const {
    const int b = layout_.base, k = layout_.log2, length = 1 << k;
    const int64_t stride = cb_.base_stride();
    for (int unit = group_.rank(); unit < (b + kMixRows - 1) / kMixRows << k;
         unit += group_.threads()) {
      const int m = unit & (length - 1), first = (unit >> k) * kMixRows;
      Real sums[kMixRows] = {};
      for (int i = 0; i < b; ++i) {
        const uint8_t* bytes = cb_.base + i * stride + first / 8;
        uint32_t bits = __ldg(bytes);
        if (first / 8 + 1 < stride) bits |= static_cast<uint32_t>(__ldg(bytes + 1)) << 8;
        const Real value = row_[swizzled((i << k) + m)];
#pragma unroll
        for (int r = 0; r < kMixRows; ++r) sums[r] += flip(value, bits >> r & 1);
      }
#pragma unroll
      for (int r = 0; r < kMixRows; ++r) {
        const int column = ((first + r) << k) + m;
        if (first + r < b) add(column, flip(sums[r], sign_at(column)), accumulate, out);
      }
    }
  }

  const Group& group_;
  const Layout& layout_;
  const Codebook& cb_;
  const Passes passes_;
  Real* const row_;
  const uint8_t* signs_ = nullptr;
};

// Calls body(first_class, sign) for the halves of a block of which classes lie in the shard: row i
// of the block is class first_class + i, counted from the shard's begin, with the sign +-1.
template <class Body>
__device__ inline void for_halves(const Codebook& cb, int block, Body body) {
  const int64_t classes = cb.computed();
#pragma unroll 1
  for (int half = 0; half < (cb.negate ? 2 : 1); ++half) {
    const int64_t first = cb.class_at(block, half);
    if (first < classes && first + cb.order() > 0)
      body(static_cast<int>(first), half == 0 ? 1 : -1);
  }
}

// The elements of an item that are classes in [0, classes): rows below `width` of the block.
__device__ inline uint32_t live_elements(const Place& place, int width, int first_class,
                                         int classes) {
  const int lowest = first_class + place.first, highest = first_class + place.element(kItem - 1);
  if (lowest >= 0 && highest < classes && place.element(kItem - 1) < width) return 0xffffffffu;
  uint32_t live = 0;
#pragma unroll
  for (int e = 0; e < kItem; ++e) {
    const int cls = first_class + place.element(e);
    if (cls >= 0 && cls < classes && place.element(e) < width) live |= 1u << e;
  }
  return live;
}

// The simplex ETF: sum of y over all classes of the one block, whatever the shard; `each` calls
// body(place, y, there) over the block's rows.
template <class Real, class Each>
__device__ inline Real mean_over_classes(const Group& group, const Codebook& cb, int width,
                                         Each each) {
  Real sum = 0;
  each([&](const Place& place, const Real(&y)[kItem], bool there) {
    if (!there) return;
    const uint32_t live =
        live_elements(place, width, -static_cast<int>(cb.row_offset), static_cast<int>(cb.classes));
    for (int e = 0; e < kItem; ++e) sum += (live >> e & 1) != 0 ? y[e] : 0;
  });
  sum = group.reduce(sum, [](Real a, Real b) { return a + b; });
  return sum / static_cast<Real>(cb.classes);
}
__device__ inline double stretch_of(const Codebook& cb) {
  return sqrt(static_cast<double>(cb.classes) / static_cast<double>(cb.classes - 1));
}

}  // namespace fixclf::cuda
