// y[i] = scale sum_j (-1)^popcount(i & j) x[j], 0 <= i, j < 2^k: a group of threads a row.
//
// Bytes from memory: a row read and a row written, 16 bytes at a time. Additions: n k. Shared
// memory: n values, ceil(k / 5) passes over it, the last of which brings the results back into the
// order of their addresses. Accumulates in Real. Limit: 2^15 (2^14 in float64) by shared memory.
#pragma once

#include "cuda/head.cuh"

namespace fixclf::cuda {

struct TransformArguments {
  TransformProblem p;
  Codebook codebook;  // one Sylvester block of the order
  Layout layout;
  bool scale_fits;  // is a normal number, 0, an infinity or NaN in the accumulation dtype
};

template <class T, class Real>
__device__ inline void store_as(T* y, int64_t first, int64_t count, const Real (&v)[kItem]) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  T* to = y + first;
  if (first + kItem <= count && (reinterpret_cast<uintptr_t>(to) & 15) == 0) {
#pragma unroll
    for (int i = 0; i < kItem / kVector; ++i) {
      union {
        uint4 vector;
        T values[kVector];
      } out;
#pragma unroll
      for (int j = 0; j < kVector; ++j) out.values[j] = from_real(v[i * kVector + j], T());
      reinterpret_cast<uint4*>(to)[i] = out.vector;
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kItem; ++e)
    if (first + e < count) to[e] = from_real(v[e], T());
}

template <class Real>
__device__ inline void store_item(void* y, DType dtype, int64_t first, int64_t count,
                                  const Real (&v)[kItem]) {
  if constexpr (sizeof(Real) == 8) {
    store_as(static_cast<double*>(y), first, count, v);
  } else {
    switch (dtype) {
      case DType::kBFloat16:
        return store_as(static_cast<BFloat16*>(y), first, count, v);
      case DType::kFloat16:
        return store_as(static_cast<Float16*>(y), first, count, v);
      default:
        return store_as(static_cast<float*>(y), first, count, v);
    }
  }
}

template <class Real>
__global__ void __launch_bounds__(kMaxRowThreads, 1) transform_kernel(const TransformArguments a) {
  const Shared<Real> shared(shared_memory(), a.layout, 0);
  const Group group(a.layout.threads, shared.scratch());
  const int64_t wanted = int64_t{blockIdx.x} * shared.groups() + group.index();
  const bool active = wanted < a.p.x.rows;
  const int64_t row = active ? wanted : a.p.x.rows - 1;
  Row<Real> x(a.codebook, a.p.x, row);
  Block<Real> block(group, a.layout, a.codebook, shared.row(group.index()));
  char* const y = static_cast<char*>(a.p.y.data) + row * a.p.y.stride * size_of(a.p.y.dtype);
  const Real scale = static_cast<Real>(a.p.scale);
  const auto finish = [&](int item, Real(&v)[kItem]) {
    if (x.factor == 1 && a.scale_fits) {
#pragma unroll
      for (int e = 0; e < kItem; ++e) v[e] *= scale;
    } else {
      const double back = 1 / static_cast<double>(x.factor);
#pragma unroll
      for (int e = 0; e < kItem; ++e)
        v[e] = static_cast<Real>(static_cast<double>(v[e]) * a.p.scale * back);
    }
    if (active) store_item(y, a.p.y.dtype, kItem * item, a.p.y.columns, v);
  };
  // Once more for a row of which a sum overflowed, in a smaller unit. All groups of a barrier take
  // part; those without such a row do the same again.
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    block.prepare(x, 0);
    Real check = 0;
    block.outputs([&](const Place& place, Real(&v)[kItem], bool there) {
      if (!there) return;
#pragma unroll
      for (int e = 0; e < kItem; ++e) check = fused(v[e], Real(0), check);  // NaN for an infinity
      block.put(place, v);
    });
    if (turn == 1 || !group.any(is_nan(check))) break;
    check = group.reduce(check, [](Real p, Real q) { return p + q; });
    x.shrink(group, a.layout.log2, is_nan(check));
  }
  group.sync();
  for (int item = group.rank(); item < a.layout.items; item += group.threads()) {
    Real v[kItem];
    read(shared.row(group.index()), Place(item, 0), v);
    finish(item, v);
  }
}

}  // namespace fixclf::cuda
