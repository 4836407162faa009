// Starts the kernels of one accumulation dtype; head_single.cu and head_double.cu instantiate it.
#pragma once

#include "cuda/head.cuh"
#include "cuda/launch.h"

namespace fixclf::cuda {

Status head_single(const HeadProblem& p, const void* alpha, const Workspace& workspace,
                   cudaStream_t stream);
Status head_double(const HeadProblem& p, const void* alpha, const Workspace& workspace,
                   cudaStream_t stream);

// Parts of a row's blocks: enough CTAs for one row to fill a device of 132 multiprocessors; fewer
// where each leaves many values.
inline int head_chunks(const HeadProblem& p, const Layout& layout) {
  const bool many_values = p.epilogue == Epilogue::kTopK && p.k > 64;
  return std::min(layout.blocks, many_values ? 64 : 256);
}

template <class Real, template <class> class E>
Status run_epilogue(const HeadProblem& p, const void* alpha, const Workspace& workspace,
                    cudaStream_t stream) {
  using State = typename E<Real>::State;
  constexpr int64_t kAlignment = 16;
  HeadArguments a{p, alpha, Layout(p.codebook), 0, p.x.rows, 1, 0, nullptr, 0, false};
  a.layout.threads = std::max(a.layout.threads, E<Real>::kLeastThreads);
  a.chunks = head_chunks(p, a.layout);
  a.area = static_cast<int>(E<Real>::area_bytes(p, a.layout));
  const bool merged = E<Real>::kAccumulates && a.chunks > 1;
  int64_t rows = p.x.rows;
  if (merged) {
    a.partial_bytes = (static_cast<int64_t>(sizeof(Partial<State, Real>)) +
                       E<Real>::saved_bytes(p) + kAlignment - 1) /
                      kAlignment * kAlignment;
    rows = rows_at_once(a.partial_bytes * a.chunks, rows);
    const int64_t bytes = rows * a.partial_bytes * a.chunks;
    a.partials = workspace.allocate(workspace.state, bytes);
    if (a.partials == nullptr) return out_of_memory(bytes);
  }
  for (int64_t begin = 0; begin < p.x.rows; begin += rows) {
    a.row_begin = begin;
    a.row_end = std::min(p.x.rows, begin + rows);
    const int64_t count = a.row_end - begin;
    const int cta = cta_threads(a.layout.threads, count);
    const dim3 grid(ctas(count, cta, a.layout.threads), static_cast<unsigned>(a.chunks));
    const int64_t shared = Shared<Real>::bytes(a.layout, a.area, cta);
    a.write_only = false;
    if (Status s = launch(head_kernel<Real, E>, grid, cta, shared, stream, a); !s.ok()) return s;
    if (!merged) continue;
    HeadArguments m = a;
    m.layout.items = 0;  // no row in shared memory
    m.layout.threads = p.epilogue == Epilogue::kTopK && p.k > 64 ? 256 : kWarp;
    m.area = static_cast<int>(E<Real>::area_bytes(p, m.layout));
    const int merge_cta = cta_threads(m.layout.threads, count);
    if (Status s = launch(merge_kernel<Real, E>, dim3(ctas(count, merge_cta, m.layout.threads)),
                          merge_cta, Shared<Real>::bytes(m.layout, m.area, merge_cta), stream, m);
        !s.ok())
      return s;
    if (!E<Real>::kMap) continue;
    a.write_only = true;
    if (Status s = launch(head_kernel<Real, E>, grid, cta, shared, stream, a); !s.ok()) return s;
  }
  return {};
}

template <class Real>
Status run_head(const HeadProblem& p, const void* alpha, const Workspace& workspace,
                cudaStream_t stream) {
  switch (p.epilogue) {
#define FIXCLF_EPILOGUE(enumerator, value, name, shape) \
  case Epilogue::k##enumerator:                         \
    return run_epilogue<Real, enumerator##Epilogue>(p, alpha, workspace, stream);
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
  }
  return {};
}

}  // namespace fixclf::cuda
