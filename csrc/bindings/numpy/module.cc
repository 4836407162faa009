// fixclf_infer._native: the kernels on NumPy arrays, and what this binary and machine can run.
// Translates arrays and errors, nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "cpu/cpu.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace {

using fixclf::Codebook;
using fixclf::DType;
using fixclf::Status;
using Bits = py::array_t<uint8_t, py::array::c_style>;

void check(const Status& status) {
  if (!status.ok()) throw py::value_error(status.message());
}

DType dtype_of(const py::array& array, const char* name) {
  if (array.dtype().byteorder() == '=') {
    switch (array.dtype().num()) {  // NumPy's type numbers, fixed by its ABI
      case 11:
        return DType::kFloat32;
      case 12:
        return DType::kFloat64;
      case 23:
        return DType::kFloat16;
    }
  }
  // NumPy itself has no bfloat16; ml_dtypes registers one of that name.
  const std::string dtype = py::str(array.dtype());
  if (dtype == "bfloat16") return DType::kBFloat16;
  throw py::type_error(std::string(name) + " is " + dtype +
                       ", expected float32, bfloat16, float16 or float64");
}

// [..., columns] with contiguous rows at one stride, copied only where it is not that already.
py::array as_rows(const py::array& array, const char* name) {
  if (array.ndim() == 0)
    throw py::value_error(std::string(name) + " has no dimensions, expected [..., features]");
  const py::ssize_t last = array.ndim() - 1;
  const bool packed = array.strides(last) == array.itemsize() || array.shape(last) == 1;
  const bool whole = array.ndim() < 2 || array.strides(0) % array.itemsize() == 0;
  if (array.ndim() <= 2 && packed && whole) return array;
  return py::array::ensure(array, py::array::c_style);
}

struct Shape {
  int64_t rows, columns, stride;
};

Shape shape_of(const py::array& array) {
  const py::ssize_t dim = array.ndim();
  Shape shape{1, array.shape(dim - 1), 0};
  for (py::ssize_t i = 0; i + 1 < dim; ++i) shape.rows *= array.shape(i);
  shape.stride = dim == 2 ? array.strides(0) / array.itemsize() : shape.columns;
  return shape;
}

fixclf::ConstMatrix input(const py::array& array, const char* name) {
  const Shape s = shape_of(array);
  return {array.data(), dtype_of(array, name), s.rows, s.columns, s.stride};
}

fixclf::Matrix output(py::array& array) {
  const Shape s = shape_of(array);
  return {array.mutable_data(), dtype_of(array, "the output"), s.rows, s.columns, s.stride};
}

py::array empty_like_rows(const py::array& x, int64_t columns, const py::dtype& dtype) {
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  shape.back() = columns;
  return py::array(dtype, shape);
}

fixclf::BitShape shape_of_bits(const std::optional<Bits>& bits, const char* name) {
  if (!bits) return {};
  if (bits->ndim() != 2)
    throw py::value_error(std::string(name) + " has " + std::to_string(bits->ndim()) +
                          " dimension(s), expected a matrix of uint8");
  return {bits->shape(0), bits->shape(1)};
}

Codebook codebook_of(int64_t features, const std::optional<Bits>& base,
                     const std::optional<Bits>& signs, int64_t base_order, int64_t log2,
                     bool negate, bool center, int64_t row_offset, int64_t column_offset,
                     int64_t num_classes, int64_t class_begin, int64_t class_end) {
  Codebook cb{};
  cb.features = features;
  cb.classes = num_classes;
  cb.base_order = base_order;
  cb.log2 = log2;
  cb.base = base ? base->data() : nullptr;
  cb.signs = signs ? signs->data() : nullptr;
  cb.blocks = signs && signs->ndim() > 0 ? signs->shape(0) : 1;
  cb.negate = negate;
  cb.center = center;
  cb.row_offset = row_offset;
  cb.column_offset = column_offset;
  cb.class_begin = class_begin;
  cb.class_end = class_end;
  check(fixclf::validate(cb, shape_of_bits(base, "base"), shape_of_bits(signs, "signs")));
  return cb;
}

