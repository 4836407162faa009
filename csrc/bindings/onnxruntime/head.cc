#include "bindings/onnxruntime/head.h"

#include "cpu/cpu.h"

namespace fixclf::ort {
namespace {

constexpr int64_t kFormatVersion = 1;

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

// FNV-1a, 64 bits, continued from hash.
uint64_t fnv1a(uint64_t hash, const uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

bool flag(const KernelInfo& info, const char* name) {
  const int64_t value = info.integer(name);
  if (value != 0 && value != 1)
    throw InvalidArgument(std::string(name) + " is " + std::to_string(value) + ", expected 0 or 1");
  return value == 1;
}

void check_format_version(const KernelInfo& info) {
  const int64_t version = info.integer("format_version");
  if (version == kFormatVersion) return;
  throw InvalidArgument(
      "format_version is " + std::to_string(version) + ", expected " +
      std::to_string(kFormatVersion) +
      (version > kFormatVersion ? ": the model was written by a newer fixclf_infer" : ""));
}

}  // namespace

HeadInputs::HeadInputs(const KernelInfo& info, DType x) {
  check_format_version(info);
  Codebook& codebook = problem_.codebook;
  codebook.features = info.integer("in_features");
  codebook.classes = codebook.class_end = info.integer("num_classes");
  codebook.base_order = info.integer("base_order");
  codebook.log2 = info.integer("log2");
  codebook.negate = flag(info, "negate");
  codebook.center = flag(info, "center");
  codebook.row_offset = info.integer("row_offset");
  codebook.column_offset = info.integer("column_offset");
  has_bias_ = flag(info, "has_bias");
  checksum_ = static_cast<uint64_t>(info.integer("checksum"));

  problem_.normalize = true;
  problem_.bias_dtype = DType::kFloat32;
  const int64_t features = info.last_dimension(kInputX);
  problem_.x = {nullptr, x, 0, features < 0 ? codebook.features : features, 0};

  for (const Input input : {kInputAlpha, kInputBias, kInputSigns, kInputBase})
    fixed_[input] = !info.has_input(input) || info.constant(input);
  problem_.alpha = 1;
  if (fixed_[kInputAlpha]) set_alpha(info.constant(kInputAlpha), &problem_);
  if (fixed_[kInputBias]) set_bias(info.constant(kInputBias), &problem_);
  fixed_[kInputSigns] = fixed_[kInputBase] = fixed_[kInputSigns] && fixed_[kInputBase];
  if (fixed_[kInputSigns])
    set_codebook(info.constant(kInputSigns), info.constant(kInputBase), &codebook);
}

HeadProblem HeadInputs::read(const KernelContext& context, Dimensions* dimensions) const {
  HeadProblem p = problem_;
  const Tensor x = context.input(kInputX);
  *dimensions = x.dimensions();
  const RowShape shape = rows_of(*dimensions);
  p.x = {x.data<void>(), p.x.dtype, shape.rows, shape.columns, shape.columns};

  if (!is_fixed(kInputAlpha)) set_alpha(context.input(kInputAlpha), &p);

  const Tensor bias = context.input(kInputBias);
  if (!is_fixed(kInputBias)) set_bias(bias, &p);
  p.bias = bias.data<void>();

  const Tensor signs = context.input(kInputSigns), base = context.input(kInputBase);
  if (!is_fixed(kInputSigns)) set_codebook(signs, base, &p.codebook);
  p.codebook.signs = signs.data<uint8_t>();
  p.codebook.base = base.data<uint8_t>();
  return p;
}

void HeadInputs::set_alpha(const Tensor& alpha, HeadProblem* problem) const {
  const Dimensions dimensions = alpha.dimensions();
  if (dimensions.size() > 1 || (dimensions.size() == 1 && dimensions[0] != 1))
    throw InvalidArgument("alpha has the shape " + text(dimensions) + ", expected one element");
  problem->alpha = *alpha.data<float>();
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
  uint64_t hash = 0xcbf29ce484222325;
  hash = fnv1a(hash, signs.data<uint8_t>(), sign_shape.rows * sign_shape.bytes_per_row);
  hash = fnv1a(hash, base.data<uint8_t>(), base_shape.rows * base_shape.bytes_per_row);
  if (hash != checksum_)
    throw InvalidArgument(
        "signs or base is not what the model was written with (its checksum differs): the sign "
        "masks or the base matrix were changed");
}

FixedHead::FixedHead(const KernelInfo& info, DType x)
    : inputs_(info, x),
      epilogue_(static_cast<Epilogue>(info.integer("epilogue"))),
      y_(output_dtype(x)) {
  // Those of [..., C]; core has others.
  if (epilogue_ < Epilogue::kLogits || epilogue_ > Epilogue::kSigmoid)
    throw InvalidArgument("epilogue is " + std::to_string(static_cast<int64_t>(epilogue_)) +
                          ", expected 0 (logits), 1 (softmax), 2 (log_softmax) or 3 (sigmoid)");
  HeadProblem p = inputs_.fixed();
  p.epilogue = epilogue_;
  p.out = {nullptr, y_, 0, p.codebook.classes, 0};
  check(validate(p));
}

void FixedHead::compute(KernelContext& context) const {
  Dimensions dimensions;
  HeadProblem p = inputs_.read(context, &dimensions);
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
    : inputs_(info, x), k_(info.integer("k")), log_probabilities_(flag(info, "log_probabilities")) {
  HeadProblem p = inputs_.fixed();
  p.epilogue = Epilogue::kTopK;
  p.k = k_;
  p.out = {nullptr, DType::kFloat32, 0, k_, 0};
  check(validate(p));
}

void FixedHeadTopK::compute(KernelContext& context) const {
  Dimensions dimensions;
  HeadProblem p = inputs_.read(context, &dimensions);
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
