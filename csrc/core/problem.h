// The problems that a backend solves, and their validation.
#pragma once

#include "core/codebook.h"
#include "core/types.h"

namespace fixclf {

enum class Epilogue : int64_t {
#define FIXCLF_EPILOGUE(enumerator, value, name) k##enumerator = value,
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
};

// y = scale H_n x for each row, n = columns = 2^k, k <= kMaxLog2Order. y may be x.
struct TransformProblem {
  ConstMatrix x;
  Matrix y;  // dtype and shape of x
  double scale;
};

// z_i = alpha <w_i, x^> / sqrt(N) + bias_i with x^ = x / max(|x|, 1e-12), then the epilogue.
// Without `normalize` x^ = x and the division by sqrt(N) falls away: z = alpha W x + bias.
struct HeadProblem {
  Codebook codebook;
  ConstMatrix x;  // [B, N]
  double alpha;
  bool has_bias;
  const void* bias;  // [class_end - class_begin] of the accumulation dtype
  int64_t bias_length;
  DType bias_dtype;
  bool normalize;
  Epilogue epilogue;
  Matrix out;  // [B, class_end - class_begin], dtype of x or float32
};

// out = W^T g for each row: the gradient of W x.
struct AdjointProblem {
  Codebook codebook;
  ConstMatrix g;  // [B, class_end - class_begin]
  Matrix out;     // [B, N] of the accumulation dtype
};

// float64 is accumulated in float64 (for gradient checks), everything else in float32.
inline DType accumulation_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// The shape of packed bits as they came: zero for none.
struct BitShape {
  int64_t rows = 0;
  int64_t bytes_per_row = 0;
};
Status validate(const Codebook& codebook, BitShape base, BitShape signs);
Status validate(const TransformProblem& problem);
Status validate(const HeadProblem& problem);
Status validate(const AdjointProblem& problem);

}  // namespace fixclf
