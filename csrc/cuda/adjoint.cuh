// The adjoint of the projection, u = W^T g, and the gradients of the reductions:
//
//   dz_i = a exp(z_i - logsumexp) + c + d z_i + e / (1 + exp(-z_i)) + sum of b_m over ids_m = i,
//   projected = W^T dz for each row,   bias_grad = sum of dz over the rows.
//
// The logits are computed again: no array of [B, C]. Additions: two transforms a block and row for
// `projected`, one for `bias_grad`. Partial sums over chunks of blocks (over slices of rows for
// bias_grad) lie in the workspace, N (M) values each, and are added in order. Accumulates in Real.
#pragma once

#include "cuda/head.cuh"

namespace fixclf::cuda {

struct AdjointArguments {
  HeadArguments head;                  // p.codebook; for the reductions all of it
  ConstMatrix g{};                     // without a reduction: the gradients of the logits
  const void* softmax_grad = nullptr;  // a: [B] exact, or null
  const void* ids_grad = nullptr;      // b: [B, ids_per_row] exact
  const void* uniform_grad = nullptr;  // c: [B] exact, or null
  const void* linear_grad = nullptr;   // d: [B] exact, or null
  const void* sigmoid_grad = nullptr;  // e: [B] exact, or null
  bool others = false;                 // a, c, d and e pass over the ids
  void* out = nullptr;                 // [rows of this launch, chunks, N], or [B, N] with one chunk
  void* bias_grad = nullptr;           // [slices, M]
  int slices = 1;                      // of the rows
};

// The centred adjoint: every class's gradient less their mean, stretched.
template <class Real>
__device__ inline void center_gradients(const Group& group, const Codebook& cb, int width,
                                        Block<Real>& block) {
  group.sync();
  const Real mean = mean_over_classes<Real>(group, cb, width, [&](auto body) {
    block.change([&](const Place& place, Real(&v)[kItem]) { body(place, v, true); });
  });
  const Real stretch = static_cast<Real>(stretch_of(cb));
  block.change([&](const Place& place, Real(&v)[kItem]) {
    const uint32_t live =
        live_elements(place, width, -static_cast<int>(cb.row_offset), static_cast<int>(cb.classes));
#pragma unroll
    for (int e = 0; e < kItem; ++e) v[e] = (live >> e & 1) != 0 ? (v[e] - mean) * stretch : 0;
  });
}

// One gradient g[i], of any floating dtype.
template <class Real>
__device__ inline Real load_gradient(const ConstMatrix& g, int64_t row, int i) {
  const char* from = static_cast<const char*>(g.data) + row * g.stride * size_of(g.dtype);
  return load_one<Real>(from, g.dtype, i);
}

// Where a chunk's sum of a row goes; null for a group without a row.
template <class Real>
__device__ inline Real* output_of(const AdjointArguments& a, const Work<Real>& work) {
  const int64_t place = (work.row - a.head.row_begin) * a.head.chunks + work.chunk;
  return work.active ? static_cast<Real*>(a.out) + place * a.head.p.codebook.features : nullptr;
}

template <class Real>
__global__ void __launch_bounds__(kMaxRowThreads, 1) adjoint_kernel(const AdjointArguments a) {
  const HeadArguments& head = a.head;
  const Codebook& cb = head.p.codebook;
  const Work<Real> work(head);
  const Group& group = work.group;
  const int64_t row = work.row;
  Block<Real> block(group, head.layout, cb, work.memory());
  Real* const out = output_of(a, work);
  for (int i = work.begin; i < work.end; ++i) {
    const int number = head.layout.first_block + i;
    block.places([&](const Place& place, bool there) {
      if (!there) return;
      Real d[kItem] = {};
      for_halves(cb, number, [&](int first_class, int sign) {
        const uint32_t live =
            live_elements(place, head.layout.width, first_class, static_cast<int>(cb.computed()));
#pragma unroll
        for (int e = 0; e < kItem; ++e) {
          if ((live >> e & 1) == 0) continue;
          const Real value = load_gradient<Real>(a.g, row, first_class + place.element(e));
          d[e] = sign > 0 ? d[e] + value : d[e] - value;
        }
      });
      block.put(place, d);
    });
    if (cb.center) center_gradients(group, cb, head.layout.width, block);
    block.transposed(number, i > work.begin, out);
  }
}

// dz of one row. A gradient of it: `of` a logit among `counted`, but for what reaches it by an id,
// and `at_ids` for that.
template <class Real>
struct RowGradient {
  const int64_t* ids;
  const Real* ids_grad;
  int count;
  Real softmax, uniform, lse;
  bool zero;  // a row that does not count, whatever it holds

