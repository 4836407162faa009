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
#include <utility>
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

std::string type_text(const Tensor& tensor) {
  return torch::headeronly::toString(tensor.scalar_type());
}

int64_t* indices_of(Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); }

// What every head takes first. The integers of a codebook come as one list, as codebook.def has
// them: an operator call costs about 0.25 us for each argument, and 0.1 us for each element of a
// list.
struct HeadArguments {
  static constexpr const char* kSchema =
      "Tensor x, Tensor alpha, Tensor? bias, Tensor? base, Tensor? signs, int[] geometry, "
      "bool normalize";
  static constexpr size_t kCount = 7;

  Tensor x, alpha;
  Bits bias, base, signs;
  std::vector<int64_t> geometry;
  bool normalize;
};

// [..., columns] as rows: a matrix of any row stride as it is, everything else contiguous.
template <class Device>
Tensor as_rows(const Tensor& tensor, const char* name) {
  check_device<Device>(tensor, name);
  const int64_t dim = tensor.dim();
  if (dim == 0) fail(std::string(name) + " has no dimensions, expected [..., features]");
  if (dim <= 2 && (tensor.stride(dim - 1) == 1 || tensor.size(dim - 1) == 1)) return tensor;
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// [..., columns], or [...] with columns -1, on the device of x; x is [..., N]. The C shim
// directly: torch::stable::new_empty looks its operator up by name at every call, which takes
// longer than the kernel on a small batch.
template <class Device>
Tensor empty_rows(const Tensor& x, int64_t columns, ScalarType type) {
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

template <class Device>
fixclf::BitShape shape_of_bits(const std::optional<Tensor>& bits, const char* name) {
  if (!bits) return {};
  check_device<Device>(*bits, name);
  if (bits->scalar_type() != ScalarType::Byte || bits->dim() != 2 || !bits->is_contiguous())
    fail(std::string(name) + " is a tensor of " + std::to_string(bits->dim()) +
         " dimension(s) and dtype " + type_text(*bits) +
         (bits->is_contiguous() ? "" : " with gaps") + ", expected a contiguous matrix of Byte");
  return {bits->size(0), bits->size(1)};
}

template <class Device>
Codebook codebook_of(const Bits& base, const Bits& signs, const std::vector<int64_t>& geometry) {
  constexpr int kSize = fixclf::kCodebookIntegers;
  if (geometry.size() != kSize)
    fail("geometry has " + std::to_string(geometry.size()) + " elements, expected " +
         std::to_string(kSize));
  int64_t integers[kSize];
  for (int i = 0; i < kSize; ++i) integers[i] = geometry[i];
  Codebook cb = fixclf::codebook_of(integers);
  if (base) cb.base = static_cast<const uint8_t*>(base->const_data_ptr());
  if (signs) cb.signs = static_cast<const uint8_t*>(signs->const_data_ptr());
  if (signs && signs->dim() > 0) cb.blocks = signs->size(0);
  check(fixclf::validate(cb, shape_of_bits<Device>(base, "base"),
                         shape_of_bits<Device>(signs, "signs")));
  return cb;
}

// One call of a head: the problem that an operator fills with what is its own. The problem refers
// to the tensors, which live as long as this.
template <class Device>
class HeadCall {
  HeadArguments arguments_;

 public:
  Device device;
  fixclf::HeadProblem p{};

  explicit HeadCall(HeadArguments&& arguments)
      : arguments_(std::move(arguments)), device(arguments_.x) {
    rows_ = as_rows<Device>(arguments_.x, "x");
    p.x = input(rows_, feature_dtype(rows_.scalar_type()));
    p.codebook = codebook_of<Device>(arguments_.base, arguments_.signs, arguments_.geometry);
    set_alpha(arguments_.alpha);
    if (arguments_.bias) set_bias(*arguments_.bias);
    p.normalize = arguments_.normalize;
  }

  // Packed bits, one row for all rows of x or one for each.
  void set_allowed(const Bits& allowed) {
    if (!allowed) return;
    check_device<Device>(*allowed, "allowed");
    if (allowed->scalar_type() != ScalarType::Byte || allowed->dim() == 0 ||
        !allowed->is_contiguous())
      fail("allowed is a tensor of " + std::to_string(allowed->dim()) + " dimension(s) and dtype " +
           type_text(*allowed) + (allowed->is_contiguous() ? "" : " with gaps") +
           ", expected packed bits: contiguous, of Byte, [bytes] or [..., bytes]");
    if (allowed->dim() > 1 && (allowed->dim() != rows_.dim() || !same_leading(*allowed, rows_)))
      fail("allowed has shape " + shape_text(*allowed) + ", expected [bytes], or the shape of x, " +
           shape_text(rows_) + ", with bytes for its last dimension");
    const Shape shape = shape_of(*allowed);
    static const uint8_t none = 0;  // an empty tensor has no address, which would mean: all
    p.allowed =
        allowed->numel() == 0 ? &none : static_cast<const uint8_t*>(allowed->const_data_ptr());
    p.allowed_rows = shape.rows;
    p.allowed_bytes = shape.columns;
  }

  // int64 [...] (one a row) or [..., M] for x [..., N].
  void set_ids(const Tensor& ids, const char* name, bool one_a_row) {
    check_device<Device>(ids, name);
    if (ids.scalar_type() != ScalarType::Long)
      fail(std::string(name) + " is " + type_text(ids) + ", expected Long");
    ids_ = ids.is_contiguous() ? ids : torch::stable::contiguous(ids);
    const int64_t leading = rows_.dim() - 1;
    const bool matches = ids.dim() == leading || (!one_a_row && ids.dim() == leading + 1);
    if (!matches || !same_leading(ids, rows_))
      fail(std::string(name) + " has shape " + shape_text(ids) +
           ", expected that of x without its last dimension" +
           (one_a_row ? "" : ", or with another last one"));
    p.ids = static_cast<const int64_t*>(ids_->const_data_ptr());
    p.ids_per_row = ids.dim() == leading ? 1 : ids.size(leading);
  }

  // As many columns as the ids have: the last argument of what follows. kNone: one value a row,
  // [...] without a last dimension.
  static constexpr int64_t kNone = -1;
  int64_t id_columns() const { return ids_->dim() == rows_.dim() ? p.ids_per_row : kNone; }

  // Results: [..., columns] of the accumulation dtype, of classes, of a given dtype.
  Tensor exact(int64_t columns = kNone) const { return empty(columns, ::exact(p.x.dtype)); }
  Tensor classes(int64_t columns = kNone) const { return empty(columns, ScalarType::Long); }
  Tensor empty(int64_t columns, ScalarType type) const {
    return empty_rows<Device>(rows_, columns, type);
  }

  // A result as what the problem writes: [B, columns], 1 for kNone.
  Matrix matrix(Tensor& tensor) const {
    if (tensor.dim() == rows_.dim()) return output(tensor);
    return {tensor.mutable_data_ptr(), accumulation_dtype(p.x.dtype), p.x.rows, 1, 1};
  }

  ScalarType x_type() const { return rows_.scalar_type(); }

  // An argument of the accumulation dtype with `each` elements a row.
  const void* values(const Tensor& tensor, const char* name, int64_t each = 1) const {
    check_device<Device>(tensor, name);
    const DType expected = accumulation_dtype(p.x.dtype);
    if (dtype_of(tensor.scalar_type(), name) != expected || !tensor.is_contiguous() ||
        tensor.numel() != p.x.rows * each)
      fail(std::string(name) + " has " + std::to_string(tensor.numel()) + " elements of " +
           type_text(tensor) + ", expected " + std::to_string(p.x.rows * each) +
           " contiguous ones of " + name_of(expected));
    return tensor.const_data_ptr();
  }

  void run(fixclf::Epilogue epilogue) {
    p.epilogue = epilogue;
    check(device.head(p));
  }

 private:
  void set_alpha(const Tensor& alpha) {
    check_device<Device>(alpha, "alpha");
    if (alpha.numel() != 1)
      fail("alpha has " + std::to_string(alpha.numel()) + " elements, expected one");
    const DType dtype = dtype_of(alpha.scalar_type(), "alpha");
    const DType expected = accumulation_dtype(p.x.dtype);
    if (dtype != expected)
      fail(std::string("alpha is ") + name_of(dtype) + ", expected " + name_of(expected));
    device.set_alpha(p, alpha);
  }
  void set_bias(Tensor& bias) {
    check_device<Device>(bias, "bias");
    if (bias.dim() != 1)
      fail("bias is a tensor of " + std::to_string(bias.dim()) +
           " dimensions, expected one dimension");
    if (!bias.is_contiguous()) bias = torch::stable::contiguous(bias);
    p.has_bias = true;
    p.bias = bias.const_data_ptr();
    p.bias_length = bias.numel();
    p.bias_dtype = dtype_of(bias.scalar_type(), "bias");
  }

  Tensor rows_;
  std::optional<Tensor> ids_;
};

// The operators on one kind of device. One whose schema begins with HeadArguments gets a HeadCall.
template <class Device>
struct Operators {
  using Head = HeadCall<Device>;
  using Two = std::tuple<Tensor, Tensor>;
  using Three = std::tuple<Tensor, Tensor, Tensor>;
  using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  // Calls visit(name, schema without the name, kernel) for each operator.
  template <class Visit>
  static void each(Visit visit) {
    const auto head = [&](const char* name, const char* others, auto kernel) {
      visit(name, std::string("(") + HeadArguments::kSchema + ", " + others, kernel);
    };
    visit("hadamard_transform", "(Tensor x, float scale=1.0) -> Tensor",
          TORCH_BOX(&hadamard_transform));
    head("head", "int epilogue, ScalarType? dtype=None) -> Tensor", boxed<map>);
    head("head_topk",
         "int k, bool log_probabilities=False, Tensor? allowed=None) -> (Tensor, Tensor, Tensor)",
         boxed<topk>);
    head("head_argmax", "Tensor? allowed=None) -> Tensor", boxed<argmax>);
    head("head_sample", "Tensor seeds, Tensor? allowed=None) -> Tensor", boxed<sample>);
    head("head_log_prob", "Tensor ids, Tensor? allowed=None) -> (Tensor, Tensor, Tensor)",
         boxed<log_prob>);
    head("head_nll",
         "Tensor target, int ignore_index=-100, float label_smoothing=0.0) -> (Tensor, Tensor)",
         boxed<nll>);
    head("head_statistics",
         "Tensor ids, int which, Tensor? allowed=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
         boxed<statistics>);
    head("head_reduction_backward",
         "Tensor ids, Tensor? logsumexp, Tensor? softmax_grad, Tensor ids_grad, "
         "Tensor? uniform_grad=None, Tensor? allowed=None, Tensor? linear_grad=None, "
         "Tensor? sigmoid_grad=None, bool others=False) -> (Tensor, Tensor)",
         boxed<reduction_backward>);
    visit("project_adjoint", "(Tensor g, Tensor? base, Tensor? signs, int[] geometry) -> Tensor",
          TORCH_BOX(&project_adjoint));
  }

 private:
  static Tensor hadamard_transform(Tensor x, double scale) {
    Device device(x);
    const Tensor rows = as_rows<Device>(x, "x");
    const ConstMatrix in = input(rows, dtype_of(rows.scalar_type(), "x"));
    Tensor y = empty_rows<Device>(rows, in.columns, rows.scalar_type());
    check(device.transform({in, output(y), scale}));
    return y;
  }

  static Tensor map(Head& head, int64_t epilogue, std::optional<ScalarType> dtype) {
    check(fixclf::validate_map(epilogue));
    const bool floating = is_floating(head.p.x.dtype);
    Tensor out = head.empty(head.p.codebook.computed(),
                            dtype.value_or(floating ? head.x_type() : ScalarType::Float));
    head.p.out = output(out);
    head.run(static_cast<fixclf::Epilogue>(epilogue));
    return out;
  }

  static Three topk(Head& head, int64_t k, bool log_probabilities, Bits allowed) {
    head.set_allowed(allowed);
    head.p.k = k;
    head.p.log_probabilities = log_probabilities;
    // A k out of range is an error, after the results are there.
    const int64_t columns = k < 0 ? 0 : k > fixclf::kMaxTopK ? fixclf::kMaxTopK : k;
    Tensor values = head.exact(columns), indices = head.classes(columns);
    Tensor logsumexp = head.exact();
    head.p.out = output(values);
    head.p.indices = indices_of(indices);
    head.p.logsumexp = logsumexp.mutable_data_ptr();
    head.run(fixclf::Epilogue::kTopK);
    return {values, indices, logsumexp};
  }

  static Tensor argmax(Head& head, Bits allowed) {
    head.set_allowed(allowed);
    Tensor indices = head.classes();
    head.p.indices = indices_of(indices);
    head.run(fixclf::Epilogue::kArgMax);
    return indices;
  }

  static Tensor sample(Head& head, Tensor seeds, Bits allowed) {
    head.set_allowed(allowed);
    head.set_ids(seeds, "seeds", true);
    Tensor indices = head.classes();
    head.p.indices = indices_of(indices);
    head.run(fixclf::Epilogue::kSample);
    return indices;
  }

  static Three log_prob(Head& head, Tensor ids, Bits allowed) {
    head.set_allowed(allowed);
    head.set_ids(ids, "ids", false);
    Tensor log_probs = head.exact(head.id_columns()), logits = head.exact(head.id_columns());
    Tensor logsumexp = head.exact();
    head.p.out = head.matrix(log_probs);
    head.p.logits = logits.mutable_data_ptr();
    head.p.logsumexp = logsumexp.mutable_data_ptr();
    head.run(fixclf::Epilogue::kLogProb);
    return {log_probs, logits, logsumexp};
  }

  static Two nll(Head& head, Tensor target, int64_t ignore_index, double label_smoothing) {
    head.set_ids(target, "target", true);
    head.p.ignore_index = ignore_index;
    head.p.label_smoothing = label_smoothing;
    Tensor loss = head.exact(), logsumexp = head.exact();
    head.p.out = head.matrix(loss);
    head.p.logsumexp = logsumexp.mutable_data_ptr();
    head.run(fixclf::Epilogue::kNll);
    return {loss, logsumexp};
  }

  // A sum that `which` does not ask for is an empty tensor.
  static Five statistics(Head& head, Tensor ids, int64_t which, Bits allowed) {
    head.set_allowed(allowed);
    head.set_ids(ids, "ids", false);
    if (which < 0 || which > 15)
      fail("which is " + std::to_string(which) +
           ", expected the sum of some of 1 (logsumexp), 2 (sum), 4 (squares) and 8 (softplus)");
    Tensor logits = head.exact(head.id_columns());
    head.p.logits = logits.mutable_data_ptr();
    const auto sum = [&](int bit, void** to) {
      if ((which >> bit & 1) == 0) return torch::stable::new_empty(logits, {0});
      Tensor values = head.exact();
      *to = values.mutable_data_ptr();
      return values;
    };
    Five results{logits, sum(0, &head.p.logsumexp), sum(1, &head.p.sum), sum(2, &head.p.squares),
                 sum(3, &head.p.softplus)};
    head.run(fixclf::Epilogue::kStatistics);
    return results;
  }

  // The gradients of core/problem.h.
  static Two reduction_backward(Head& head, Tensor ids, std::optional<Tensor> logsumexp,
                                std::optional<Tensor> softmax_grad, Tensor ids_grad,
                                std::optional<Tensor> uniform_grad, Bits allowed,
                                std::optional<Tensor> linear_grad,
                                std::optional<Tensor> sigmoid_grad, bool others) {
    const auto of_rows = [&](const std::optional<Tensor>& tensor, const char* name) {
      return tensor ? head.values(*tensor, name) : nullptr;
    };
    head.set_allowed(allowed);
    head.set_ids(ids, "ids", false);
    if (softmax_grad && !logsumexp) fail("logsumexp is not given, but softmax_grad is");
    head.p.epilogue = fixclf::Epilogue::kLogProb;
    head.p.logsumexp = const_cast<void*>(of_rows(logsumexp, "logsumexp"));
    fixclf::ReductionBackwardProblem whole{};
    whole.softmax_grad = of_rows(softmax_grad, "softmax_grad");
    whole.ids_grad = head.values(ids_grad, "ids_grad", head.p.ids_per_row);
    whole.uniform_grad = of_rows(uniform_grad, "uniform_grad");
    whole.linear_grad = of_rows(linear_grad, "linear_grad");
    whole.sigmoid_grad = of_rows(sigmoid_grad, "sigmoid_grad");
    whole.others = others;
    whole.head = head.p;
    Tensor projected = head.exact(head.p.codebook.features);
    whole.projected = output(projected);
    Tensor bias_grad =
        torch::stable::new_empty(projected, {head.p.has_bias ? head.p.codebook.computed() : 0});
    if (head.p.has_bias) whole.bias_grad = bias_grad.mutable_data_ptr();
    check(head.device.reduction_backward(whole));
    return {projected, bias_grad};
  }

  static Tensor project_adjoint(Tensor g, Bits base, Bits signs, std::vector<int64_t> geometry) {
    Device device(g);
    const Tensor rows = as_rows<Device>(g, "g");
    fixclf::AdjointProblem p{};
    p.g = input(rows, dtype_of(rows.scalar_type(), "g"));
    p.codebook = codebook_of<Device>(base, signs, geometry);
    Tensor out = empty_rows<Device>(rows, p.codebook.features, exact(p.g.dtype));
    p.out = output(out);
    check(device.adjoint(p));
    return out;
  }

  // TORCH_BOX for an operator that begins with HeadArguments.
  template <auto function>
  static void boxed(StableIValue* stack, uint64_t arguments, uint64_t) {
    call(function, stack, arguments);
  }
  template <class Result, class... Others>
  static void call(Result (*function)(Head&, Others...), StableIValue* stack, uint64_t count) {
    if (count != HeadArguments::kCount + sizeof...(Others))
      fail("the operator has " + std::to_string(count) + " arguments, expected " +
           std::to_string(HeadArguments::kCount + sizeof...(Others)));
    // All of the stack is taken over before anything can fail.
    HeadArguments shared{take<Tensor>(stack[0]), take<Tensor>(stack[1]),
                         take<Bits>(stack[2]),   take<Bits>(stack[3]),
                         take<Bits>(stack[4]),   take<std::vector<int64_t>>(stack[5]),
                         take<bool>(stack[6])};
    auto others =
        take_all<Others...>(stack + HeadArguments::kCount, std::index_sequence_for<Others...>());
    Head head(std::move(shared));
    store(std::apply([&](auto&... each) { return function(head, each...); }, others), stack);
  }
  template <class T>
  static T take(StableIValue value) {
    return torch::stable::detail::to<T>(value);
  }
  template <class... Types, size_t... places>
  static std::tuple<Types...> take_all([[maybe_unused]] StableIValue* stack,
                                       std::index_sequence<places...>) {
    return {take<Types>(stack[places])...};
  }
  static void store(Tensor result, StableIValue* stack) {
    stack[0] = torch::stable::detail::from(result);
  }
  template <class... Results>
  static void store(std::tuple<Results...> results, StableIValue* stack) {
    std::apply([&](auto&... each) { ((*stack++ = torch::stable::detail::from(each)), ...); },
               results);
  }
};

}  // namespace
