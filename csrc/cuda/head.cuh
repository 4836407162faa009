// The fused head: norm, transform, scale and bias, epilogue; a group of threads a row.
//
//   z_i = alpha <w_i, x^> / sqrt(N) + b_i,   x^ = x / max(|x|_2, 1e-12)
//
// Bytes from memory: the row of x, the signs and the bias once a CTA (most of it from the L2
// cache), what the epilogue writes. Additions: those of the transforms (cuda/block.cuh), twice for
// softmax and log-softmax over several blocks. A row's blocks form chunks, one CTA each, whose
// partial results a second kernel joins in order; chunks depend on the codebook and k alone.
// Limits: order up to 32768 (16384 in float64) by shared memory.
#pragma once

#include "epilogues_cuda.h"

namespace fixclf::cuda {

// The rows of a CTA, and their shared memory: rows, the epilogues' areas, reduce()'s scratch.
template <class Real>
struct Shared {
  char* memory;
  const Layout& layout;
  int area;

  __device__ Shared(char* memory_, const Layout& layout_, int area_)
      : memory(memory_), layout(layout_), area(area_) {}
  __device__ int groups() const { return static_cast<int>(blockDim.x) / layout.threads; }
  __device__ Real* row(int group) const {
    return reinterpret_cast<Real*>(memory) + group * layout.padded();
  }
  __device__ char* area_of(int group) const {
    return memory + groups() * layout.padded() * static_cast<int>(sizeof(Real)) + group * area;
  }
  __device__ char* scratch() const { return area_of(groups()); }

  static int64_t bytes(const Layout& layout, int64_t area, int threads) {
    const int64_t groups = threads / layout.threads;
    return groups * (layout.padded() * static_cast<int64_t>(sizeof(Real)) + area) +
           Group::scratch_bytes(threads);
  }
};

// The CTA's dynamic shared memory.
__device__ inline char* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) char memory[];
  return memory;
#else
  return emulation::shared_memory();  // csrc/tests/cuda
#endif
}

// Blocks [begin, end) of chunk `chunk`, counted from the layout's first.
__host__ __device__ inline int chunk_begin(int blocks, int chunks, int chunk) {
  return static_cast<int>(static_cast<int64_t>(blocks) * chunk / chunks);
}

// What y of one block takes to become logits: scale (y - mean).
template <class Real>
struct Scaling {
  Real scale, mean;

  // Of a block that has been prepared.
  __device__ Scaling(const HeadArguments& a, const Group& group, const Block<Real>& block,
                     Real row_scale)
      : scale(row_scale), mean(0) {
    const Codebook& cb = a.p.codebook;
    if (!cb.center) return;
    mean =
        mean_over_classes<Real>(group, cb, a.layout.width, [&](auto body) { block.outputs(body); });
    scale *= static_cast<Real>(stretch_of(cb));
  }
};

// Calls body(logits) over the classes of one block, which has been prepared. The last pass is done
// again for the negated half, in which logits can't be made of those of the other.
template <class Real, class Body>
__device__ inline void for_logits(const HeadArguments& a, int64_t row, const Block<Real>& block,
                                  int number, const Scaling<Real>& scaling, Body body) {
  for_halves(a.p.codebook, number, [&](int first_class, int sign) {
    const Real scale = sign > 0 ? scaling.scale : -scaling.scale;
    block.outputs([&](const Place& place, Real(&y)[kItem], bool there) {
      body(Logits<Real>(a, row, place, y, there, first_class, scale, scaling.mean));
    });
  });
}

// What a group of a CTA works on: a row, and the blocks [begin, end) of a chunk, counted from the
// first. A group without a row of its own repeats the last one and keeps the results for itself.
template <class Real>
struct Work {
  Shared<Real> shared;
  Group group;
  bool active;
  int64_t row;
  int chunk, begin, end;

  __device__ explicit Work(const HeadArguments& a)
      : shared(shared_memory(), a.layout, a.area), group(a.layout.threads, shared.scratch()) {
    const int64_t wanted = a.row_begin + int64_t{blockIdx.x} * shared.groups() + group.index();
    active = wanted < a.row_end;
    row = active ? wanted : a.row_end - 1;
    chunk = static_cast<int>(blockIdx.y);
    begin = chunk_begin(a.layout.blocks, a.chunks, chunk);
    end = chunk_begin(a.layout.blocks, a.chunks, chunk + 1);
  }
  __device__ Real* memory() const { return shared.row(group.index()); }
  __device__ char* area() const { return shared.area_of(group.index()); }
};

