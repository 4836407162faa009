#include <cmath>
#include <sstream>

#include "core/problem.h"

namespace fixclf {
namespace {

template <class... Parts>
Status error(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  return Status::error(message.str());
}

// So that no product of sizes below can overflow.
constexpr int64_t kMaxClasses = int64_t{1} << 30;

int64_t rows_available(const Codebook& cb) { return cb.blocks * cb.rows_per_block(); }

Status validate_rows(const char* name, int64_t rows, const char* other_name, int64_t other) {
  if (rows == other) return {};
  return error(name, " has ", rows, " rows, but ", other_name, " has ", other);
}

}  // namespace

Status validate(const Codebook& cb, BitShape base, BitShape signs) {
  if (cb.base_order < 1 || cb.base_order > kMaxBaseOrder)
    return error("base_order is ", cb.base_order, ", expected 1 to ", kMaxBaseOrder);
  if (cb.log2 < 0 || cb.log2 > kMaxLog2Order || cb.order() > kMaxOrder)
    return error("the order base_order * 2^log2 = ", cb.base_order, " * 2^", cb.log2,
                 " is over the limit of ", kMaxOrder);
  if (cb.features < 1 || cb.features > kMaxOrder)
    return error("the codebook has ", cb.features, " features, expected 1 to ", kMaxOrder);
  if (cb.column_offset < 0 || cb.column_offset > 1)
    return error("column_offset is ", cb.column_offset, ", expected 0 or 1");
  if (cb.features + cb.column_offset > cb.order())
    return error("the codebook of order ", cb.order(), " can't hold ", cb.features,
                 " features from column ", cb.column_offset);
  if ((cb.base_order == 1) != (base.rows == 0))
    return error("base must be given exactly when base_order is not 1; base has ", base.rows,
                 " rows and base_order is ", cb.base_order);
  if (base.rows != 0 && (base.rows != cb.base_order || base.bytes_per_row != cb.base_stride()))
    return error("base has ", base.rows, " rows of ", base.bytes_per_row, " bytes, expected ",
                 cb.base_order, " x ", cb.base_stride(), " for base_order ", cb.base_order);
  if (cb.blocks < 1 || cb.blocks > kMaxClasses)
    return error("signs has ", cb.blocks, " rows, expected at least 1");
  if (signs.rows != 0 && (signs.rows != cb.blocks || signs.bytes_per_row != cb.sign_stride()))
    return error("signs has ", signs.rows, " rows of ", signs.bytes_per_row, " bytes, expected ",
                 cb.blocks, " x ", cb.sign_stride(), " for order ", cb.order());
  if (cb.classes < 1 || cb.classes > kMaxClasses)
    return error("num_classes is ", cb.classes, ", expected 1 to ", kMaxClasses);
  if (cb.row_offset < 0 || cb.row_offset > kMaxClasses)
    return error("row_offset is ", cb.row_offset, ", expected 0 to ", kMaxClasses);
  if (cb.row_offset + cb.classes > rows_available(cb))
    return error("num_classes is ", cb.classes, " from row ", cb.row_offset, ", but ", cb.blocks,
                 " block(s) of order ", cb.order(), " have ", rows_available(cb), " distinct rows");
  if (cb.center && (cb.blocks != 1 || cb.negate || cb.classes < 2))
    return error("center needs one block without negations and at least 2 classes, not ", cb.blocks,
                 " block(s)", cb.negate ? " with negations" : "", " and ", cb.classes,
                 " class(es)");
  if (cb.class_begin < 0 || cb.class_end <= cb.class_begin || cb.class_end > cb.classes)
    return error("the class range is [", cb.class_begin, ", ", cb.class_end,
                 "), expected a non-empty range within [0, ", cb.classes, ")");
  return {};
}

Status validate(const TransformProblem& p) {
  const int64_t n = p.x.columns;
  if (n < 1 || n > kMaxOrder || (n & (n - 1)) != 0)
    return error("x has ", n, " elements in its last dimension, expected a power of two up to ",
                 kMaxOrder);
  if (p.y.dtype != p.x.dtype)
    return error("the output is ", name_of(p.y.dtype), ", but x is ", name_of(p.x.dtype));
  if (p.y.columns != n) return error("the output has ", p.y.columns, " columns, but x has ", n);
  return validate_rows("the output", p.y.rows, "x", p.x.rows);
}

Status validate(const HeadProblem& p) {
  const Codebook& cb = p.codebook;
  const int64_t classes = cb.class_end - cb.class_begin;
  if (p.x.columns != cb.features)
    return error("x has ", p.x.columns, " features in its last dimension, but the codebook has ",
                 cb.features);
  const DType expected = accumulation_dtype(p.x.dtype);
  if (!std::isfinite(expected == DType::kFloat64 ? p.alpha : static_cast<float>(p.alpha)))
    return error("alpha is ", p.alpha, ", expected a finite ", name_of(expected));
  if (p.has_bias) {
    if (p.bias_length != classes)
      return error("bias has ", p.bias_length, " elements, expected one for each of ", classes,
                   " classes");
    if (p.bias_dtype != expected)
      return error("bias is ", name_of(p.bias_dtype), ", expected ", name_of(expected), " for ",
                   name_of(p.x.dtype), " features");
  }
  switch (p.epilogue) {
#define FIXCLF_EPILOGUE(enumerator, value, name) case Epilogue::k##enumerator:
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
    break;
    default:
      return error("epilogue is ", static_cast<int64_t>(p.epilogue), ", which is not one of"
#define FIXCLF_EPILOGUE(enumerator, value, name) " " #value " (" name ")"
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
      );
  }
  if (p.out.dtype != p.x.dtype && p.out.dtype != expected)
    return error("the output dtype is ", name_of(p.out.dtype), ", expected ", name_of(expected),
                 p.x.dtype == expected ? "" : " or ",
                 p.x.dtype == expected ? "" : name_of(p.x.dtype));
  if (p.out.columns != classes)
    return error("the output has ", p.out.columns, " columns, expected ", classes);
  return validate_rows("the output", p.out.rows, "x", p.x.rows);
}

Status validate(const AdjointProblem& p) {
  const Codebook& cb = p.codebook;
  if (p.g.columns != cb.class_end - cb.class_begin)
    return error("g has ", p.g.columns, " classes in its last dimension, expected ",
                 cb.class_end - cb.class_begin);
  if (p.out.dtype != accumulation_dtype(p.g.dtype))
    return error("the output dtype is ", name_of(p.out.dtype), ", expected ",
                 name_of(accumulation_dtype(p.g.dtype)));
  if (p.out.columns != cb.features)
    return error("the output has ", p.out.columns, " columns, expected ", cb.features);
  return validate_rows("the output", p.out.rows, "g", p.g.rows);
}

}  // namespace fixclf
