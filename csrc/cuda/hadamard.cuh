// Walsh-Hadamard butterflies in registers, and the shared-memory layout between them.
//
// A row of n = b 2^k values is n / 32 items. An item is 32 values in one thread's registers that
// differ in five bits of their index: 5 stages cost it 80 additions, and no data moves. Passes over
// other bits read the row from shared memory, transposed, and write it back in place: an item's
// places belong to its thread. ceil(k / 5) passes; 8 bytes of shared memory a value and pass.
//
// Sum of additions: n k. Accumulates in Real: integers up to 2^24 are exact in float32.
#pragma once

#include "cuda/group.cuh"
#include "cuda/numeric.cuh"

namespace fixclf::cuda {

constexpr int kItemLog2 = 5;
constexpr int kItem = 1 << kItemLog2;

// Where element i of a row lies. Both neighbouring items and neighbouring elements fall into
// different banks; linear over GF(2): the place of i ^ j is the exclusive or of both.
__host__ __device__ inline int swizzled(int i) { return i ^ (i >> kItemLog2 & (kItem - 1)); }

// Elements first + (e << shift), 0 <= e < 32, of a row.
struct Place {
  int first, shift;

  __device__ Place(int item, int shift_)
      : first((item >> shift_) << (shift_ + kItemLog2) | (item & ((1 << shift_) - 1))),
        shift(shift_) {}
  __device__ int element(int e) const { return first + (e << shift); }
};

template <class Real>
__device__ inline void read(const Real* row, const Place& place, Real (&v)[kItem]) {
  const int first = swizzled(place.first);
#pragma unroll
  for (int e = 0; e < kItem; ++e) v[e] = row[first ^ swizzled(e << place.shift)];
}

template <class Real>
__device__ inline void write(const Real (&v)[kItem], const Place& place, Real* row) {
  const int first = swizzled(place.first);
#pragma unroll
  for (int e = 0; e < kItem; ++e) row[first ^ swizzled(e << place.shift)] = v[e];
}

// The stages [from, to) of an item's five.
template <class Real>
__device__ inline void butterflies(Real (&v)[kItem], int from, int to) {
#pragma unroll
  for (int stage = 0; stage < kItemLog2; ++stage) {
    if (stage < from || stage >= to) continue;
#pragma unroll
    for (int i = 0; i < kItem; ++i) {
      if ((i >> stage & 1) != 0) continue;
      const Real u = v[i], w = v[i | 1 << stage];
      v[i] = u + w;
      v[i | 1 << stage] = u - w;
    }
  }
}

// The passes over the k bits of a row: the lowest five; middle ones; the highest, which overlap
// with those before when k is no multiple of five and then leave out the stages that were done.
struct Passes {
  int log2;  // k

  __host__ __device__ explicit Passes(int k) : log2(k) {}
  __device__ bool single() const { return log2 <= kItemLog2; }
  __device__ int low_stages() const { return single() ? log2 : kItemLog2; }
  // Of the highest pass.
  __device__ int high_shift() const { return single() ? 0 : log2 - kItemLog2; }
  __device__ int high_from() const {
    return single() ? 0 : kItemLog2 - ((log2 - 1) % kItemLog2 + 1);
  }
  __device__ int high_to() const { return low_stages(); }
};

// One pass in place; the items of a group's row, each by one thread.
template <class Real>
__device__ inline void pass(const Group& group, int items, int shift, int from, int to, Real* row) {
  for (int item = group.rank(); item < items; item += group.threads()) {
    const Place place(item, shift);
    Real v[kItem];
    read(row, place, v);
    butterflies(v, from, to);
    write(v, place, row);
  }
}

// The passes between the lowest and the highest; begins and ends with a barrier.
template <class Real>
__device__ inline void middle_passes(const Group& group, int items, const Passes& passes,
                                     Real* row) {
  group.sync();
  for (int shift = kItemLog2; shift + kItemLog2 < passes.log2; shift += kItemLog2) {
    pass(group, items, shift, 0, kItemLog2, row);
    group.sync();
  }
}

}  // namespace fixclf::cuda