  __device__ RowGradient(const AdjointArguments& a, int64_t row) {
    const HeadProblem& p = a.head.p;
    count = static_cast<int>(p.ids_per_row);
    ids = p.ids + row * count;
    ids_grad = static_cast<const Real*>(a.ids_grad) + row * count;
    softmax = of_row(a.softmax_grad, row);
    uniform = of_row(a.uniform_grad, row);
    lse = of_row(p.logsumexp, row);
    zero = softmax == 0 && uniform == 0;
    for (int m = 0; m < count; ++m) zero = zero && ids_grad[m] == 0;
  }
  __device__ static Real of_row(const void* values, int64_t row) {
    return values == nullptr ? 0 : static_cast<const Real*>(values)[row];
  }
  // body(i, id, sign, value) for the ids that are rows i of a block, in a half of that sign. By one
  // thread, as ids may repeat.
  template <class Body>
  __device__ void at_ids(const HeadArguments& head, int64_t row, int block, Body body) const {
    const HeadProblem& p = head.p;
    const int64_t classes = p.codebook.computed();
    const uint8_t* allowed = p.allowed_of(row);
    for_halves(p.codebook, block, [&](int first_class, int sign) {
#pragma unroll 1
      for (int m = 0; m < count; ++m) {
        const int64_t id = ids[m], i = id - first_class;
        if (id < 0 || id >= classes || i < 0 || i >= head.layout.width) continue;
        if (allowed != nullptr && (allowed[id / 8] >> id % 8 & 1) == 0) continue;
        body(static_cast<int>(i), id, sign, ids_grad[m]);
      }
    });
  }
};

// Of a logsumexp over all classes and, where there is no mask, of a sum.
template <class Real>
struct SoftmaxGradient : RowGradient<Real> {
  using RowGradient<Real>::RowGradient;

  __device__ uint32_t counted(const Logits<Real>& logits) const { return logits.live; }
  __device__ Real of(const Logits<Real>& logits, int e, uint32_t) const {
    if (this->zero) return 0;
    return fused(exp_of(logits.z[e] - this->lse), this->softmax, this->uniform);
  }
};

// Every term.
template <class Real>
struct StatisticsGradient : RowGradient<Real> {
  Real linear, sigmoid;
  bool curved, others, masked;

