// The CUDA kernels, compiled for the host and run by the emulation in include/cuda_runtime.h:
// against the float64 oracle and against the CPU backend. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by `make test-cpp`. No device takes part: what this can't show is
// timing, races within a warp's instruction and memory ordering.
#include <cstdio>
#include <string>

#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "tests/problems.h"

namespace {

// A heap block of the size asked for, full of NaN, until the call has ended.
struct Memory {
  std::vector<std::unique_ptr<char[]>> blocks;

  cuda::Workspace workspace() {
    return {[](void* self, int64_t bytes) -> void* {
              auto& all = static_cast<Memory*>(self)->blocks;
              CHECK(all.empty() && bytes > 0);
              all.emplace_back(new char[static_cast<size_t>(bytes)]);
              std::memset(all.back().get(), 0xff, static_cast<size_t>(bytes));
              return all.back().get();
            },
            this};
  }
};

struct Emulated {
  Status operator()(const HeadProblem& p) const {
    Memory memory;
    Buffer alpha = exact(p);
    return cuda::head(p, alpha.data(), memory.workspace(), nullptr);
  }
  Status operator()(const ReductionBackwardProblem& p) const {
    Memory memory;
    Buffer alpha = exact(p.head);
    return cuda::reduction_backward(p, alpha.data(), memory.workspace(), nullptr);
  }
  Status operator()(const AdjointProblem& p) const {
    Memory memory;
    return cuda::adjoint(p, memory.workspace(), nullptr);
  }
  Status operator()(const TransformProblem& p) const { return cuda::transform(p, nullptr); }

