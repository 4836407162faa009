// fixclf_infer._native: the kernels on NumPy arrays, and what this binary and machine can run.
// Translates arrays and errors, nothing else.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

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

// Runs a block without the GIL. CPython before 3.14 ends a thread that wants the GIL of an
// interpreter that has ended by unwinding its stack, which aborts the process at the first
// destructor on the way (pybind11's gil_scoped_release is one). Here such a thread waits for the
// end of the process, as it does in 3.14.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

DType dtype_of(const py::array& array, const char* name,
               const char* expected = "float32, bfloat16, float16 or float64") {
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
  throw py::type_error(std::string(name) + " is " + dtype + ", expected " + expected);
}

// Of x, which may also hold integers.
DType feature_dtype(const py::array& x) {
  switch (x.dtype().num()) {
    case 1:
      return DType::kInt8;
    case 2:
      return DType::kSigns;
    default:
      return dtype_of(x, "x", "float32, bfloat16, float16, float64, int8 or uint8 (packed signs)");
  }
}

// Of results that are never stored in 16 bits.
py::dtype exact(DType dtype) {
  return accumulation_dtype(dtype) == DType::kFloat64 ? py::dtype::of<double>()
                                                      : py::dtype::of<float>();
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

fixclf::ConstMatrix input(const py::array& array, DType dtype) {
  const Shape s = shape_of(array);
  return {array.data(), dtype, s.rows, s.columns, s.stride};
}

fixclf::Matrix output(py::array& array) {
  const Shape s = shape_of(array);
  return {array.mutable_data(), dtype_of(array, "the output"), s.rows, s.columns, s.stride};
}

// [..., columns], or [...] with columns -1, for x [..., N].
py::array empty_like_rows(const py::array& x, int64_t columns, const py::dtype& dtype) {
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  if (columns < 0) {
    shape.pop_back();
  } else {
    shape.back() = columns;
  }
  return py::array(dtype, shape);
}

fixclf::BitShape shape_of_bits(const std::optional<Bits>& bits, const char* name) {
  if (!bits) return {};
  if (bits->ndim() != 2)
    throw py::value_error(std::string(name) + " has " + std::to_string(bits->ndim()) +
                          " dimension(s), expected a matrix of uint8");
  return {bits->shape(0), bits->shape(1)};
}

using Geometry = std::vector<int64_t>;

Codebook codebook_of(const Geometry& geometry, fixclf::BitShape base, fixclf::BitShape signs) {
  constexpr int kSize = fixclf::kCodebookIntegers;
  if (geometry.size() != kSize)
    throw py::value_error("geometry has " + std::to_string(geometry.size()) +
                          " elements, expected " + std::to_string(kSize));
  int64_t integers[kSize];
  for (int i = 0; i < kSize; ++i) integers[i] = geometry[i];
  Codebook cb = fixclf::codebook_of(integers);
  if (signs.rows != 0) cb.blocks = signs.rows;
  check(fixclf::validate(cb, base, signs));
  return cb;
}

py::array hadamard_transform(const py::array& x, double scale) {
  const py::array rows = as_rows(x, "x");
  const fixclf::ConstMatrix in = input(rows, dtype_of(rows, "x"));
  py::array y = empty_like_rows(rows, in.columns, rows.dtype());
  const fixclf::Matrix out = output(y);
  Status status;
  {
    const WithoutGil released;
    status = fixclf::cpu::transform({in, out, scale}, fixclf::cpu::thread_pool());
  }
  check(status);
  return y;
}

using Mask = std::optional<Bits>;
using Int64s = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// Integers of any width as int64.
Int64s integers(const py::object& given, const char* name) {
  const py::array ids = py::array::ensure(given);
  if (!ids) throw py::type_error(std::string(name) + " is no array, expected integers");
  const char kind = ids.dtype().kind();
  if (kind != 'i' && kind != 'u')
    throw py::type_error(std::string(name) + " is " + std::string(py::str(ids.dtype())) +
                         ", expected integers");
  return Int64s(ids);
}

// A head with its codebook, scale and bias; the arrays stay alive with it.
class Head {
 public:
  Head(double alpha, std::optional<py::array> bias, std::optional<Bits> base,
       std::optional<Bits> signs, const Geometry& geometry, bool normalize)
      : base_(std::move(base)), signs_(std::move(signs)), bias_(std::move(bias)) {
    Codebook& cb = common_.codebook;
    cb = codebook_of(geometry, shape_of_bits(base_, "base"), shape_of_bits(signs_, "signs"));
    if (base_) cb.base = base_->data();
    if (signs_) cb.signs = signs_->data();
    common_.alpha = alpha;
    common_.normalize = normalize;
    if (bias_) {
      if (bias_->ndim() != 1 || bias_->strides(0) != bias_->itemsize())
        throw py::value_error("bias has " + std::to_string(bias_->ndim()) +
                              " dimension(s), expected a contiguous vector");
      common_.has_bias = true;
      common_.bias = bias_->data();
      common_.bias_length = bias_->size();
      common_.bias_dtype = dtype_of(*bias_, "bias");
    }
  }

  py::array map(const py::array& x, int64_t epilogue, const std::optional<py::dtype>& dtype) const {
    const py::array rows = as_rows(x, "x");
    check(fixclf::validate_map(epilogue));
    auto p = problem(rows, static_cast<fixclf::Epilogue>(epilogue));
    py::array out =
        empty_like_rows(rows, p.codebook.computed(),
                        dtype.value_or(is_floating(p.x.dtype) ? rows.dtype() : exact(p.x.dtype)));
    p.out = output(out);
    run(p);
    return out;
  }

  py::tuple topk(const py::array& x, int64_t k, bool log_probabilities, const Mask& allowed) const {
    const py::array rows = as_rows(x, "x");
    auto p = problem(rows, fixclf::Epilogue::kTopK);
    set_allowed(p, allowed, rows);
    p.k = k;
    p.log_probabilities = log_probabilities;
    const int64_t columns = k < 0 ? 0 : k > fixclf::kMaxTopK ? fixclf::kMaxTopK : k;
    py::array values = empty_like_rows(rows, columns, exact(p.x.dtype));
    py::array indices = empty_like_rows(rows, columns, py::dtype::of<int64_t>());
    py::array logsumexp = empty_like_rows(rows, -1, exact(p.x.dtype));
    p.out = output(values);
    p.indices = static_cast<int64_t*>(indices.mutable_data());
    p.logsumexp = logsumexp.mutable_data();
    run(p);
    return py::make_tuple(values, indices, logsumexp);
  }

  py::array argmax(const py::array& x, const Mask& allowed) const {
    const py::array rows = as_rows(x, "x");
    auto p = problem(rows, fixclf::Epilogue::kArgMax);
    set_allowed(p, allowed, rows);
    py::array indices = empty_like_rows(rows, -1, py::dtype::of<int64_t>());
    p.indices = static_cast<int64_t*>(indices.mutable_data());
    run(p);
    return indices;
  }

  py::array sample(const py::array& x, const py::object& seeds_, const Mask& allowed) const {
    const py::array rows = as_rows(x, "x");
    const Int64s seeds = integers(seeds_, "seeds");
    auto p = problem(rows, fixclf::Epilogue::kSample);
    set_allowed(p, allowed, rows);
    set_ids(p, seeds, "seeds", rows, true);
    py::array indices = empty_like_rows(rows, -1, py::dtype::of<int64_t>());
    p.indices = static_cast<int64_t*>(indices.mutable_data());
    run(p);
    return indices;
  }

  py::tuple log_prob(const py::array& x, const py::object& ids_, const Mask& allowed) const {
    const py::array rows = as_rows(x, "x");
    const Int64s ids = integers(ids_, "ids");
    auto p = problem(rows, fixclf::Epilogue::kLogProb);
    set_allowed(p, allowed, rows);
    set_ids(p, ids, "ids", rows, false);
    const int64_t columns = ids.ndim() == rows.ndim() ? p.ids_per_row : -1;
    py::array log_probs = empty_like_rows(rows, columns, exact(p.x.dtype));
    py::array logits = empty_like_rows(rows, columns, exact(p.x.dtype));
    py::array logsumexp = empty_like_rows(rows, -1, exact(p.x.dtype));
    p.out = {log_probs.mutable_data(), accumulation_dtype(p.x.dtype), p.x.rows, p.ids_per_row,
             p.ids_per_row};
    p.logits = logits.mutable_data();
    p.logsumexp = logsumexp.mutable_data();
    run(p);
    return py::make_tuple(log_probs, logits, logsumexp);
  }

  py::tuple nll(const py::array& x, const py::object& target_, int64_t ignore_index,
                double label_smoothing) const {
    const py::array rows = as_rows(x, "x");
    const Int64s target = integers(target_, "target");
    auto p = problem(rows, fixclf::Epilogue::kNll);
    set_ids(p, target, "target", rows, true);
    p.ignore_index = ignore_index;
    p.label_smoothing = label_smoothing;
    py::array loss = empty_like_rows(rows, -1, exact(p.x.dtype));
    py::array logsumexp = empty_like_rows(rows, -1, exact(p.x.dtype));
    p.out = {loss.mutable_data(), accumulation_dtype(p.x.dtype), p.x.rows, 1, 1};
    p.logsumexp = logsumexp.mutable_data();
    run(p);
    return py::make_tuple(loss, logsumexp);
  }

 private:
  fixclf::HeadProblem problem(const py::array& rows, fixclf::Epilogue epilogue) const {
    fixclf::HeadProblem p = common_;
    p.x = input(rows, feature_dtype(rows));
    p.epilogue = epilogue;
    return p;
  }

  static void set_allowed(fixclf::HeadProblem& p, const Mask& allowed, const py::array& rows) {
    if (!allowed) return;
    if (allowed->ndim() == 0)
      throw py::value_error("allowed has no dimensions, expected packed bits");
    bool matches = allowed->ndim() == 1 || allowed->ndim() == rows.ndim();
    for (py::ssize_t i = 0; allowed->ndim() > 1 && matches && i + 1 < rows.ndim(); ++i)
      matches = allowed->shape(i) == rows.shape(i);
    if (!matches)
      throw py::value_error("allowed has shape " + std::string(py::str(allowed->attr("shape"))) +
                            ", expected one row, or the leading dimensions of x");
    const Shape shape = shape_of(*allowed);
    p.allowed = allowed->data();
    p.allowed_rows = shape.rows;
    p.allowed_bytes = shape.columns;
  }

  // [...] (one a row) or [..., M] for x [..., N].
  static void set_ids(fixclf::HeadProblem& p, const Int64s& ids, const char* name,
                      const py::array& rows, bool one_a_row) {
    const py::ssize_t leading = rows.ndim() - 1;
    bool matches = ids.ndim() == leading || (!one_a_row && ids.ndim() == leading + 1);
    for (py::ssize_t i = 0; i < leading && matches; ++i) matches = ids.shape(i) == rows.shape(i);
    if (!matches)
      throw py::value_error(std::string(name) + " has shape " +
                            std::string(py::str(ids.attr("shape"))) +
                            ", expected that of x without its last dimension" +
                            (one_a_row ? "" : ", or with another last one"));
    p.ids = ids.data();
    p.ids_per_row = ids.ndim() == leading ? 1 : ids.shape(leading);
  }

  static void run(const fixclf::HeadProblem& p) {
    Status status;
    {
      const WithoutGil released;
      status = fixclf::cpu::head(p, fixclf::cpu::thread_pool());
    }
    check(status);
  }

  std::optional<Bits> base_, signs_;
  std::optional<py::array> bias_;
  fixclf::HeadProblem common_{};
};

std::string isa() {
  std::string name;
  check(fixclf::cpu::active_isa(&name));
  return name;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The fixclf_infer CPU kernels on NumPy arrays.";
  m.def("hadamard_transform", &hadamard_transform, py::arg("x"), py::arg("scale") = 1.0);
  py::class_<Head>(m, "Head")
      .def(py::init<double, std::optional<py::array>, std::optional<Bits>, std::optional<Bits>,
                    const Geometry&, bool>(),
           py::arg("alpha"), py::arg("bias").none(true), py::arg("base").none(true),
           py::arg("signs").none(true), py::arg("geometry"), py::arg("normalize") = true)
      .def("map", &Head::map, py::arg("x"), py::arg("epilogue"), py::arg("dtype") = py::none())
      .def("topk", &Head::topk, py::arg("x"), py::arg("k"), py::arg("log_probabilities") = false,
           py::arg("allowed") = py::none())
      .def("argmax", &Head::argmax, py::arg("x"), py::arg("allowed") = py::none())
      .def("sample", &Head::sample, py::arg("x"), py::arg("seeds"), py::arg("allowed") = py::none())
      .def("log_prob", &Head::log_prob, py::arg("x"), py::arg("ids"),
           py::arg("allowed") = py::none())
      .def("nll", &Head::nll, py::arg("x"), py::arg("target"), py::arg("ignore_index") = -100,
           py::arg("label_smoothing") = 0.0);
  m.def("isa", &isa, "The instruction set in use.");
  m.def(
      "set_isa", [](const std::string& name) { check(fixclf::cpu::set_isa(name)); },
      "Run this instruction set from now on; for tests and benchmarks.");
  m.def("compiled_isas", &fixclf::cpu::compiled_isas);
  m.def("supported_isas", &fixclf::cpu::supported_isas);
  m.def("num_threads", &fixclf::cpu::num_threads, "Threads of the kernels, in this process.");
  m.def(
      "set_num_threads",
      [](int threads) {
        if (threads < 0 || threads > fixclf::cpu::kMaxThreads)
          throw py::value_error("threads is " + std::to_string(threads) +
                                ", expected 0 (all cores) to " +
                                std::to_string(fixclf::cpu::kMaxThreads));
        fixclf::cpu::set_num_threads(threads);
      },
      "Sets num_threads; 0: as many as cores.");
  m.def(
      "check_codebook",
      [](const Geometry& geometry, std::pair<int64_t, int64_t> base,
         std::pair<int64_t, int64_t> signs) {
        codebook_of(geometry, {base.first, base.second}, {signs.first, signs.second});
      },
      py::arg("geometry"), py::arg("base"), py::arg("signs"),
      "Raises ValueError unless integers and bits of these shapes, (0, 0) for none, are a "
      "codebook.");

  // What Python spells again, to be compared when it is imported.
  py::dict epilogues;
#define FIXCLF_EPILOGUE(enumerator, value, name, shape) \
  if (fixclf::is_map(fixclf::Epilogue::k##enumerator)) epilogues[name] = value;
#include "core/epilogue.def"
#undef FIXCLF_EPILOGUE
  m.attr("EPILOGUES") = epilogues;
#define FIXCLF_CODEBOOK(type, field, name) name,
  m.attr("GEOMETRY") = py::make_tuple(
#include "core/codebook.def"
      0)[py::slice(0, fixclf::kCodebookIntegers, 1)];
#undef FIXCLF_CODEBOOK
  m.attr("MAX_TOPK") = fixclf::kMaxTopK;
}
