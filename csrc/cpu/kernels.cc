// One translation unit an ISA: compiled once for each row of isa.def, with that row's flags,
// FIXCLF_ISA_NAME and FIXCLF_ISA_HEADER. The table is its only symbol.
#include "cpu/kernel_table.h"
#include FIXCLF_ISA_HEADER
#include "cpu/head-inl.h"

namespace fixclf {
namespace {

// In bytes. Float's padding covers the narrower Double's.
int64_t transform_scratch(const TransformProblem& p) {
  return padded_row<Float>(p.x.columns) * size_of(accumulation_dtype(p.x.dtype));
}

int64_t head_scratch_bytes(const HeadProblem& p) {
  return head_scratch<Float>(p.codebook) * size_of(accumulation_dtype(p.x.dtype));
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
#else
      return;
#endif
  }
}

template <class T>
void head_16_bit(const HeadProblem& p, int64_t begin, int64_t end, void* scratch) {
  if (p.out.dtype == DType::kFloat32) return head_for<Float, T, float>(p, begin, end, scratch);
  return head_for<Float, T, T>(p, begin, end, scratch);
}

void head_problem(const HeadProblem& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.x.dtype) {
    case DType::kFloat32:
      return head_for<Float, float, float>(p, begin, end, scratch);
    case DType::kBFloat16:
      return head_16_bit<BFloat16>(p, begin, end, scratch);
    case DType::kFloat16:
      return head_16_bit<Float16>(p, begin, end, scratch);
    case DType::kFloat64:
#ifdef FIXCLF_HAS_DOUBLE
      return head_for<Double, double, double>(p, begin, end, scratch);
#else
      return;
#endif
  }
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
#else
      return;
#endif
  }
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
    head_scratch_bytes,
    adjoint_scratch,
    transform_problem,
    head_problem,
    adjoint_problem,
};

}  // namespace fixclf
