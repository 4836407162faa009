// Runs one hot kernel, four rows of it, on the instruction set that is named, for a count of its
// instructions under callgrind: counted <instruction set> <case>. Without arguments: the cases.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/cpu.h"

namespace {

using namespace fixclf;

constexpr int64_t kRows = 4;

struct Case {
  const char* name;
  int64_t features, classes, base_order;
  bool negate;
  int64_t blocks;  // 0: no sign flips
  Epilogue epilogue;
  DType dtype;
  const char* terms = "";  // of statistics: l(ogsumexp), s(um), q (squares), p (softplus)
  bool backward = false;
};

constexpr Case kCases[] = {
    {"transform 2^7", 128, 0, 1, false, 0, Epilogue::kLogits, DType::kFloat32},
    {"transform 2^10", 1024, 0, 1, false, 0, Epilogue::kLogits, DType::kFloat32},
    {"transform 2^14", 16384, 0, 1, false, 0, Epilogue::kLogits, DType::kFloat32},
    {"2048-1000 logits", 2048, 1000, 1, false, 0, Epilogue::kLogits, DType::kFloat32},
    {"2048-1000 softmax", 2048, 1000, 1, false, 0, Epilogue::kSoftmax, DType::kFloat32},
    {"2048-1000 argmax", 2048, 1000, 1, false, 0, Epilogue::kArgMax, DType::kFloat32},
    {"2048-1000 argmax int8", 2048, 1000, 1, false, 0, Epilogue::kArgMax, DType::kInt8},
    {"2048-1000 argmax signs", 2048, 1000, 1, false, 0, Epilogue::kArgMax, DType::kSigns},
    {"512-1000 softmax", 512, 1000, 1, true, 0, Epilogue::kSoftmax, DType::kFloat32},
    {"768-1000 softmax", 768, 1000, 12, true, 0, Epilogue::kSoftmax, DType::kFloat32},
    {"1280-1000 softmax", 1280, 1000, 20, false, 0, Epilogue::kSoftmax, DType::kFloat32},
    {"512-20000 logits", 512, 20000, 1, true, 20, Epilogue::kLogits, DType::kFloat32},
    {"512-20000 loss", 512, 20000, 1, true, 20, Epilogue::kNll, DType::kFloat32},
    {"512-20000 logsumexp of others", 512, 20000, 1, true, 20, Epilogue::kStatistics,
     DType::kFloat32, "l"},
    {"512-20000 squares", 512, 20000, 1, true, 20, Epilogue::kStatistics, DType::kFloat32, "q"},
    {"512-20000 softplus", 512, 20000, 1, true, 20, Epilogue::kStatistics, DType::kFloat32, "p"},
    {"512-20000 loss, backward", 512, 20000, 1, true, 20, Epilogue::kNll, DType::kFloat32, "l",
     true},
    {"512-20000 logsumexp of others, backward", 512, 20000, 1, true, 20, Epilogue::kStatistics,
     DType::kFloat32, "l", true},
    {"512-20000 squares, backward", 512, 20000, 1, true, 20, Epilogue::kStatistics, DType::kFloat32,
     "q", true},
    {"512-20000 softplus, backward", 512, 20000, 1, true, 20, Epilogue::kStatistics,
     DType::kFloat32, "p", true},
};

// The same numbers everywhere, unlike those of <random>'s distributions.
uint32_t next() {
  static uint32_t state = 1;
  state = state * 1664525 + 1013904223;
  return state >> 8;
}

Status run(const Case& c) {
  const auto count = static_cast<size_t>(kRows * c.features);
  std::vector<float> x(count), bias(static_cast<size_t>(c.classes));
  std::vector<uint8_t> bytes(count), base(64 * 64), signs(static_cast<size_t>(c.blocks + 1) * 64);
  for (float& v : x) v = static_cast<float>(next() % 2001) / 1000 - 1;
  for (float& v : bias) v = static_cast<float>(next() % 2001) / 1000 - 1;
  for (auto* bits : {&bytes, &base, &signs})
    for (uint8_t& v : *bits) v = static_cast<uint8_t>(next());
  std::vector<float> out(static_cast<size_t>(kRows * (c.classes > 0 ? c.classes : c.features)));
  if (c.classes == 0) {
    const ConstMatrix in{x.data(), c.dtype, kRows, c.features, c.features};
    return cpu::transform({in, {out.data(), c.dtype, kRows, c.features, c.features}, 1.0}, {});
  }
  std::vector<int64_t> indices(kRows);
  HeadProblem p{};
  Codebook& cb = p.codebook;
  cb.features = c.features;
  cb.classes = cb.class_end = c.classes;
  cb.base_order = c.base_order;
  while (cb.order() < c.features) ++cb.log2;
  cb.base = c.base_order > 1 ? base.data() : nullptr;
  cb.signs = c.blocks > 0 ? signs.data() : nullptr;
  cb.blocks = c.blocks > 0 ? c.blocks : 1;
  cb.negate = c.negate;
  cb.row_offset = 1;
  const int64_t columns = c.dtype == DType::kSigns ? c.features / 8 : c.features;
  const void* data = x.data();
  if (!is_floating(c.dtype)) data = bytes.data();
  p.x = {data, c.dtype, kRows, columns, columns};
  p.alpha = 10;
  p.has_bias = true;
  p.bias = bias.data();
  p.bias_length = c.classes;
  p.bias_dtype = DType::kFloat32;
  p.normalize = true;
  p.epilogue = c.epilogue;
  p.out = {out.data(), DType::kFloat32, kRows, c.classes, c.classes};
  p.indices = indices.data();
  std::vector<int64_t> ids{3, 700, 12345, 19999};
  std::vector<float> rows(8 * kRows, 0.5f), projected(count), bias_grad(bias.size());
  const auto wanted = [&](char term, int place) {
    return std::strchr(c.terms, term) == nullptr ? nullptr : rows.data() + place * kRows;
  };
  p.ids = ids.data();
  p.ids_per_row = 1;
  p.logits = rows.data();
  p.logsumexp = rows.data() + kRows;
  if (c.epilogue == Epilogue::kNll) p.out = {rows.data(), DType::kFloat32, kRows, 1, 1};
  if (c.epilogue == Epilogue::kStatistics) {
    p.logsumexp = wanted('l', 1);
    p.sum = wanted('s', 2);
    p.squares = wanted('q', 3);
    p.softplus = wanted('p', 4);
  }
  if (!c.backward) return cpu::head(p, {});
  ReductionBackwardProblem b{};
  b.head = p;
  b.softmax_grad = wanted('l', 5);
  b.ids_grad = rows.data();
  b.linear_grad = wanted('q', 6);
  b.sigmoid_grad = wanted('p', 7);
  b.others = c.epilogue == Epilogue::kStatistics;
  b.projected = {projected.data(), DType::kFloat32, kRows, c.features, c.features};
  b.bias_grad = bias_grad.data();
  return cpu::reduction_backward(b, {});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    for (const Case& c : kCases) std::puts(c.name);
    return 0;
  }
  Status status = cpu::set_isa(argv[1]);
  bool found = false;
  for (const Case& c : kCases) {
    if (!status.ok() || std::strcmp(c.name, argv[2]) != 0) continue;
    found = true;
    status = run(c);
  }
  if (status.ok() && !found) status = Status::error(std::string("there is no case ") + argv[2]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