template <class State, class Real>
struct Partial {
  State state;
  Real scale;  // NaN: the row holds a NaN
};
__device__ inline char* partial_of(const HeadArguments& a, int64_t row, int chunk) {
  return static_cast<char*>(a.partials) +
         ((row - a.row_begin) * a.chunks + chunk) * a.partial_bytes;
}

template <class Real, template <class> class Epilogue>
__global__ void __launch_bounds__(kMaxRowThreads, 1) head_kernel(const HeadArguments a) {
  using E = Epilogue<Real>;
  using State = typename E::State;
  const Work<Real> work(a);
  const Group& group = work.group;
  const bool active = work.active;
  const int64_t row = work.row;
  const int begin = work.begin, end = work.end;
  Row<Real> x(a.p.codebook, a.p.x, row);
  x.normalise(group, static_cast<const Real*>(a.alpha), a.p.normalize);
  Block<Real> block(group, a.layout, a.p.codebook, work.memory());
  E epilogue(a, row, group, work.area());

  // Pass 0 adds to the state; pass 1 writes a map's outputs. What a single block has left in shared
  // memory serves both.
  State state;
  if (E::kAccumulates && a.write_only)
    state = *reinterpret_cast<const State*>(partial_of(a, row, 0));
#pragma unroll 1
  for (int pass = E::kAccumulates && !a.write_only ? 0 : 1; pass < 2; ++pass) {
    if (pass == 1 && !E::kMap) break;
    const bool fresh = pass == 0 || !E::kAccumulates || a.write_only || end - begin > 1;
    for (int number = a.layout.first_block + begin; number < a.layout.first_block + end; ++number) {
      if (fresh) block.prepare(x, number);
      const Scaling<Real> scaling(a, group, block, x.scale);
      for_logits<Real>(a, row, block, number, scaling, [&](const Logits<Real>& logits) {
        if (pass == 0) {
          epilogue.add(logits);
        } else if (active) {
          epilogue.write(logits, state);
        }
      });
    }
    if (pass == 1) return;
    state = group.reduce(epilogue.state, State::join);
    if (a.chunks == 1) continue;
    char* const partial = partial_of(a, row, work.chunk);
    epilogue.save(partial + sizeof(Partial<State, Real>), active);
    if (active && group.rank() == 0)
      *reinterpret_cast<Partial<State, Real>*>(partial) = {state, x.scale};
    return;
  }
  epilogue.finish(state, x.scale == x.scale, active);
}

// Joins the chunks of each row: lane l those of l, l + threads, ..., then the lanes in order. Maps:
// the joined state replaces the first chunk's.
template <class Real, template <class> class Epilogue>
__global__ void __launch_bounds__(kMaxRowThreads, 1) merge_kernel(const HeadArguments a) {
  using E = Epilogue<Real>;
  using State = typename E::State;
  const Work<Real> work(a);
  const Group& group = work.group;
  const int64_t row = work.row;
  E epilogue(a, row, group, work.area());
  char* const partials = partial_of(a, row, 0);
  State state;
  for (int chunk = group.rank(); chunk < a.chunks; chunk += group.threads()) {
    const State& next =
        reinterpret_cast<const Partial<State, Real>*>(partials + chunk * a.partial_bytes)->state;
    state = chunk == group.rank() ? next : State::join(state, next);
  }
  const Real scale = reinterpret_cast<const Partial<State, Real>*>(partials)->scale;
  state = group.reduce(state, State::join);
  if constexpr (E::kMap) {
    group.sync();
    if (work.active && group.rank() == 0) *reinterpret_cast<State*>(partials) = state;
  } else {
    for (int chunk = 0; chunk < a.chunks; ++chunk)
      epilogue.join_saved(partials + chunk * a.partial_bytes + sizeof(Partial<State, Real>));
    epilogue.finish(state, scale == scale, work.active);
  }
}

}  // namespace fixclf::cuda
