// The problems that a backend solves, and their validation.
#pragma once

#include "core/codebook.h"
#include "core/types.h"

namespace fixclf {

enum class Epilogue : int64_t {
#define FIXCLF_EPILOGUE(enumerator, value, name, shape) k##enumerator = value,
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
};

// Whether an epilogue writes one value a class.
FIXCLF_INLINE bool is_map(Epilogue epilogue) {
#define FIXCLF_MAP(enumerator) || epilogue == Epilogue::k##enumerator
#define FIXCLF_REDUCTION(enumerator)
#define FIXCLF_EPILOGUE(enumerator, value, name, shape) FIXCLF_##shape(enumerator)
  return false
#include "core/epilogue.def"
      ;
#undef FIXCLF_EPILOGUE
#undef FIXCLF_REDUCTION
#undef FIXCLF_MAP
}

// y = scale H_n x for each row, n = columns = 2^k, k <= kMaxLog2Order. y may be x.
struct TransformProblem {
  ConstMatrix x;
  Matrix y;  // dtype and shape of x
  double scale;
};

// z_i = alpha <w_i, x^> / sqrt(N) + bias_i with x^ = x / max(|x|, 1e-12), then the epilogue.
// Without `normalize` x^ = x and the division by sqrt(N) falls away: z = alpha W x + bias.
// "exact" stands for the accumulation dtype; M = class_end - class_begin for the classes computed,
// which are numbered from class_begin.
struct HeadProblem {
  Codebook codebook;
  ConstMatrix x;  // [B, N]; [B, ceil(N/8)] of packed signs
  double alpha;
  bool has_bias;
  const void* bias;  // [M] exact
  int64_t bias_length;
  DType bias_dtype;
  bool normalize;
  // No |z_i| of any row is larger: alpha and bias alone decide it. A backend that makes use of it
  // sets it; infinity where nothing is known.
  double largest_logit = __builtin_huge_val();
  // Reductions only: z_i = -inf where bit i of a row is clear. [1 or B, ceil(M/8)], null: all.
  const uint8_t* allowed;
  int64_t allowed_rows;
  int64_t allowed_bytes;
  Epilogue epilogue;
  // [B, M] for a map, dtype of x or exact. Reductions: TopK: values [B, k]. LogProb: [B, ids].
  // Nll: losses [B, 1]. All exact; unused by the others.
  Matrix out;
  int64_t k;               // TopK
  bool log_probabilities;  // TopK: values are z - logsumexp(z)
  // LogProb, Statistics: [B, ids_per_row] classes; Nll: [B, 1] targets; Sample: seeds.
  const int64_t* ids;
  int64_t ids_per_row;
  int64_t ignore_index;    // Nll: a target without loss, which may lie outside [0, M)
  double label_smoothing;  // Nll
  int64_t* indices;        // TopK: [B, k]; ArgMax, Sample: [B]
  void* logits;            // LogProb, Statistics: z at the ids, [B, ids_per_row] exact
  void* logsumexp;         // TopK, LogProb, Nll: [B] exact
  // Statistics, over the others: the allowed classes that are not among the row's ids. log sum
  // exp(z) in `logsumexp`, and sum z, sum z^2 and sum log(1 + exp(z)), each [B] exact; null: not
  // wanted. -inf and 0 where there are no others.
  void* sum;
  void* squares;
  void* softplus;
  // Each row of `ids`, ascending. A backend that makes use of it sets it, where a row has several.
  const int64_t* sorted_ids;

  // The bits of a row; null: all classes take part.
  FIXCLF_INLINE const uint8_t* allowed_of(int64_t row) const {
    return allowed == nullptr ? nullptr : allowed + (allowed_rows == 1 ? 0 : row) * allowed_bytes;
  }
  FIXCLF_INLINE const int64_t* sorted_ids_of(int64_t row) const {
    return (ids_per_row > 1 ? sorted_ids : ids) + row * ids_per_row;
  }
};

// The gradients of what the reductions derive from the logits: values at ids, the logsumexp, the
// sum, half the sum of squares and the sum of log(1 + exp(z)) have the gradients b, a, c, d and e
// of a row:
//   dz_i = a exp(z_i - logsumexp) + c + d z_i + e / (1 + exp(-z_i)) + sum of b_m over ids_m = i
//   projected = W^T dz for each row,   bias_grad = sum of dz over the rows.
// With `others` a, c, d and e do not reach the classes among the row's ids. A forbidden class has
// dz_i = 0; ids outside of the classes do not count; a row whose gradients are all 0 has dz = 0
// whatever it holds.
struct ReductionBackwardProblem {
  HeadProblem head;  // as it was; `ids`, `logsumexp` and `allowed` hold what they held or got
  const void* softmax_grad;  // a: [B] exact; null: 0
  const void* ids_grad;      // b: [B, ids_per_row] exact
  const void* uniform_grad;  // c: [B] exact; null: 0
  const void* linear_grad;   // d: [B] exact; null: 0
  const void* sigmoid_grad;  // e: [B] exact; null: 0
  bool others;
  Matrix projected;  // [B, N] exact
  void* bias_grad;   // [M] exact; null: not wanted
};

// out = W^T g for each row: the gradient of W x.
struct AdjointProblem {
  Codebook codebook;
  ConstMatrix g;  // [B, class_end - class_begin]
  Matrix out;     // [B, N] of the accumulation dtype
};

constexpr int64_t kMaxTopK = 1024;

// float64 is accumulated in float64 (for gradient checks), everything else in float32.
FIXCLF_INLINE DType accumulation_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// The shape of packed bits as they came: zero for none.
struct BitShape {
  int64_t rows = 0;
  int64_t bytes_per_row = 0;
};
Status validate(const Codebook& codebook, BitShape base, BitShape signs);
Status validate_map(int64_t epilogue);
Status validate(const TransformProblem& problem);
Status validate(const HeadProblem& problem);
Status validate(const ReductionBackwardProblem& problem);
Status validate(const AdjointProblem& problem);

// Without what depends on the values of masks, ids and targets, which a device may hold.
Status validate_shapes(const HeadProblem& problem);

}  // namespace fixclf
