#include "cuda/transform.cuh"

#include <cmath>
#include <limits>

#include "cuda/launch.h"

namespace fixclf::cuda {
namespace {

template <class Real>
Status run(const TransformArguments& a, cudaStream_t stream) {
  const int cta = cta_threads(a.layout.threads, a.p.x.rows);
  return launch(transform_kernel<Real>, dim3(ctas(a.p.x.rows, cta, a.layout.threads)), cta,
                Shared<Real>::bytes(a.layout, 0, cta), stream, a);
}

}  // namespace

Status transform(const TransformProblem& p, cudaStream_t stream) {
  if (Status status = validate(p); !status.ok()) return status;
  if (p.x.columns > int64_t{1} << kMaxOrderLog2)
    return Status::error("x has " + std::to_string(p.x.columns) +
                         " elements in its last dimension, expected at most " +
                         std::to_string(1 << kMaxOrderLog2) + " on CUDA");
  if (p.x.rows == 0) return {};
  Codebook cb{};
  cb.features = cb.classes = cb.class_end = p.x.columns;
  cb.base_order = cb.blocks = 1;
  while (int64_t{1} << cb.log2 < p.x.columns) ++cb.log2;
  const double size = std::fabs(p.scale);
  const bool wide = p.x.dtype == DType::kFloat64;
  const double least =
      wide ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  const double most = wide ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  const bool fits = !(size > 0 && std::isfinite(size)) || (size >= least && size <= most);
  const TransformArguments a{p, cb, Layout(cb), fits};
  return p.x.dtype == DType::kFloat64 ? run<double>(a, stream) : run<float>(a, stream);
}

}  // namespace fixclf::cuda
