#include "cuda/adjoint.cuh"

#include "cuda/launch.h"

namespace fixclf::cuda {
namespace {

// Few, as each leaves N values.
int adjoint_chunks(const Layout& layout) { return std::min(layout.blocks, 16); }

template <class Real>
Status sum(const void* parts, int count, int64_t rows, int64_t columns, int64_t stride, void* out,
           cudaStream_t stream) {
  const SumArguments s{parts, out, rows, columns, stride, count};
  const int64_t blocks = (rows * columns + kCtaThreads - 1) / kCtaThreads;
  return launch(sum_kernel<Real>, dim3(static_cast<unsigned>(blocks)), kCtaThreads, 0, stream, s);
}

// Runs a kernel that leaves [rows, chunks, N] partial sums; they are added into out [B, N].
template <class Real>
Status run_rows(void (*kernel)(AdjointArguments), AdjointArguments a, int64_t all, void* memory,
                const Matrix& out, cudaStream_t stream) {
  HeadArguments& head = a.head;
  const int64_t n = head.p.codebook.features;
  const bool direct = head.chunks == 1 && out.stride == n;
  const int64_t row_bytes = head.chunks * n * static_cast<int64_t>(sizeof(Real));
  const int64_t rows = direct ? all : rows_at_once(row_bytes, all);
  for (int64_t begin = 0; begin < all; begin += rows) {
    head.row_begin = begin;
    head.row_end = std::min(all, begin + rows);
    const int64_t count = head.row_end - begin;
    const int cta = cta_threads(head.layout.threads, count);
    a.out = direct ? out.data : memory;
    const dim3 grid(ctas(count, cta, head.layout.threads), static_cast<unsigned>(head.chunks));
    if (Status s = launch(kernel, grid, cta, Shared<Real>::bytes(head.layout, 0, cta), stream, a);
        !s.ok())
      return s;
    if (direct) continue;
    Real* to = static_cast<Real*>(out.data) + begin * out.stride;
    if (Status s = sum<Real>(memory, head.chunks, count, n, out.stride, to, stream); !s.ok())
      return s;
  }
  return {};
}

template <class Real>
int64_t row_workspace(const HeadArguments& head, int64_t rows, const Matrix& out) {
  const int64_t n = head.p.codebook.features;
  if (head.chunks == 1 && out.stride == n) return 0;
  const int64_t bytes = head.chunks * n * static_cast<int64_t>(sizeof(Real));
  return rows_at_once(bytes, rows) * bytes;
}

Status allocate(const Workspace& workspace, int64_t bytes, void** memory) {
  *memory = nullptr;
  if (bytes == 0) return {};
  *memory = workspace.allocate(workspace.state, bytes);
  return *memory == nullptr ? out_of_memory(bytes) : Status();
}

template <class Real>
Status run_adjoint(const AdjointProblem& p, const Workspace& workspace, cudaStream_t stream) {
  HeadProblem head{};
  head.codebook = p.codebook;
  AdjointArguments a{{head, nullptr, Layout(p.codebook), 0, p.g.rows, 1, 0, nullptr, 0, false},
                     p.g};
  a.head.chunks = adjoint_chunks(a.head.layout);
  void* memory;
  const int64_t bytes = row_workspace<Real>(a.head, p.g.rows, p.out);
  if (Status s = allocate(workspace, bytes, &memory); !s.ok()) return s;
  return run_rows<Real>(adjoint_kernel<Real>, a, p.g.rows, memory, p.out, stream);
}

template <class Real, template <class> class Gradient>
Status run_gradient(const ReductionBackwardProblem& p, const void* alpha,
                    const Workspace& workspace, cudaStream_t stream) {
  const Codebook& cb = p.head.codebook;
  const int64_t rows = p.head.x.rows, classes = cb.computed();
  AdjointArguments a{{p.head, alpha, Layout(cb), 0, rows, 1, 0, nullptr, 0, false}};
  a.softmax_grad = p.softmax_grad;
  a.ids_grad = p.ids_grad;
  a.uniform_grad = p.uniform_grad;
  a.linear_grad = p.linear_grad;
  a.sigmoid_grad = p.sigmoid_grad;
  a.others = p.others;
  a.head.chunks = adjoint_chunks(a.head.layout);
  // Slices of at least 16 rows, until there are enough CTAs; what they leave fits the workspace.
  const int64_t slice_bytes = classes * static_cast<int64_t>(sizeof(Real));
  int64_t slices = std::min<int64_t>((rows + 15) / 16, 512 / a.head.layout.blocks + 1);
  slices = std::max<int64_t>(1, std::min(slices, kWorkspaceBytes / slice_bytes));
  if (p.bias_grad == nullptr) slices = 1;
  const int64_t bytes = std::max(row_workspace<Real>(a.head, rows, p.projected),
                                 slices > 1 ? slices * slice_bytes : 0);
  void* memory;
  if (Status s = allocate(workspace, bytes, &memory); !s.ok()) return s;
  if (Status s = run_rows<Real>(reduction_projected_kernel<Real, Gradient>, a, rows, memory,
                                p.projected, stream);
      !s.ok())
    return s;
  if (p.bias_grad == nullptr) return {};
  a.slices = static_cast<int>(slices);
  a.bias_grad = slices > 1 ? memory : p.bias_grad;
  const int threads = a.head.layout.threads, cta = cta_threads(threads, a.head.layout.blocks);
  const dim3 grid(ctas(a.head.layout.blocks, cta, threads), static_cast<unsigned>(slices));
  if (Status s = launch(reduction_bias_kernel<Real, Gradient>, grid, cta,
                        Shared<Real>::bytes(a.head.layout, 0, cta), stream, a);
      !s.ok() || slices == 1)
    return s;
  return sum<Real>(memory, a.slices, 1, classes, classes, p.bias_grad, stream);
}

template <class Real>
Status run_reduction_backward(const ReductionBackwardProblem& p, const void* alpha,
                              const Workspace& workspace, cudaStream_t stream) {
  const bool softmax = p.softmax_grad != nullptr && p.linear_grad == nullptr &&
                       p.sigmoid_grad == nullptr && !p.others &&
                       (p.head.allowed == nullptr || p.uniform_grad == nullptr);
  return softmax ? run_gradient<Real, SoftmaxGradient>(p, alpha, workspace, stream)
                 : run_gradient<Real, StatisticsGradient>(p, alpha, workspace, stream);
}

}  // namespace

Status adjoint(const AdjointProblem& p, const Workspace& workspace, cudaStream_t stream) {
  if (Status status = validate(p); !status.ok()) return status;
  if (Status status = check_order(p.codebook); !status.ok()) return status;
  if (p.g.rows == 0) return {};
  return p.g.dtype == DType::kFloat64 ? run_adjoint<double>(p, workspace, stream)
                                      : run_adjoint<float>(p, workspace, stream);
}

Status reduction_backward(const ReductionBackwardProblem& p, const void* alpha,
                          const Workspace& workspace, cudaStream_t stream) {
  ReductionBackwardProblem checked = p;
  checked.head.alpha = 0;
  if (Status status = validate(checked); !status.ok()) return status;
  if (Status status = check_order(p.head.codebook); !status.ok()) return status;
  if (p.head.x.rows == 0) {
    if (p.bias_grad == nullptr) return {};
    const int64_t bytes =
        (p.head.codebook.computed()) * size_of(accumulation_dtype(p.head.x.dtype));
    return status_of(cudaMemsetAsync(p.bias_grad, 0, static_cast<size_t>(bytes), stream));
  }
  return p.head.x.dtype == DType::kFloat64
             ? run_reduction_backward<double>(checked, alpha, workspace, stream)
             : run_reduction_backward<float>(checked, alpha, workspace, stream);
}

}  // namespace fixclf::cuda