 private:
  static Buffer exact(const HeadProblem& p) {
    Buffer alpha(accumulation_dtype(p.x.dtype), 1);
    alpha.set(0, p.alpha);
    return alpha;
  }
};

// Many blocks: chunks, their merge, rows in slices; the same bits for a row alone.
void test_chunks() {
  Case c;
  do c = Case();
  while (c.cb.order() > 64 || c.cb.center);
  const int64_t blocks = pick(5, 400);
  std::vector<uint8_t> signs(static_cast<size_t>(blocks * c.cb.sign_stride()));
  for (auto& byte : signs) byte = static_cast<uint8_t>(pick(0, 255));
  Codebook cb = c.cb;
  cb.blocks = blocks;
  cb.signs = signs.data();
  cb.classes = cb.class_end = blocks * cb.rows_per_block() - cb.row_offset;
  cb.class_begin = pick(0, std::min<int64_t>(cb.classes - 1, 100));
  const int64_t classes = cb.computed(), rows = 5;
  Features x(kDTypes[pick(0, 5)], rows, cb.features, 1);
  const DType exact = accumulation_dtype(x.dtype);
  HeadProblem p{};
  p.codebook = cb;
  p.x = x.matrix();
  p.alpha = 7;
  p.normalize = true;
  const Emulated run;
  Reductions whole(p, pick(1, std::min<int64_t>(classes, 200)), 3),
      cpu_results(p, whole.common.k, 3);
  cpu_results.ids = whole.ids;
  cpu_results.targets = whole.targets;
  cpu_results.seeds = whole.seeds;
  cpu_results.common.label_smoothing = whole.common.label_smoothing;
  if (!CHECK(whole.run(run))) return;
  CHECK(cpu_results.run([](const HeadProblem& q) { return cpu::head(q, {}); }));
  const int64_t k = whole.common.k;
  bool good = true;
  for (int64_t r = 0; r < rows; ++r) {
    good = good && near(whole.topk_lse.get(r), cpu_results.topk_lse.get(r));
    good = good && near(whole.losses.get(r), cpu_results.losses.get(r));
    good = good && whole.topk[r * k] == whole.argmax[r];
    for (int64_t i = 0; i < k; ++i)
      good = good && near(whole.values.get(r * k + i), cpu_results.values.get(r * k + i));
    for (int64_t i = 0; i < 3; ++i)
      good = good && near(whole.logits.get(3 * r + i), cpu_results.logits.get(3 * r + i));
    good = good && whole.sample[r] == cpu_results.sample[r];
  }
  CHECK(good);
  for (const Epilogue epilogue : {Epilogue::kSoftmax, Epilogue::kLogSoftmax, Epilogue::kLogits}) {
    Buffer out(exact, rows * classes), alone(exact, classes);
    HeadProblem q = p;
    q.epilogue = epilogue;
    q.out = {out.data(), exact, rows, classes, classes};
    CHECK(run(q).ok());
    const int64_t row = pick(0, rows - 1);
    q.x.data = static_cast<const char*>(q.x.data) + row * x.stride * size_of(x.dtype);
    q.x.rows = 1;
    q.out = {alone.data(), exact, 1, classes, classes};
    CHECK(run(q).ok());
    const int64_t bytes = classes * size_of(exact);
    CHECK(std::memcmp(static_cast<char*>(out.data()) + row * bytes, alone.data(),
                      static_cast<size_t>(bytes)) == 0);
    Buffer want(exact, classes);
    q.out.data = want.data();
    CHECK(cpu::head(q, {}).ok());
    good = true;
    for (int64_t i = 0; i < classes; ++i) good = good && near(alone.get(i), want.get(i));
    CHECK(good);
  }
}

// The orders between what Case picks and the largest, against the CPU.
void test_large_order(int log2, int base_order, DType dtype) {
  Codebook cb{};
  cb.base_order = base_order;
  cb.log2 = log2;
  cb.blocks = 1;
  std::vector<uint8_t> base(static_cast<size_t>(base_order * cb.base_stride()));
  std::vector<uint8_t> signs(static_cast<size_t>(cb.sign_stride()));
  for (auto& byte : base) byte = static_cast<uint8_t>(pick(0, 255));
  for (auto& byte : signs) byte = static_cast<uint8_t>(pick(0, 255));
  cb.base = base_order > 1 ? base.data() : nullptr;
  cb.signs = signs.data();
  cb.negate = true;
  cb.features = cb.order() - 3;
  cb.classes = cb.class_end = 2 * cb.order() - 5;
  Features x(dtype, 1, cb.features, 1);
  const DType exact = accumulation_dtype(dtype);
  Buffer got(exact, cb.classes), want(exact, cb.classes);
  HeadProblem p{};
  p.codebook = cb;
  p.x = x.matrix();
  p.alpha = 3;
  p.normalize = true;
  p.epilogue = Epilogue::kLogits;
  p.out = {got.data(), exact, 1, cb.classes, cb.classes};
  const Emulated run;
  if (!CHECK(run(p).ok())) return;
  p.out.data = want.data();
  CHECK(cpu::head(p, {}).ok());
  bool good = true;
  for (int64_t i = 0; i < cb.classes; ++i) good = good && near(got.get(i), want.get(i));
  CHECK(good);
  AdjointProblem a{cb, {want.data(), exact, 1, cb.classes, cb.classes}, {}};
  Buffer back(exact, cb.features), expected(exact, cb.features);
  a.out = {back.data(), exact, 1, cb.features, cb.features};
  CHECK(run(a).ok());
  a.out.data = expected.data();
  CHECK(cpu::adjoint(a, {}).ok());
  double worst = 0, size = 0;
  for (int64_t j = 0; j < cb.features; ++j) {
    worst = std::max(worst, std::abs(back.get(j) - expected.get(j)));
    size = std::max(size, std::abs(expected.get(j)));
  }
  CHECK(worst <= 1e-5 * size);
}

void test_limits() {
  Codebook cb{};
  cb.features = cb.classes = cb.class_end = 40000;
  cb.base_order = cb.blocks = 1;
  cb.log2 = 16;
  HeadProblem p{};
  p.codebook = cb;
  p.x = {nullptr, DType::kFloat32, 0, 40000, 40000};
  p.out = {nullptr, DType::kFloat32, 0, 40000, 40000};
  const Status status = Emulated()(p);
  CHECK(!status.ok() && status.message().find("32768") != std::string::npos);
  const Status transform = Emulated()(TransformProblem{
      {nullptr, DType::kFloat32, 0, 65536, 65536}, {nullptr, DType::kFloat32, 0, 65536, 65536}, 1});
  CHECK(!transform.ok() && transform.message().find("32768") != std::string::npos);
}

// Ids that no class has, and an alpha that is no number: NaN, and nothing else is touched.
void test_values_unchecked() {
  Codebook cb{};
  cb.features = 40;
  cb.classes = cb.class_end = 50;
  cb.base_order = cb.blocks = 1;
  cb.log2 = 6;
  Features x(DType::kFloat32, 2, 40, 1);
  HeadProblem p{};
  p.codebook = cb;
  p.x = x.matrix();
  p.alpha = 2;
  p.normalize = true;
  Reductions got(p, 5, 2);
  got.ids = {-1, 3, 50, int64_t{1} << 60};
  got.targets = {50, 7};
  const Emulated run;
  CHECK(got.run(run));
  CHECK(std::isnan(got.log_probs.get(0)) && !std::isnan(got.log_probs.get(1)));
  CHECK(std::isnan(got.logits.get(2)) && std::isnan(got.logits.get(3)));
  CHECK(std::isnan(got.losses.get(0)) && !std::isnan(got.losses.get(1)));
  Reductions nan(p, 5, 2);
  nan.common.alpha = std::nan("");
  CHECK(nan.run(run));
  for (int i = 0; i < 10; ++i) CHECK(std::isnan(nan.values.get(i)) && nan.topk[i] == i % 5);
  CHECK(nan.argmax[1] == 0 && std::isnan(nan.topk_lse.get(1)) && std::isnan(nan.logits.get(3)));
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 30;
  const Emulated run;
  for (int i = 0; i < rounds; ++i) {
    test_head(run);
    test_reductions(run);
    test_adjoint(run);
    test_transform(run);
    test_reduction_backward(run, 20);
  }
  test_extreme_rows(run);
  test_huge_rows(run);
  test_huge_transforms(run);
  test_special_biases(run);
  for (int i = 0; i < rounds / 5; ++i) test_chunks();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kInt8}) {
    test_large_order(11, 1, dtype);
    test_large_order(8, 12, dtype);
  }
  test_large_order(15, 1, DType::kBFloat16);
  test_large_order(14, 1, DType::kFloat64);
  test_large_order(6, 508, DType::kFloat32);
  test_limits();
  test_values_unchecked();
  std::printf("CUDA kernels, emulated: %d passed, %d failed\n", check::counts().passed,
              check::counts().failed);
  return check::counts().failed == 0 ? 0 : 1;
}
