// torch.ops.fixclf.*: translates tensors and errors, nothing else. LibTorch stable ABI only.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/cpu.h"

namespace {

using fixclf::Codebook;
using fixclf::ConstMatrix;
using fixclf::DType;
using fixclf::Matrix;
using fixclf::Status;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}

DType dtype_of(ScalarType type, const char* name) {
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      fail(std::string(name) + " is " + torch::headeronly::toString(type) +
           ", expected Float, BFloat16, Half or Double");
  }
}

void check_cpu(const Tensor& tensor, const char* name) {
  if (!tensor.is_cpu()) fail(std::string(name) + " is not on the CPU, where x is");
}

// [..., columns] as rows: a matrix of any row stride as it is, everything else contiguous.
Tensor as_rows(const Tensor& tensor, const char* name) {
  check_cpu(tensor, name);
  const int64_t dim = tensor.dim();
  if (dim == 0) fail(std::string(name) + " has no dimensions, expected [..., features]");
  if (dim <= 2 && (tensor.stride(dim - 1) == 1 || tensor.size(dim - 1) == 1)) return tensor;
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

struct Shape {
  int64_t rows, columns, stride;
};

Shape shape_of(const Tensor& tensor) {
  const int64_t dim = tensor.dim();
  Shape shape{1, tensor.size(dim - 1), 0};
  for (int64_t i = 0; i + 1 < dim; ++i) shape.rows *= tensor.size(i);
  shape.stride = dim == 2 ? tensor.stride(0) : shape.columns;
  return shape;
}

ConstMatrix input(const Tensor& tensor, const char* name) {
  const Shape s = shape_of(tensor);
  return {tensor.const_data_ptr(), dtype_of(tensor.scalar_type(), name), s.rows, s.columns,
          s.stride};
}

Matrix output(Tensor& tensor) {
  const Shape s = shape_of(tensor);
  return {tensor.mutable_data_ptr(), dtype_of(tensor.scalar_type(), "the output"), s.rows,
          s.columns, s.stride};
}

// [..., columns] on the CPU. The C shim directly: torch::stable::new_empty looks its operator up by
// name at every call, which takes longer than the kernel on a small batch.
Tensor empty_rows(const Tensor& x, int64_t columns, ScalarType type) {
  constexpr int kMaxDim = 64;
  const int64_t dim = x.dim();
  if (dim > kMaxDim) fail("x has " + std::to_string(dim) + " dimensions, expected at most 64");
  int64_t sizes[kMaxDim], strides[kMaxDim];
  int64_t stride = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    sizes[i] = i == dim - 1 ? columns : x.size(i);
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  int32_t dtype;
  switch (type) {
    case ScalarType::BFloat16:
      dtype = aoti_torch_dtype_bfloat16();
      break;
    case ScalarType::Half:
      dtype = aoti_torch_dtype_float16();
      break;
    case ScalarType::Double:
      dtype = aoti_torch_dtype_float64();
      break;
    case ScalarType::Float:
      dtype = aoti_torch_dtype_float32();
      break;
    default:
      fail(std::string("dtype is ") + torch::headeronly::toString(type) +
           ", expected Float or the dtype of x");
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

fixclf::Parallel torch_threads() {
  return {[](void*, int64_t count, int64_t grain, fixclf::Parallel::Body body, void* state) {
            torch::stable::parallel_for(
                0, count, grain, [&](int64_t begin, int64_t end) { body(state, begin, end); });
          },
          nullptr};
}

fixclf::BitShape shape_of_bits(const std::optional<Tensor>& bits, const char* name) {
  if (!bits) return {};
  check_cpu(*bits, name);
  if (bits->scalar_type() != ScalarType::Byte || bits->dim() != 2 || !bits->is_contiguous())
    fail(std::string(name) + " is a tensor of " + std::to_string(bits->dim()) +
         " dimension(s) and dtype " + torch::headeronly::toString(bits->scalar_type()) +
         (bits->is_contiguous() ? "" : " with gaps") + ", expected a contiguous matrix of Byte");
  return {bits->size(0), bits->size(1)};
}

// The integers of a codebook come as one list, in this order: an operator call costs about 0.25 us
// for each argument, and 0.1 us for each element of a list.
enum Geometry {
  kInFeatures,
  kBaseOrder,
  kLog2,
  kNegate,
  kCenter,
  kRowOffset,
  kColumnOffset,
  kNumClasses,
  kClassBegin,
  kClassEnd,
  kGeometrySize
};

Codebook codebook_of(const std::optional<Tensor>& base, const std::optional<Tensor>& signs,
                     const std::vector<int64_t>& geometry) {
  if (geometry.size() != kGeometrySize)
    fail("geometry has " + std::to_string(geometry.size()) + " elements, expected " +
         std::to_string(kGeometrySize));
  Codebook cb{};
  cb.features = geometry[kInFeatures];
  cb.classes = geometry[kNumClasses];
  cb.base_order = geometry[kBaseOrder];
  cb.log2 = geometry[kLog2];
  cb.base = base ? static_cast<const uint8_t*>(base->const_data_ptr()) : nullptr;
  cb.signs = signs ? static_cast<const uint8_t*>(signs->const_data_ptr()) : nullptr;
  cb.blocks = signs && signs->dim() > 0 ? signs->size(0) : 1;
  cb.negate = geometry[kNegate] != 0;
  cb.center = geometry[kCenter] != 0;
  cb.row_offset = geometry[kRowOffset];
  cb.column_offset = geometry[kColumnOffset];
  cb.class_begin = geometry[kClassBegin];
  cb.class_end = geometry[kClassEnd];
  check(fixclf::validate(cb, shape_of_bits(base, "base"), shape_of_bits(signs, "signs")));
  return cb;
}

Tensor hadamard_transform(Tensor x, double scale) {
  const Tensor rows = as_rows(x, "x");
  const ConstMatrix in = input(rows, "x");
  Tensor y = empty_rows(rows, in.columns, rows.scalar_type());
  check(fixclf::cpu::transform({in, output(y), scale}, torch_threads()));
  return y;
}

double scalar_of(const Tensor& alpha, DType expected) {
  check_cpu(alpha, "alpha");
  if (alpha.numel() != 1)
    fail("alpha has " + std::to_string(alpha.numel()) + " elements, expected one");
  const DType dtype = dtype_of(alpha.scalar_type(), "alpha");
  if (dtype != expected)
    fail(std::string("alpha is ") + name_of(dtype) + ", expected " + name_of(expected));
  return dtype == DType::kFloat64 ? *static_cast<const double*>(alpha.const_data_ptr())
                                  : *static_cast<const float*>(alpha.const_data_ptr());
}

Tensor head(Tensor x, Tensor alpha, std::optional<Tensor> bias, std::optional<Tensor> base,
            std::optional<Tensor> signs, std::vector<int64_t> geometry, bool normalize,
            int64_t epilogue, std::optional<ScalarType> dtype) {
  const Tensor rows = as_rows(x, "x");
  fixclf::HeadProblem p{};
  p.x = input(rows, "x");
  p.codebook = codebook_of(base, signs, geometry);
  p.alpha = scalar_of(alpha, accumulation_dtype(p.x.dtype));
  if (bias) {
    check_cpu(*bias, "bias");
    if (bias->dim() != 1 || !bias->is_contiguous())
      fail("bias is a tensor of " + std::to_string(bias->dim()) + " dimension(s)" +
           (bias->is_contiguous() ? "" : " with gaps") + ", expected a contiguous vector");
    p.has_bias = true;
    p.bias = bias->const_data_ptr();
    p.bias_length = bias->numel();
    p.bias_dtype = dtype_of(bias->scalar_type(), "bias");
  }
  p.normalize = normalize;
  p.epilogue = static_cast<fixclf::Epilogue>(epilogue);
  Tensor out = empty_rows(rows, p.codebook.class_end - p.codebook.class_begin,
                          dtype.value_or(rows.scalar_type()));
  p.out = output(out);
  check(fixclf::cpu::head(p, torch_threads()));
  return out;
}

Tensor project_adjoint(Tensor g, std::optional<Tensor> base, std::optional<Tensor> signs,
                       std::vector<int64_t> geometry) {
  const Tensor rows = as_rows(g, "g");
  fixclf::AdjointProblem p{};
  p.g = input(rows, "g");
  p.codebook = codebook_of(base, signs, geometry);
  Tensor out = empty_rows(
      rows, p.codebook.features,
      accumulation_dtype(p.g.dtype) == DType::kFloat64 ? ScalarType::Double : ScalarType::Float);
  p.out = output(out);
  check(fixclf::cpu::adjoint(p, torch_threads()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(fixclf, m) {
  m.def("hadamard_transform(Tensor x, float scale=1.0) -> Tensor");
  m.def(
      "head(Tensor x, Tensor alpha, Tensor? bias, Tensor? base, Tensor? signs, int[] geometry, "
      "bool normalize, int epilogue, ScalarType? dtype=None) -> Tensor");
  m.def("project_adjoint(Tensor g, Tensor? base, Tensor? signs, int[] geometry) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fixclf, CPU, m) {
  m.impl("hadamard_transform", TORCH_BOX(&hadamard_transform));
  m.impl("head", TORCH_BOX(&head));
  m.impl("project_adjoint", TORCH_BOX(&project_adjoint));
}
