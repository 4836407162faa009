#include "bindings/onnxruntime/head.h"

#include <algorithm>
#include <type_traits>

#include "bindings/onnxruntime/checksum.h"
#include "bindings/onnxruntime/floats.h"
#include "cpu/cpu.h"

namespace fixclf::ort {
namespace {

constexpr int64_t kFormatVersion = 2;  // the newest; all before are read as well

std::string text(const Dimensions& dimensions) {
  std::string text = "[";
  for (const int64_t size : dimensions) text += (text == "[" ? "" : ", ") + std::to_string(size);
  return text + "]";
}

BitShape shape_of_bits(const Tensor& bits, const char* name) {
  if (!bits) return {};
  const Dimensions dimensions = bits.dimensions();
  if (dimensions.size() != 2)
    throw InvalidArgument(std::string(name) + " has the shape " + text(dimensions) +
                          ", expected a matrix");
  return {dimensions[0], dimensions[1]};
}

// The attribute, which for a bool is 0 or 1.
template <class T>
T attribute(const KernelInfo& info, const char* name) {
  const int64_t value = info.integer(name);
  if (std::is_same_v<T, bool> && value != 0 && value != 1)
    throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + ", expected 0 or 1");
  return static_cast<T>(value);
}

int64_t format_version(const KernelInfo& info) {
  const int64_t version = info.integer("format_version");
  if (1 <= version && version <= kFormatVersion) return version;
  throw InvalidArgument(
      "format_version is " + std::to_string(version) + ", expected 1 to " +
      std::to_string(kFormatVersion) +
      (version > kFormatVersion ? ": the model was written by a newer fixclf_infer" : ""));
}

template <class Checksum>
void add_bits(const Tensor& bits, BitShape shape, Checksum* checksum) {
  checksum->add(bits.data<uint8_t>(), shape.rows * shape.bytes_per_row);
}

}  // namespace

HeadInputs::HeadInputs(const KernelInfo& info, DType x, std::initializer_list<const char*> own)
    : version_(format_version(info)), checksum_(info.integer("checksum")) {
  Codebook& codebook = problem_.codebook;
#define FIXCLF_SHARD(type, field, name)
#define FIXCLF_CODEBOOK(type, field, name)          \
  integers_.push_back(attribute<type>(info, name)); \
  codebook.field = static_cast<type>(integers_.back());
#include "core/codebook.def"
#undef FIXCLF_CODEBOOK
  codebook.blocks = 1;
  codebook.class_end = codebook.classes;
  // In files the number of classes, here the last, follows the number of features.
  std::rotate(integers_.begin() + 1, integers_.end() - 1, integers_.end());
  integers_.insert(integers_.begin(), version_);
  has_bias_ = attribute<bool>(info, "has_bias");
  integers_.push_back(has_bias_);
  if (version_ >= 2) integers_.push_back(scale_checksum_ = info.integer("scale_checksum"));
  for (const char* name : own) integers_.push_back(info.integer(name));

  problem_.normalize = true;
  problem_.bias_dtype = DType::kFloat32;
  const int64_t features = info.last_dimension(kInputX);
  problem_.x = {nullptr, x, 0, features < 0 ? codebook.features : features, 0};

  for (const Input input : {kInputAlpha, kInputBias, kInputSigns, kInputBase})
    fixed_[input] = !info.has_input(input) || info.constant(input);
  problem_.alpha = 1;
  const Tensor alpha = info.constant(kInputAlpha), bias = info.constant(kInputBias);
  if (fixed_[kInputAlpha]) set_alpha(alpha, &problem_);
  if (fixed_[kInputBias]) set_bias(bias, &problem_);
  if (fixed_[kInputBias] && bias && !is_float32(bias))
    bias_ = floats(bias, problem_.bias_length, "bias");
  if (fixed_[kInputAlpha] && fixed_[kInputBias]) check_scale(alpha, bias);
  fixed_[kInputSigns] = fixed_[kInputBase] = fixed_[kInputSigns] && fixed_[kInputBase];
  if (fixed_[kInputSigns])
    set_codebook(info.constant(kInputSigns), info.constant(kInputBase), &codebook);
}

HeadInputs::Run HeadInputs::read(const KernelContext& context) const {
  Run run{problem_, {}, {}};
  HeadProblem& p = run.problem;
  const Tensor x = context.input(kInputX);
  run.dimensions = x.dimensions();
  const RowShape shape = rows_of(run.dimensions);
  p.x = {x.data<void>(), p.x.dtype, shape.rows, shape.columns, shape.columns};

  if (!is_fixed(kInputAlpha)) set_alpha(context.input(kInputAlpha), &p);

  const Tensor bias = context.input(kInputBias);
  p.bias = bias_.empty() ? bias.data<void>() : bias_.data();
  if (!is_fixed(kInputBias)) {
    set_bias(bias, &p);
    if (bias && !is_float32(bias)) {
      run.bias = floats(bias, p.bias_length, "bias");
      p.bias = run.bias.data();
    }
  }

  const Tensor signs = context.input(kInputSigns), base = context.input(kInputBase);
  if (!is_fixed(kInputSigns)) set_codebook(signs, base, &p.codebook);
  p.codebook.signs = signs.data<uint8_t>();
  p.codebook.base = base.data<uint8_t>();
  return run;
}

