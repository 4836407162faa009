// One translation unit an ISA: compiled once for each row of isa.def, with that row's flags,
// FIXCLF_ISA_NAME and FIXCLF_ISA_HEADER. The table is its only symbol.
#include "cpu/kernel_table.h"
#include FIXCLF_ISA_HEADER
#include "cpu/adjoint-inl.h"
#include "cpu/head-inl.h"

namespace fixclf {
namespace {

// In bytes. Float's padding covers the narrower Double's.
int64_t transform_scratch(const TransformProblem& p) {
  const int64_t rows = p.x.data == p.y.data ? 2 : 1;
  return rows * padded_row<Float>(p.x.columns) * size_of(accumulation_dtype(p.x.dtype));
}

int64_t adjoint_scratch(const AdjointProblem& p) {
  return 2 * padded_row<Float>(p.codebook.order()) * size_of(accumulation_dtype(p.g.dtype));
}

void transform_problem(const TransformProblem& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.x.dtype) {
    case DType::kFloat32:
      return transform_rows<Float, float>(p, begin, end, scratch);
    case DType::kBFloat16:
      return transform_rows<Float, BFloat16>(p, begin, end, scratch);
    case DType::kFloat16:
      return transform_rows<Float, Float16>(p, begin, end, scratch);
    case DType::kFloat64:
#ifdef FIXCLF_HAS_DOUBLE
      return transform_rows<Double, double>(p, begin, end, scratch);
#endif
    default:
      return;
  }
}

// Calls f with the entry points for the problem's epilogue, output dtype and addend.
template <class V, template <class, class> class Map, class Out, class F>
auto with_addend_of_map(const HeadProblem& p, F f) {
  return p.has_bias ? f(Head<V, Map<V, Out>, kBias>()) : f(Head<V, Map<V, Out>, kNothing>());
}
template <class V, template <class, class> class Map, class F>
auto with_map(const HeadProblem& p, F f) {
  if constexpr (sizeof(typename V::Real) == 8) {
    return with_addend_of_map<V, Map, double>(p, f);
  } else {
    switch (p.out.dtype) {
      case DType::kBFloat16:
        return with_addend_of_map<V, Map, BFloat16>(p, f);
      case DType::kFloat16:
        return with_addend_of_map<V, Map, Float16>(p, f);
      default:
        return with_addend_of_map<V, Map, float>(p, f);
    }
  }
}
template <class V, template <class> class Reduction, class F>
auto with_reduction(const HeadProblem& p, F f) {
  if (p.allowed != nullptr) return f(Head<V, Reduction<V>, kMasked>());
  return p.has_bias ? f(Head<V, Reduction<V>, kBias>()) : f(Head<V, Reduction<V>, kNothing>());
}
template <class V, class F>
auto with_epilogue(const HeadProblem& p, F f) {
#define FIXCLF_CASE_MAP(enumerator) with_map<V, enumerator##Epilogue>(p, f)
#define FIXCLF_CASE_REDUCTION(enumerator) with_reduction<V, enumerator##Epilogue>(p, f)
  switch (p.epilogue) {
#define FIXCLF_EPILOGUE(enumerator, value, name, shape) \
  case Epilogue::k##enumerator:                         \
    return FIXCLF_CASE_##shape(enumerator);
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
  }
  __builtin_unreachable();
}
template <class F>
auto with_head(const HeadProblem& p, F f) {
#ifdef FIXCLF_HAS_DOUBLE
  if (p.x.dtype == DType::kFloat64) return with_epilogue<Double>(p, f);
#endif
  return with_epilogue<Float>(p, f);
}

// Cosines lie in [-1, 1], and within 3 of 0 once they are centred and stretched.
template <class V>
double largest_logit_of(const HeadProblem& p) {
  using F = typename V::F;
  const double scale = __builtin_fabs(p.alpha) * (p.codebook.center ? 3 : 1);
  if (!p.normalize) return __builtin_huge_val();
  if (!p.has_bias) return scale;
  const auto* bias = static_cast<const typename V::Real*>(p.bias);
  F largest = {};
  for_lanes<V>(p.codebook.computed(), [&](int64_t i, auto lanes) {
    largest = V::max(largest, V::abs(lanes.load(bias + i)));
  });
  return scale + V::reduce_max(largest);
}

double largest_logit(const HeadProblem& p) {
#ifdef FIXCLF_HAS_DOUBLE
  if (p.x.dtype == DType::kFloat64) return largest_logit_of<Double>(p);
#endif
  return largest_logit_of<Float>(p);
}

HeadPlan head_plan(const HeadProblem& p) {
  return with_head(p, [&](auto head) {
    using H = decltype(head);
    return HeadPlan{H::scratch(p), H::state_bytes(p), H::Tile::passes(p), H::Tile::tile(p),
                    Chunks(p.codebook).count};
  });
}

void head_rows(const HeadProblem& p, int64_t begin, int64_t end, void* scratch) {
  with_head(p, [&](auto head) { head.rows(p, begin, end, scratch); });
}

void head_chunks(const HeadProblem& p, int64_t row, int count, int pass, int64_t begin, int64_t end,
                 char* states, void* scratch) {
  with_head(p, [&](auto head) { head.chunks(p, row, count, pass, begin, end, states, scratch); });
}

void head_merge(const HeadProblem& p, int count, int pass, char* states) {
  with_head(p, [&](auto head) { head.merge(p, count, pass, states); });
}

void adjoint_problem(const AdjointProblem& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.g.dtype) {
    case DType::kFloat32:
      return adjoint_rows<Float, float>(p, begin, end, scratch);
    case DType::kBFloat16:
      return adjoint_rows<Float, BFloat16>(p, begin, end, scratch);
    case DType::kFloat16:
      return adjoint_rows<Float, Float16>(p, begin, end, scratch);
    case DType::kFloat64:
#ifdef FIXCLF_HAS_DOUBLE
      return adjoint_rows<Double, double>(p, begin, end, scratch);
#endif
    default:
      return;
  }
}

