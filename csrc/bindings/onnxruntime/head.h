// FixedHead and FixedHeadTopK: z_i = alpha <w_i, x^> / sqrt(N) + bias_i for each row of X, then the
// epilogue.
#pragma once

#include <array>
#include <initializer_list>
#include <vector>

#include "bindings/onnxruntime/op.h"
#include "core/problem.h"

namespace fixclf::ort {

// What both operators take: attributes that describe the codebook, and the inputs
//   X [..., N], alpha (one element), bias [C], signs [blocks, ceil(n/8)], base [b, ceil(b/8)].
class HeadInputs {
 public:
  static constexpr Parameter kX{ElementType::kX};
  static constexpr Parameter kAlpha{ElementType::kFloats};
  static constexpr Parameter kBias{ElementType::kFloats, INPUT_OUTPUT_OPTIONAL};
  static constexpr Parameter kBits{ElementType::kUint8, INPUT_OUTPUT_OPTIONAL};

  // own: the attributes that only this operator has, in the order of the format.
  HeadInputs(const KernelInfo& info, DType x, std::initializer_list<const char*> own);

  // The problem of no rows, for validation.
  const HeadProblem& fixed() const { return problem_; }

  // One run: the problem, all but its output, and the dimensions of X.
  struct Run {
    HeadProblem problem;
    Dimensions dimensions;
    std::vector<float> bias;  // where the model's is computed, and not in float32
  };
  Run read(const KernelContext& context) const;

 private:
  enum Input { kInputX, kInputAlpha, kInputBias, kInputSigns, kInputBase, kInputCount };

  // What the model fixes is checked once, when the kernel is made; the rest in each run.
  bool is_fixed(Input input) const { return fixed_[input]; }
  void set_alpha(const Tensor& alpha, HeadProblem* problem) const;
  void set_bias(const Tensor& bias, HeadProblem* problem) const;
  void set_codebook(const Tensor& signs, const Tensor& base, Codebook* codebook) const;
  void check_scale(const Tensor& alpha, const Tensor& bias) const;

  HeadProblem problem_{};
  bool has_bias_;
  int64_t version_, checksum_, scale_checksum_ = 0;
  std::vector<int64_t> integers_;  // what the checksum of version 2 covers beside the bits
  std::array<bool, kInputCount> fixed_{};
  std::vector<float> bias_;  // where the model's is fixed, and not in float32
};

class FixedHead {
 public:
  static constexpr const char* kName = "FixedHead";
  static constexpr Parameter kInputs[] = {HeadInputs::kX, HeadInputs::kAlpha, HeadInputs::kBias,
                                          HeadInputs::kBits, HeadInputs::kBits};
  static constexpr Parameter kOutputs[] = {{ElementType::kY}};

  FixedHead(const KernelInfo& info, DType x);
  void compute(KernelContext& context) const;
  static void infer_shapes(const ShapeContext& shapes);

 private:
  HeadInputs inputs_;
  Epilogue epilogue_;
  DType y_;
};

// values [..., k] descending (z or its log-probability), indices [..., k], logsumexp [...].
class FixedHeadTopK {
 public:
  static constexpr const char* kName = "FixedHeadTopK";
  static constexpr Parameter kInputs[] = {HeadInputs::kX, HeadInputs::kAlpha, HeadInputs::kBias,
                                          HeadInputs::kBits, HeadInputs::kBits};
  static constexpr Parameter kOutputs[] = {
      {ElementType::kFloat32}, {ElementType::kInt64}, {ElementType::kFloat32}};

  FixedHeadTopK(const KernelInfo& info, DType x);
  void compute(KernelContext& context) const;
  static void infer_shapes(const ShapeContext& shapes);

 private:
  HeadInputs inputs_;
  int64_t k_;
  bool log_probabilities_;
};

}  // namespace fixclf::ort