void HeadInputs::set_alpha(const Tensor& alpha, HeadProblem* problem) const {
  const Dimensions dimensions = alpha.dimensions();
  if (dimensions.size() > 1 || (dimensions.size() == 1 && dimensions[0] != 1))
    throw InvalidArgument("alpha has the shape " + text(dimensions) + ", expected one element");
  problem->alpha = floats(alpha, 1, "alpha")[0];
}

void HeadInputs::set_bias(const Tensor& bias, HeadProblem* problem) const {
  problem->has_bias = static_cast<bool>(bias);
  if (problem->has_bias != has_bias_)
    throw InvalidArgument(has_bias_ ? "bias is missing" : "bias is given, but has_bias is 0");
  if (!has_bias_) return;
  const Dimensions dimensions = bias.dimensions();
  if (dimensions.size() != 1)
    throw InvalidArgument("bias has the shape " + text(dimensions) + ", expected a vector");
  problem->bias_length = dimensions[0];
}

void HeadInputs::set_codebook(const Tensor& signs, const Tensor& base, Codebook* codebook) const {
  const BitShape sign_shape = shape_of_bits(signs, "signs");
  const BitShape base_shape = shape_of_bits(base, "base");
  codebook->blocks = signs ? sign_shape.rows : 1;
  check(validate(*codebook, base_shape, sign_shape));
  const auto refuse = [](const char* what) {
    throw InvalidArgument(
        std::string(what) +
        " is not what the model was written with (the checksum differs): the sign masks or the "
        "base matrix were changed");
  };
  if (version_ == 1) {
    Fnv1a checksum;
    add_bits(signs, sign_shape, &checksum);
    add_bits(base, base_shape, &checksum);
    if (checksum.value() != checksum_) refuse("signs or base");
    return;
  }
  Crc32 checksum;
  for (const int64_t integer : integers_) checksum.add(integer);
  add_bits(signs, sign_shape, &checksum);
  add_bits(base, base_shape, &checksum);
  if (checksum.value() != checksum_) refuse("an attribute, signs or base");
}

// 0 stands for an alpha or a bias that the model computes. Tools that convert a model to 16 bits
// round both, and leave the checksum.
void HeadInputs::check_scale(const Tensor& alpha, const Tensor& bias) const {
  if (scale_checksum_ == 0 || !is_float32(alpha) || (bias && !is_float32(bias))) return;
  if (bias && problem_.bias_length != problem_.codebook.classes) return;  // refused by validate
  Crc32 checksum;
  checksum.add(alpha.data<float>(), sizeof(float));
  if (bias) checksum.add(bias.data<float>(), problem_.bias_length * int64_t{sizeof(float)});
  if (checksum.value() != scale_checksum_)
    throw InvalidArgument(
        "alpha or bias is not what the model was written with: their checksum differs");
}

FixedHead::FixedHead(const KernelInfo& info, DType x)
    : inputs_(info, x, {"epilogue"}),
      epilogue_(static_cast<Epilogue>(info.integer("epilogue"))),
      y_(output_dtype(x)) {
  check(validate_map(static_cast<int64_t>(epilogue_)));
  HeadProblem p = inputs_.fixed();
  p.epilogue = epilogue_;
  p.out = {nullptr, y_, 0, p.codebook.classes, 0};
  check(validate(p));
}

void FixedHead::compute(KernelContext& context) const {
  HeadInputs::Run run = inputs_.read(context);
  HeadProblem& p = run.problem;
  Dimensions& dimensions = run.dimensions;
  const int64_t classes = dimensions.back() = p.codebook.classes;
  p.epilogue = epilogue_;
  p.out = {context.output<void>(0, dimensions), y_, p.x.rows, classes, classes};
  check(cpu::head(p, context.threads()));
}

void FixedHead::infer_shapes(const ShapeContext& shapes) {
  ShapeContext::Shape y = shapes.input();
  y.back() = {shapes.integer("num_classes"), ""};
  const bool is_int8 = shapes.element_type() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  shapes.set_output(0, is_int8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : shapes.element_type(), y);
}

FixedHeadTopK::FixedHeadTopK(const KernelInfo& info, DType x)
    : inputs_(info, x, {"k", "log_probabilities"}),
      k_(info.integer("k")),
      log_probabilities_(attribute<bool>(info, "log_probabilities")) {
  HeadProblem p = inputs_.fixed();
  p.epilogue = Epilogue::kTopK;
  p.k = k_;
  p.out = {nullptr, DType::kFloat32, 0, k_, 0};
  check(validate(p));
}

void FixedHeadTopK::compute(KernelContext& context) const {
  HeadInputs::Run run = inputs_.read(context);
  HeadProblem& p = run.problem;
  Dimensions& dimensions = run.dimensions;
  p.epilogue = Epilogue::kTopK;
  p.k = k_;
  p.log_probabilities = log_probabilities_;
  dimensions.back() = k_;
  p.out = {context.output<void>(0, dimensions), DType::kFloat32, p.x.rows, k_, k_};
  p.indices = context.output<int64_t>(1, dimensions);
  dimensions.pop_back();
  p.logsumexp = context.output<void>(2, dimensions);
  check(cpu::head(p, context.threads()));
}

void FixedHeadTopK::infer_shapes(const ShapeContext& shapes) {
  ShapeContext::Shape shape = shapes.input();
  shape.back() = {shapes.integer("k"), ""};
  shapes.set_output(0, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape);
  shapes.set_output(1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, shape);
  shape.pop_back();
  shapes.set_output(2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape);
}

}  // namespace fixclf::ort