int64_t reduction_backward_scratch(const ReductionBackwardProblem& p) {
  return kReductionBackwardRows * padded_row<Float>(p.head.codebook.order()) *
         size_of(accumulation_dtype(p.head.x.dtype));
}

template <class V>
void reduction_backward_of(const ReductionBackwardProblem& p, const ReductionBackwardPart& part,
                           void* scratch) {
  using Real = typename V::Real;
  const auto kernel = p.head.allowed != nullptr ? reduction_backward_part<V, kMasked>
                      : p.head.has_bias         ? reduction_backward_part<V, kBias>
                                                : reduction_backward_part<V, kNothing>;
  kernel(p, part.row_begin, part.row_end, part.first_block, part.last_block,
         static_cast<Real*>(part.projected), static_cast<Real*>(part.bias_grad), scratch);
}

void reduction_backward(const ReductionBackwardProblem& p, const ReductionBackwardPart& part,
                        void* scratch) {
#ifdef FIXCLF_HAS_DOUBLE
  if (p.head.x.dtype == DType::kFloat64) return reduction_backward_of<Double>(p, part, scratch);
#endif
  reduction_backward_of<Float>(p, part, scratch);
}

}  // namespace

#define FIXCLF_TABLE_OF(isa) FIXCLF_TABLE_OF_(isa)
#define FIXCLF_TABLE_OF_(isa) kernels_##isa
#define FIXCLF_STRING(isa) FIXCLF_STRING_(isa)
#define FIXCLF_STRING_(isa) #isa

extern const KernelTable FIXCLF_TABLE_OF(FIXCLF_ISA_NAME);
const KernelTable FIXCLF_TABLE_OF(FIXCLF_ISA_NAME) = {
    FIXCLF_STRING(FIXCLF_ISA_NAME),
    transform_scratch,
    adjoint_scratch,
    transform_problem,
    adjoint_problem,
    largest_logit,
    head_plan,
    head_rows,
    head_chunks,
    head_merge,
    reduction_backward_scratch,
    reduction_backward,
};

}  // namespace fixclf
