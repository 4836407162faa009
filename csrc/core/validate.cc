#include <cmath>
#include <sstream>
#include <string>

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

// 2^16 values of up to 128 sum exactly in float32.
constexpr int64_t kMaxIntegerFeatures = int64_t{1} << 16;

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

Status validate_map(int64_t epilogue) {
  std::string maps;
#define FIXCLF_EPILOGUE(enumerator, value, name, shape)                                    \
  if (is_map(Epilogue::k##enumerator)) {                                                   \
    if (epilogue == value) return {};                                                      \
    maps += std::string(maps.empty() ? "" : ", ") + std::to_string(value) + " (" name ")"; \
  }
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
  return error("epilogue is ", epilogue, ", expected one of ", maps);
}

Status validate(const TransformProblem& p) {
  const int64_t n = p.x.columns;
  if (!is_floating(p.x.dtype))
    return error("x is ", name_of(p.x.dtype), ", expected float32, bfloat16, float16 or float64");
  if (n < 1 || n > kMaxOrder || (n & (n - 1)) != 0)
    return error("x has ", n, " elements in its last dimension, expected a power of two up to ",
                 kMaxOrder);
  if (p.y.dtype != p.x.dtype)
    return error("the output is ", name_of(p.y.dtype), ", but x is ", name_of(p.x.dtype));
  if (p.y.columns != n) return error("the output has ", p.y.columns, " columns, but x has ", n);
  return validate_rows("the output", p.y.rows, "x", p.x.rows);
}

namespace {

// What every epilogue shares: features, alpha, bias.
Status validate_inputs(const HeadProblem& p) {
  const Codebook& cb = p.codebook;
  const int64_t classes = cb.computed();
  if (p.x.dtype == DType::kSigns && p.x.columns != (cb.features + 7) / 8)
    return error("x has ", p.x.columns, " bytes of packed signs in its last dimension, expected ",
                 (cb.features + 7) / 8, " for ", cb.features, " features");
  if (p.x.dtype != DType::kSigns && p.x.columns != cb.features)
    return error("x has ", p.x.columns, " features in its last dimension, but the codebook has ",
                 cb.features);
  if (!is_floating(p.x.dtype) && cb.features > kMaxIntegerFeatures)
    return error("x is ", name_of(p.x.dtype), " with ", cb.features,
                 " features, more than the limit of ", kMaxIntegerFeatures, " for exact sums");
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
  return {};
}

Status validate_allowed_shape(const HeadProblem& p) {
  if (p.allowed == nullptr) return {};
  const int64_t classes = p.codebook.computed();
  if (p.allowed_bytes != (classes + 7) / 8)
    return error("allowed has rows of ", p.allowed_bytes, " bytes, expected ", (classes + 7) / 8,
                 " for ", classes, " classes");
  if (p.allowed_rows != 1 && p.allowed_rows != p.x.rows)
    return error("allowed has ", p.allowed_rows, " rows, expected 1 or ", p.x.rows,
                 ", as many as x");
  return {};
}

Status validate_allowed(const HeadProblem& p) {
  if (p.allowed == nullptr) return {};
  const int64_t classes = p.codebook.computed();
  for (int64_t r = 0; r < p.allowed_rows; ++r) {
    const uint8_t* row = p.allowed + r * p.allowed_bytes;
    int64_t i = 0;
    while (i < classes / 8 && row[i] == 0) ++i;
    if (i < classes / 8) continue;
    if (classes % 8 == 0 || (row[i] & ((1 << classes % 8) - 1)) == 0)
      return error("allowed allows no class in row ", r, ", expected at least one");
  }
  return {};
}

Status validate_label_smoothing(const HeadProblem& p) {
  if (p.label_smoothing >= 0 && p.label_smoothing <= 1) return {};
  return error("label_smoothing is ", p.label_smoothing, ", expected 0 to 1");
}

Status validate_ids(const HeadProblem& p, const char* name) {
  const int64_t classes = p.codebook.computed();
  for (int64_t i = 0; i < p.x.rows * p.ids_per_row; ++i) {
    if (p.ids[i] >= 0 && p.ids[i] < classes) continue;
    if (p.epilogue == Epilogue::kNll && p.ids[i] == p.ignore_index) continue;
    return error(name, "[", i / p.ids_per_row,
                 p.ids_per_row == 1 ? "" : ", " + std::to_string(i % p.ids_per_row), "] is ",
                 p.ids[i], ", expected a class in [0, ", classes, ")");
  }
  return {};
}

Status validate_out(const HeadProblem& p, DType dtype, int64_t columns) {
  if (p.out.dtype != dtype)
    return error("the output dtype is ", name_of(p.out.dtype), ", expected ", name_of(dtype));
  if (p.out.columns != columns)
    return error("the output has ", p.out.columns, " columns, expected ", columns);
  return validate_rows("the output", p.out.rows, "x", p.x.rows);
}

Status validate_map_out(const HeadProblem& p) {
  const DType exact = accumulation_dtype(p.x.dtype);
  if (p.allowed != nullptr)
    return error("allowed is given, but only reductions of the logits take one");
  if (p.out.dtype != exact && p.out.dtype != p.x.dtype)
    return error("the output dtype is ", name_of(p.out.dtype), ", expected ", name_of(exact),
                 !is_floating(p.x.dtype) || p.x.dtype == exact
                     ? ""
                     : std::string(" or ") + name_of(p.x.dtype));
  if (!is_floating(p.out.dtype))
    return error("the output dtype is ", name_of(p.out.dtype), ", expected ", name_of(exact));
  return validate_out(p, p.out.dtype, p.codebook.computed());
}

Status validate_reduction(const HeadProblem& p) {
  if (Status status = validate_allowed_shape(p); !status.ok()) return status;
  const DType exact = accumulation_dtype(p.x.dtype);
  const int64_t classes = p.codebook.computed();
  switch (p.epilogue) {
    case Epilogue::kTopK: {
      const int64_t most = classes < kMaxTopK ? classes : kMaxTopK;
      if (p.k < 1 || p.k > most)
        return error("k is ", p.k, ", expected 1 to ", most, " for ", classes, " classes");
      return validate_out(p, exact, p.k);
    }
    case Epilogue::kLogProb:
      return validate_out(p, exact, p.ids_per_row);
    case Epilogue::kNll:
      if (p.allowed != nullptr) return error("allowed is given, but the loss is over all classes");
      if (Status status = validate_label_smoothing(p); !status.ok()) return status;
      return validate_out(p, exact, 1);
    case Epilogue::kArgMax:
    case Epilogue::kSample:
    case Epilogue::kStatistics:
      return {};
    default:
      return error("epilogue is ", static_cast<int64_t>(p.epilogue),
                   ", which core/epilogue.def lacks");
  }
}

}  // namespace

Status validate_shapes(const HeadProblem& p) {
  if (Status status = validate_inputs(p); !status.ok()) return status;
  return is_map(p.epilogue) ? validate_map_out(p) : validate_reduction(p);
}

Status validate(const HeadProblem& p) {
  if (Status status = validate_shapes(p); !status.ok()) return status;
  if (Status status = validate_allowed(p); !status.ok()) return status;
  if (p.epilogue == Epilogue::kLogProb || p.epilogue == Epilogue::kStatistics)
    return validate_ids(p, "ids");
  if (p.epilogue == Epilogue::kNll) return validate_ids(p, "target");
  return {};
}

Status validate(const ReductionBackwardProblem& p) {
  const HeadProblem& head = p.head;
  if (Status status = validate_inputs(head); !status.ok()) return status;
  if (Status status = validate_allowed_shape(head); !status.ok()) return status;
  if (p.projected.columns != head.codebook.features)
    return error("the output has ", p.projected.columns, " columns, expected ",
                 head.codebook.features);
  return validate_rows("the output", p.projected.rows, "x", head.x.rows);
}

Status validate(const AdjointProblem& p) {
  const Codebook& cb = p.codebook;
  if (!is_floating(p.g.dtype))
    return error("g is ", name_of(p.g.dtype), ", expected float32, bfloat16, float16 or float64");
  if (p.g.columns != cb.computed())
    return error("g has ", p.g.columns, " classes in its last dimension, expected ", cb.computed());
  if (p.out.dtype != accumulation_dtype(p.g.dtype))
    return error("the output dtype is ", name_of(p.out.dtype), ", expected ",
                 name_of(accumulation_dtype(p.g.dtype)));
  if (p.out.columns != cb.features)
    return error("the output has ", p.out.columns, " columns, expected ", cb.features);
  return validate_rows("the output", p.out.rows, "g", p.g.rows);
}

}  // namespace fixclf
