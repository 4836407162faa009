// torch.ops.fixclf.*: translates tensors and errors, nothing else. LibTorch stable ABI only. What
// the libraries of all devices share: each includes it once, with a Device of its own:
//
//   static constexpr const char* kName            for messages: "the CPU"
//   static bool holds(const Tensor&)              whether a tensor lies on such a device
//   static AtenDevice of(const Tensor&)           the device of a tensor
//   explicit Device(const Tensor& x)              made before anything else of a call
//   void set_alpha(HeadProblem&, const Tensor&)   checked: one element of the right dtype
//   Status transform(...), head(...), adjoint(...), reduction_backward(...)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/problem.h"

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

// Of x, which may also hold integers.
DType feature_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Char:
      return DType::kInt8;
    case ScalarType::Byte:
      return DType::kSigns;
    case ScalarType::Float:
    case ScalarType::BFloat16:
    case ScalarType::Half:
    case ScalarType::Double:
      return dtype_of(type, "x");
    default:
      fail(std::string("x is ") + torch::headeronly::toString(type) +
           ", expected Float, BFloat16, Half, Double, Char or Byte (packed signs)");
  }
}

ScalarType exact(DType dtype) {
  return accumulation_dtype(dtype) == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

struct AtenDevice {
  int32_t type, index;
};

template <class Device>
void check_device(const Tensor& tensor, const char* name) {
  if (!Device::holds(tensor))
    fail(std::string(name) + " is not on " + Device::kName + ", where x is");
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

ConstMatrix input(const Tensor& tensor, DType dtype) {
  const Shape s = shape_of(tensor);
  return {tensor.const_data_ptr(), dtype, s.rows, s.columns, s.stride};
}

Matrix output(Tensor& tensor) {
  const Shape s = shape_of(tensor);
  return {tensor.mutable_data_ptr(), dtype_of(tensor.scalar_type(), "the output"), s.rows,
          s.columns, s.stride};
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

using Bits = std::optional<Tensor>;

bool same_leading(const Tensor& tensor, const Tensor& rows) {
  for (int64_t i = 0; i + 1 < rows.dim(); ++i)
    if (tensor.dim() <= i || tensor.size(i) != rows.size(i)) return false;
  return true;
}

std::string shape_text(const Tensor& tensor) {
  std::string shape;
  for (int64_t i = 0; i < tensor.dim(); ++i)
    shape += (i ? ", " : "") + std::to_string(tensor.size(i));
  return "[" + shape + "]";
}

int64_t* indices_of(Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); }

// [B, 1] for a tensor of one element a row.
Matrix column(Tensor& tensor, const fixclf::HeadProblem& p) {
  return {tensor.mutable_data_ptr(), accumulation_dtype(p.x.dtype), p.x.rows, 1, 1};
}

// The operators on one kind of device.
template <class Device>
struct Operators {
  // [..., columns] as rows: a matrix of any row stride as it is, everything else contiguous.
  static Tensor as_rows(const Tensor& tensor, const char* name) {
    check_device<Device>(tensor, name);
    const int64_t dim = tensor.dim();
    if (dim == 0) fail(std::string(name) + " has no dimensions, expected [..., features]");
    if (dim <= 2 && (tensor.stride(dim - 1) == 1 || tensor.size(dim - 1) == 1)) return tensor;
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  }

  // [..., columns], or [...] with columns -1, on the device of x; x is [..., N]. The C shim
  // directly: torch::stable::new_empty looks its operator up by name at every call, which takes
  // longer than the kernel on a small batch.
  static Tensor empty_rows(const Tensor& x, int64_t columns, ScalarType type) {
    constexpr int kMaxDim = 64;
    const int64_t dim = x.dim() - (columns < 0 ? 1 : 0);
    if (dim > kMaxDim) fail("x has " + std::to_string(dim) + " dimensions, expected at most 64");
    int64_t sizes[kMaxDim], strides[kMaxDim];
    int64_t stride = 1;
    for (int64_t i = dim - 1; i >= 0; --i) {
      sizes[i] = i == x.dim() - 1 ? columns : x.size(i);
      strides[i] = stride;
      stride *= sizes[i] > 0 ? sizes[i] : 1;
    }
    const AtenDevice device = Device::of(x);
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
      case ScalarType::Long:
        dtype = aoti_torch_dtype_int64();
        break;
      default:
        fail(std::string("dtype is ") + torch::headeronly::toString(type) +
             ", expected Float or the dtype of x");
    }
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dim, sizes, strides, dtype, device.type, device.index, &handle));
    return Tensor(handle);
  }

  static fixclf::BitShape shape_of_bits(const std::optional<Tensor>& bits, const char* name) {
    if (!bits) return {};
    check_device<Device>(*bits, name);
    if (bits->scalar_type() != ScalarType::Byte || bits->dim() != 2 || !bits->is_contiguous())
      fail(std::string(name) + " is a tensor of " + std::to_string(bits->dim()) +
           " dimension(s) and dtype " + torch::headeronly::toString(bits->scalar_type()) +
           (bits->is_contiguous() ? "" : " with gaps") + ", expected a contiguous matrix of Byte");
    return {bits->size(0), bits->size(1)};
  }

  static Codebook codebook_of(const std::optional<Tensor>& base, const std::optional<Tensor>& signs,
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

  static void check_alpha(const Tensor& alpha, DType expected) {
    check_device<Device>(alpha, "alpha");
    if (alpha.numel() != 1)
      fail("alpha has " + std::to_string(alpha.numel()) + " elements, expected one");
    const DType dtype = dtype_of(alpha.scalar_type(), "alpha");
    if (dtype != expected)
      fail(std::string("alpha is ") + name_of(dtype) + ", expected " + name_of(expected));
  }

  // What every head shares; `rows` is x as as_rows makes it. The problem refers to the tensors:
  // `bias` becomes contiguous in its place.
  static fixclf::HeadProblem problem(Device& device, const Tensor& rows, const Tensor& alpha,
                                     Bits& bias, const Bits& base, const Bits& signs,
                                     const std::vector<int64_t>& geometry, bool normalize,
                                     fixclf::Epilogue epilogue) {
    fixclf::HeadProblem p{};
    p.x = input(rows, feature_dtype(rows.scalar_type()));
    p.codebook = codebook_of(base, signs, geometry);
    check_alpha(alpha, accumulation_dtype(p.x.dtype));
    device.set_alpha(p, alpha);
    if (bias) {
      check_device<Device>(*bias, "bias");
      if (bias->dim() != 1)
        fail("bias is a tensor of " + std::to_string(bias->dim()) +
             " dimensions, expected one dimension");
      if (!bias->is_contiguous()) bias = torch::stable::contiguous(*bias);
      p.has_bias = true;
      p.bias = bias->const_data_ptr();
      p.bias_length = bias->numel();
      p.bias_dtype = dtype_of(bias->scalar_type(), "bias");
    }
    p.normalize = normalize;
    p.epilogue = epilogue;
    return p;
  }

  // Packed bits, one row for all rows of x or one for each.
  static void set_allowed(fixclf::HeadProblem& p, const Bits& allowed, const Tensor& rows) {
    if (!allowed) return;
    check_device<Device>(*allowed, "allowed");
    if (allowed->scalar_type() != ScalarType::Byte || allowed->dim() == 0 || !allowed->is_contiguous())
      fail(std::string("allowed is a tensor of ") + std::to_string(allowed->dim()) +
           " dimension(s) and dtype " + torch::headeronly::toString(allowed->scalar_type()) +
           (allowed->is_contiguous() ? "" : " with gaps") +
           ", expected packed bits: contiguous, of Byte, [bytes] or [..., bytes]");
    if (allowed->dim() > 1 && (allowed->dim() != rows.dim() || !same_leading(*allowed, rows)))
      fail("allowed has shape " + shape_text(*allowed) + ", expected [bytes], or the shape of x, " +
           shape_text(rows) + ", with bytes for its last dimension");
    const Shape shape = shape_of(*allowed);
    static const uint8_t none = 0;  // an empty tensor has no address, which would mean: no mask
    p.allowed = allowed->numel() == 0 ? &none : static_cast<const uint8_t*>(allowed->const_data_ptr());
    p.allowed_rows = shape.rows;
    p.allowed_bytes = shape.columns;
  }

  // int64 [...] (one a row) or [..., M] for x [..., N]; made contiguous.
  static void set_ids(fixclf::HeadProblem& p, Tensor& ids, const char* name, const Tensor& rows,
                      bool one_a_row) {
    check_device<Device>(ids, name);
    if (ids.scalar_type() != ScalarType::Long)
      fail(std::string(name) + " is " + torch::headeronly::toString(ids.scalar_type()) +
           ", expected Long");
    if (!ids.is_contiguous()) ids = torch::stable::contiguous(ids);
    const int64_t leading = rows.dim() - 1;
    const bool matches = ids.dim() == leading || (!one_a_row && ids.dim() == leading + 1);
    if (!matches || !same_leading(ids, rows))
      fail(std::string(name) + " has shape " + shape_text(ids) +
           ", expected that of x without its " + "last dimension" +
           (one_a_row ? "" : ", or with another last one"));
    p.ids = static_cast<const int64_t*>(ids.const_data_ptr());
    p.ids_per_row = ids.dim() == leading ? 1 : ids.size(leading);
  }

  static Tensor hadamard_transform(Tensor x, double scale) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    const ConstMatrix in = input(rows, dtype_of(rows.scalar_type(), "x"));
    Tensor y = empty_rows(rows, in.columns, rows.scalar_type());
    check(device.transform({in, output(y), scale}));
    return y;
  }

  static Tensor head(Tensor x, Tensor alpha, Bits bias, Bits base, Bits signs,
                     std::vector<int64_t> geometry, bool normalize, int64_t epilogue,
                     std::optional<ScalarType> dtype) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    auto p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                     static_cast<fixclf::Epilogue>(epilogue));
    Tensor out =
        empty_rows(rows, p.codebook.class_end - p.codebook.class_begin,
                   dtype.value_or(is_floating(p.x.dtype) ? rows.scalar_type() : ScalarType::Float));
    p.out = output(out);
    if (epilogue > static_cast<int64_t>(fixclf::Epilogue::kSigmoid))
      fail("epilogue is " + std::to_string(epilogue) + ", expected 0 (logits) to 3 (sigmoid)");
    check(device.head(p));
    return out;
  }

  static std::tuple<Tensor, Tensor, Tensor> head_topk(Tensor x, Tensor alpha, Bits bias, Bits base,
                                                      Bits signs, std::vector<int64_t> geometry,
                                                      bool normalize, int64_t k,
                                                      bool log_probabilities, Bits allowed) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    auto p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                     fixclf::Epilogue::kTopK);
    set_allowed(p, allowed, rows);
    p.k = k;
    p.log_probabilities = log_probabilities;
    const int64_t columns = k < 0 ? 0 : k > fixclf::kMaxTopK ? fixclf::kMaxTopK : k;
    Tensor values = empty_rows(rows, columns, exact(p.x.dtype));
    Tensor indices = empty_rows(rows, columns, ScalarType::Long);
    Tensor logsumexp = empty_rows(rows, -1, exact(p.x.dtype));
    p.out = output(values);
    p.indices = indices_of(indices);
    p.logsumexp = logsumexp.mutable_data_ptr();
    check(device.head(p));
    return {values, indices, logsumexp};
  }

  static Tensor head_argmax(Tensor x, Tensor alpha, Bits bias, Bits base, Bits signs,
                            std::vector<int64_t> geometry, bool normalize, Bits allowed) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    auto p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                     fixclf::Epilogue::kArgMax);
    set_allowed(p, allowed, rows);
    Tensor indices = empty_rows(rows, -1, ScalarType::Long);
    p.indices = indices_of(indices);
    check(device.head(p));
    return indices;
  }

  static Tensor head_sample(Tensor x, Tensor alpha, Bits bias, Bits base, Bits signs,
                            std::vector<int64_t> geometry, bool normalize, Tensor seeds,
                            Bits allowed) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    auto p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                     fixclf::Epilogue::kSample);
    set_allowed(p, allowed, rows);
    set_ids(p, seeds, "seeds", rows, true);
    Tensor indices = empty_rows(rows, -1, ScalarType::Long);
    p.indices = indices_of(indices);
    check(device.head(p));
    return indices;
  }

  static std::tuple<Tensor, Tensor, Tensor> head_log_prob(Tensor x, Tensor alpha, Bits bias,
                                                         Bits base, Bits signs,
                                                         std::vector<int64_t> geometry,
                                                         bool normalize, Tensor ids, Bits allowed) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    auto p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                     fixclf::Epilogue::kLogProb);
    set_allowed(p, allowed, rows);
    set_ids(p, ids, "ids", rows, false);
    const int64_t columns = ids.dim() == rows.dim() ? p.ids_per_row : -1;
    Tensor log_probs = empty_rows(rows, columns, exact(p.x.dtype));
    Tensor logits = empty_rows(rows, columns, exact(p.x.dtype));
    Tensor logsumexp = empty_rows(rows, -1, exact(p.x.dtype));
    p.out = columns < 0 ? column(log_probs, p) : output(log_probs);
    p.logits = logits.mutable_data_ptr();
    p.logsumexp = logsumexp.mutable_data_ptr();
    check(device.head(p));
    return {log_probs, logits, logsumexp};
  }

  static std::tuple<Tensor, Tensor> head_nll(Tensor x, Tensor alpha, Bits bias, Bits base,
                                             Bits signs, std::vector<int64_t> geometry,
                                             bool normalize, Tensor target, int64_t ignore_index,
                                             double label_smoothing) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    auto p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                     fixclf::Epilogue::kNll);
    set_ids(p, target, "target", rows, true);
    p.ignore_index = ignore_index;
    p.label_smoothing = label_smoothing;
    Tensor loss = empty_rows(rows, -1, exact(p.x.dtype));
    Tensor logsumexp = empty_rows(rows, -1, exact(p.x.dtype));
    p.out = column(loss, p);
    p.logsumexp = logsumexp.mutable_data_ptr();
    check(device.head(p));
    return {loss, logsumexp};
  }

  // [..., M] or [...] exact, as many elements as the ids or the rows have.
  static const void* gradient_of(const Tensor& tensor, const char* name,
                                 const fixclf::HeadProblem& p, int64_t each) {
    check_device<Device>(tensor, name);
    const DType expected = accumulation_dtype(p.x.dtype);
    if (dtype_of(tensor.scalar_type(), name) != expected || !tensor.is_contiguous() ||
        tensor.numel() != p.x.rows * each)
      fail(std::string(name) + " has " + std::to_string(tensor.numel()) + " elements of " +
           torch::headeronly::toString(tensor.scalar_type()) + ", expected " +
           std::to_string(p.x.rows * each) + " contiguous ones of " + name_of(expected));
    return tensor.const_data_ptr();
  }

  static std::tuple<Tensor, Tensor> head_reduction_backward(
      Tensor softmax_grad, Tensor ids_grad, std::optional<Tensor> uniform_grad, Tensor logsumexp,
      Tensor x, Tensor alpha, Bits bias, Bits base, Bits signs, std::vector<int64_t> geometry,
      bool normalize, Tensor ids, Bits allowed) {
    Device device(x);
    const Tensor rows = as_rows(x, "x");
    fixclf::ReductionBackwardProblem whole{};
    fixclf::HeadProblem& p = whole.head;
    p = problem(device, rows, alpha, bias, base, signs, geometry, normalize,
                fixclf::Epilogue::kLogProb);
    set_allowed(p, allowed, rows);
    set_ids(p, ids, "ids", rows, false);
    if (allowed && uniform_grad) fail("uniform_grad is given, expected none with a mask");
    whole.softmax_grad = gradient_of(softmax_grad, "softmax_grad", p, 1);
    whole.ids_grad = gradient_of(ids_grad, "ids_grad", p, p.ids_per_row);
    if (uniform_grad) whole.uniform_grad = gradient_of(*uniform_grad, "uniform_grad", p, 1);
    p.logsumexp = const_cast<void*>(gradient_of(logsumexp, "logsumexp", p, 1));
    Tensor projected = empty_rows(rows, p.codebook.features, exact(p.x.dtype));
    whole.projected = output(projected);
    Tensor bias_grad = torch::stable::new_empty(
        projected, {bias ? p.codebook.class_end - p.codebook.class_begin : 0});
    if (bias) whole.bias_grad = bias_grad.mutable_data_ptr();
    check(device.reduction_backward(whole));
    return {projected, bias_grad};
  }

  static Tensor project_adjoint(Tensor g, std::optional<Tensor> base, std::optional<Tensor> signs,
                                std::vector<int64_t> geometry) {
    Device device(g);
    const Tensor rows = as_rows(g, "g");
    fixclf::AdjointProblem p{};
    p.g = input(rows, dtype_of(rows.scalar_type(), "g"));
    p.codebook = codebook_of(base, signs, geometry);
    Tensor out = empty_rows(rows, p.codebook.features, exact(p.g.dtype));
    p.out = output(out);
    check(device.adjoint(p));
    return out;
  }

  template <class Library>
  static void implement(Library& m) {
    m.impl("hadamard_transform", TORCH_BOX(&hadamard_transform));
    m.impl("head", TORCH_BOX(&head));
    m.impl("head_topk", TORCH_BOX(&head_topk));
    m.impl("head_argmax", TORCH_BOX(&head_argmax));
    m.impl("head_sample", TORCH_BOX(&head_sample));
    m.impl("head_log_prob", TORCH_BOX(&head_log_prob));
    m.impl("head_nll", TORCH_BOX(&head_nll));
    m.impl("head_reduction_backward", TORCH_BOX(&head_reduction_backward));
    m.impl("project_adjoint", TORCH_BOX(&project_adjoint));
  }
};

}  // namespace