  __device__ StatisticsGradient(const AdjointArguments& a, int64_t row)
      : RowGradient<Real>(a, row),
        linear(this->of_row(a.linear_grad, row)),
        sigmoid(this->of_row(a.sigmoid_grad, row)),
        curved(a.softmax_grad != nullptr),
        others(a.others),
        masked(a.head.p.allowed != nullptr) {
    this->zero = this->zero && linear == 0 && sigmoid == 0;
  }
  __device__ uint32_t counted(const Logits<Real>& logits) const {
    if (this->zero) return 0;
    uint32_t bits = logits.live;
    if (others) bits &= ~elements_at(logits, this->ids, this->count, [](int64_t, Real) {});
    if (masked) {
#pragma unroll
      for (int e = 0; e < kItem; ++e)
        if (logits.z[e] == kLowest<Real>) bits &= ~(1u << e);
    }
    return bits;
  }
  __device__ Real of(const Logits<Real>& logits, int e, uint32_t counted) const {
    if ((counted >> e & 1) == 0) return 0;
    const Real z = logits.z[e];
    Real g = fused(z, linear, this->uniform);
    if (curved) g = fused(exp_of(z - this->lse), this->softmax, g);
    if (sigmoid != 0) g = fused(sigmoid, 1 / (1 + exp_of(-z)), g);
    return g;
  }
};

template <class Real, template <class> class Gradient>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    reduction_projected_kernel(const AdjointArguments a) {
  const HeadArguments& head = a.head;
  const Codebook& cb = head.p.codebook;
  const Work<Real> work(head);
  const Group& group = work.group;
  const int64_t row = work.row;
  Row<Real> x(cb, head.p.x, row);
  x.normalise(group, static_cast<const Real*>(head.alpha), head.p.normalize);
  const Gradient<Real> gradient(a, row);
  Block<Real> block(group, head.layout, cb, work.memory());
  Real* const out = output_of(a, work);
  for (int i = work.begin; i < work.end; ++i) {
    const int number = head.layout.first_block + i;
    block.prepare(x, number);
    const Scaling<Real> scaling(head, group, block, x.scale);
    block.outputs([&](const Place& place, const Real(&y)[kItem], bool there) {
      if (!there) return;
      Real d[kItem] = {};
      for_halves(cb, number, [&](int first_class, int sign) {
        Real z[kItem];
#pragma unroll
        for (int e = 0; e < kItem; ++e) z[e] = y[e];
        const Logits<Real> logits(head, row, place, z, true, first_class,
                                  sign > 0 ? scaling.scale : -scaling.scale, scaling.mean);
        const uint32_t counted = gradient.counted(logits);
#pragma unroll
        for (int e = 0; e < kItem; ++e) {
          if ((logits.live >> e & 1) == 0) continue;
          const Real dz = gradient.of(logits, e, counted);
          d[e] = sign > 0 ? d[e] + dz : d[e] - dz;
        }
      });
      block.put(place, d);
    });
    group.sync();
    if (group.rank() == 0)
      gradient.at_ids(head, row, number, [&](int at, int64_t, int sign, Real value) {
        block.add_at(at, sign > 0 ? value : -value);
      });
    group.sync();
    if (cb.center) center_gradients(group, cb, head.layout.width, block);
    block.transposed(number, i > work.begin, out);
  }
}

// A group for each block, over one slice of the rows: no two threads add to the same class.
template <class Real, template <class> class Gradient>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    reduction_bias_kernel(const AdjointArguments a) {
  const HeadArguments& head = a.head;
  const Codebook& cb = head.p.codebook;
  const Shared<Real> shared(shared_memory(), head.layout, 0);
  const Group group(head.layout.threads, shared.scratch());
  const int wanted = static_cast<int>(blockIdx.x) * shared.groups() + group.index();
  const bool active = wanted < head.layout.blocks;
  const int number = head.layout.first_block + (active ? wanted : 0);
  const int slice = static_cast<int>(blockIdx.y);
  const int64_t begin = head.p.x.rows * slice / a.slices;
  const int64_t end = head.p.x.rows * (slice + 1) / a.slices;
  Real* const out = static_cast<Real*>(a.bias_grad) + slice * (cb.computed());
  Block<Real> block(group, head.layout, cb, shared.row(group.index()));
  for (int64_t row = begin; row < end; ++row) {
    Row<Real> x(cb, head.p.x, row);
    x.normalise(group, static_cast<const Real*>(head.alpha), head.p.normalize);
    const Gradient<Real> gradient(a, row);
    block.prepare(x, number);
    const Scaling<Real> scaling(head, group, block, x.scale);
    for_logits<Real>(head, row, block, number, scaling, [&](const Logits<Real>& logits) {
      if (!active) return;
      const uint32_t counted = gradient.counted(logits);
#pragma unroll
      for (int e = 0; e < kItem; ++e) {
        if ((logits.live >> e & 1) == 0) continue;
        const Real dz = gradient.of(logits, e, counted);
        Real* at = out + logits.id(e);
        *at = row == begin ? dz : *at + dz;
      }
    });
    group.sync();
    if (active && group.rank() == 0)
      gradient.at_ids(head, row, number,
                      [&](int, int64_t id, int, Real value) { out[id] += value; });
  }
}

struct SumArguments {
  const void* parts;  // [rows, count, columns]
  void* out;          // rows of `columns` at a stride
  int64_t rows, columns, stride;
  int count;
};

// out[r, j] = parts[r, 0, j] + parts[r, 1, j] + ...
template <class Real>
__global__ void __launch_bounds__(kCtaThreads) sum_kernel(const SumArguments a) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= a.rows * a.columns) return;
  const int64_t row = i / a.columns, column = i % a.columns;
  const Real* from = static_cast<const Real*>(a.parts) + row * a.count * a.columns + column;
  Real sum = from[0];
  for (int part = 1; part < a.count; ++part) sum += from[part * a.columns];
  static_cast<Real*>(a.out)[row * a.stride + column] = sum;
}

}  // namespace fixclf::cuda