py::array hadamard_transform(const py::array& x, double scale) {
  const py::array rows = as_rows(x, "x");
  const fixclf::ConstMatrix in = input(rows, "x");
  py::array y = empty_like_rows(rows, in.columns, rows.dtype());
  const fixclf::Matrix out = output(y);
  Status status;
  {
    const py::gil_scoped_release release;
    status = fixclf::cpu::transform({in, out, scale}, fixclf::cpu::thread_pool());
  }
  check(status);
  return y;
}

py::array head(const py::array& x, double alpha, const std::optional<py::array>& bias,
               int64_t in_features, const std::optional<Bits>& base,
               const std::optional<Bits>& signs, int64_t base_order, int64_t log2, bool negate,
               bool center, int64_t row_offset, int64_t column_offset, int64_t num_classes,
               int64_t class_begin, int64_t class_end, bool normalize, int64_t epilogue,
               const std::optional<py::dtype>& dtype) {
  const py::array rows = as_rows(x, "x");
  fixclf::HeadProblem p{};
  p.x = input(rows, "x");
  p.codebook = codebook_of(in_features, base, signs, base_order, log2, negate, center, row_offset,
                           column_offset, num_classes, class_begin, class_end);
  p.alpha = alpha;
  if (bias) {
    if (bias->ndim() != 1 || bias->strides(0) != bias->itemsize())
      throw py::value_error("bias has " + std::to_string(bias->ndim()) +
                            " dimension(s), expected a contiguous vector");
    p.has_bias = true;
    p.bias = bias->data();
    p.bias_length = bias->size();
    p.bias_dtype = dtype_of(*bias, "bias");
  }
  p.normalize = normalize;
  p.epilogue = static_cast<fixclf::Epilogue>(epilogue);
  py::array out = empty_like_rows(rows, class_end - class_begin, dtype.value_or(rows.dtype()));
  p.out = output(out);
  Status status;
  {
    const py::gil_scoped_release release;
    status = fixclf::cpu::head(p, fixclf::cpu::thread_pool());
  }
  check(status);
  return out;
}

std::string isa() {
  std::string name;
  check(fixclf::cpu::active_isa(&name));
  return name;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The fixclf_infer CPU kernels on NumPy arrays.";
  m.def("hadamard_transform", &hadamard_transform, py::arg("x"), py::arg("scale") = 1.0);
  m.def("head", &head, py::arg("x"), py::arg("alpha"), py::arg("bias").none(true), py::kw_only(),
        py::arg("in_features"), py::arg("base").none(true), py::arg("signs").none(true),
        py::arg("base_order"), py::arg("log2"), py::arg("negate"), py::arg("center"),
        py::arg("row_offset"), py::arg("column_offset"), py::arg("num_classes"),
        py::arg("class_begin"), py::arg("class_end"), py::arg("normalize"), py::arg("epilogue"),
        py::arg("dtype") = py::none());
  m.def("isa", &isa, "The instruction set in use.");
  m.def(
      "set_isa", [](const std::string& name) { check(fixclf::cpu::set_isa(name)); },
      "Run this instruction set from now on; for tests and benchmarks.");
  m.def("compiled_isas", &fixclf::cpu::compiled_isas);
  m.def("supported_isas", &fixclf::cpu::supported_isas);
  m.def("num_threads", &fixclf::cpu::num_threads);
  m.def("set_num_threads", [](int threads) {
    if (threads < 0 || threads > fixclf::cpu::kMaxThreads)
      throw py::value_error("threads is " + std::to_string(threads) +
                            ", expected 0 (all cores) to " +
                            std::to_string(fixclf::cpu::kMaxThreads));
    fixclf::cpu::set_num_threads(threads);
  });
  py::dict epilogues;
#define FIXCLF_EPILOGUE(enumerator, value, name) epilogues[name] = value;
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
  m.attr("EPILOGUES") = epilogues;
}
