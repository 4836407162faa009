// The kernels against a dense float64 oracle, in every instruction set that this machine has, on
// buffers of exactly the size that they may touch. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by `make test-cpp`.
#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>

#include "cpu/cpu.h"
#include "cpu/kernel_table.h"
#include "cpu/thread_pool.h"
#include "tests/check.h"
#include "tests/problems.h"

namespace fixclf {
extern const KernelTable kernels_wide;
}

namespace {

// Runs one kernel as the current instruction set, or as the 16-lane unit that only the tests have.
struct Runner {
  const KernelTable* table = nullptr;

  Status operator()(const HeadProblem& p) const {
    if (table == nullptr || p.x.dtype == DType::kFloat64) return cpu::head(p, {});
    const Status status = validate(p);
    HeadProblem q = p;
    std::vector<int64_t> sorted;
    if (p.epilogue == Epilogue::kStatistics) sorted.assign(p.ids, p.ids + p.x.rows * p.ids_per_row);
    for (auto row = sorted.begin(); row != sorted.end(); row += p.ids_per_row)
      std::sort(row, row + p.ids_per_row);
    q.sorted_ids = sorted.data();
    if (status.ok())
      with_scratch(table->head_plan(p).scratch,
                   [&](void* s) { table->head_rows(q, 0, p.x.rows, s); });
    return status;
  }
  Status operator()(const ReductionBackwardProblem& p) const {
    cpu::set_num_threads(static_cast<int>(pick(1, 3)));
    return cpu::reduction_backward(p, cpu::thread_pool());
  }
  Status operator()(const AdjointProblem& p) const {
    if (table == nullptr || p.g.dtype == DType::kFloat64) return cpu::adjoint(p, {});
    const Status status = validate(p);
    if (status.ok())
      with_scratch(table->adjoint_scratch(p), [&](void* s) { table->adjoint(p, 0, p.g.rows, s); });
    return status;
  }
  Status operator()(const TransformProblem& p) const {
    if (table == nullptr || p.x.dtype == DType::kFloat64) return cpu::transform(p, {});
    const Status status = validate(p);
    if (status.ok())
      with_scratch(table->transform_scratch(p),
                   [&](void* s) { table->transform(p, 0, p.x.rows, s); });
    return status;
  }

 private:
  template <class F>
  void with_scratch(int64_t needed, F f) const {
    const auto bytes = static_cast<size_t>(needed + 63) / 64 * 64;
    std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);
    std::memset(scratch.get(), 0xff, bytes);
    f(scratch.get());
  }
};

// Few rows share their classes among threads, many rows are shared; bit for bit the same.
void test_chunks() {
  Case c;
  do c = Case();
  while (c.cb.order() > 64 || c.cb.center);
  const int64_t blocks = pick(40000, 90000) / c.cb.rows_per_block() + 1;
  std::vector<uint8_t> signs(static_cast<size_t>(blocks * c.cb.sign_stride()));
  for (auto& byte : signs) byte = static_cast<uint8_t>(pick(0, 255));
  Codebook cb = c.cb;
  cb.blocks = blocks;
  cb.signs = signs.data();
  cb.classes = cb.class_end = blocks * cb.rows_per_block() - cb.row_offset;
  cb.class_begin = pick(0, 2000);
  Features x(kDTypes[pick(0, 5)], 7, cb.features, 1);
  HeadProblem p{};
  p.codebook = cb;
  p.x = x.matrix();
  p.alpha = 7;
  p.normalize = true;
  const int64_t classes = cb.computed();
  std::vector<uint8_t> allowed(static_cast<size_t>((classes + 7) / 8));
  for (auto& byte : allowed) byte = pick(0, 50) == 0 ? 0x42 : 0;
  allowed[3] = 1;
  if (coin()) {
    p.allowed = allowed.data();
    p.allowed_rows = 1;
    p.allowed_bytes = static_cast<int64_t>(allowed.size());
  }
  Reductions shared(p, pick(1, 200), 3);
  cpu::set_num_threads(static_cast<int>(pick(1, 4)));
  CHECK(shared.run([](const HeadProblem& q) { return cpu::head(q, cpu::thread_pool()); }));
  // The same rows six times over: more than are split.
  Features many = x.repeated(6);
  HeadProblem q = p;
  q.x = many.matrix();
  Reductions whole(q, shared.common.k, 3);
  whole.common.label_smoothing = shared.common.label_smoothing;
  const auto repeat = [](std::vector<int64_t>& to, const std::vector<int64_t>& from) {
    for (size_t i = 0; i < to.size(); ++i) to[i] = from[i % from.size()];
  };
  repeat(whole.ids, shared.ids);
  repeat(whole.targets, shared.targets);
  repeat(whole.seeds, shared.seeds);
  std::copy(std::begin(shared.wanted), std::end(shared.wanted), std::begin(whole.wanted));
  CHECK(whole.run([](const HeadProblem& r) { return cpu::head(r, {}); }));
  bool same = true;
  for (size_t i = 0; i < whole.topk.size(); ++i)
    same = same && whole.topk[i] == shared.topk[i % shared.topk.size()] &&
           whole.values.get(i) == shared.values.get(i % shared.topk.size());
  for (size_t i = 0; i < whole.argmax.size(); ++i) {
    const auto j = static_cast<int64_t>(i % shared.argmax.size());
    same = same && whole.argmax[i] == shared.argmax[j] && whole.sample[i] == shared.sample[j] &&
           whole.topk_lse.get(i) == shared.topk_lse.get(j) &&
           (!shared.wanted[0] || whole.others_lse.get(i) == shared.others_lse.get(j)) &&
           (!shared.wanted[1] || whole.sum.get(i) == shared.sum.get(j)) &&
           (!shared.wanted[2] || whole.squares.get(i) == shared.squares.get(j)) &&
           (!shared.wanted[3] || whole.softplus.get(i) == shared.softplus.get(j)) &&
           (p.allowed != nullptr || whole.losses.get(i) == shared.losses.get(j));
  }
  CHECK(same);
}

// Bitwise the same alone, within a batch, at another stride, on several threads.
void test_batch_invariance() {
  const Case c;
  const int64_t rows = 37, n = c.cb.features, classes = c.shard();
  std::vector<float> x(static_cast<size_t>(rows * (n + 3)));
  for (auto& v : x) v = static_cast<float>(normal());
  std::vector<float> whole(static_cast<size_t>(rows * classes)), alone(whole.size());
  HeadProblem p{};
  p.codebook = c.cb;
  p.alpha = 3;
  p.normalize = true;
  p.epilogue = Epilogue::kSoftmax;
  p.x = {x.data(), DType::kFloat32, rows, n, n + 3};
  p.out = {whole.data(), DType::kFloat32, rows, classes, classes};
  cpu::set_num_threads(3);
  CHECK(cpu::head(p, cpu::thread_pool()).ok());
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<float> row(x.begin() + r * (n + 3), x.begin() + r * (n + 3) + n);
    p.x = {row.data(), DType::kFloat32, 1, n, n};
    p.out = {alone.data() + r * classes, DType::kFloat32, 1, classes, classes};
    CHECK(cpu::head(p, {}).ok());
  }
  CHECK(std::memcmp(whole.data(), alone.data(), 4 * whole.size()) == 0);
}

void test_errors() {
  Case c;
  const auto broken = [&](auto change, const char* mention) {
    Codebook cb = c.cb;
    change(cb);
    const Status status = validate(cb, c.base_shape(), c.signs_shape());
    if (!CHECK(!status.ok() && status.message().find(mention) != std::string::npos))
      std::printf("  '%s' does not mention %s\n", status.message().c_str(), mention);
  };
  const int64_t huge = std::numeric_limits<int64_t>::max(),
                low = std::numeric_limits<int64_t>::min();
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, huge, low}) {
    broken([&](Codebook& cb) { cb.base_order = bad; }, "base_order");
    broken([&](Codebook& cb) { cb.features = bad; }, "features");
    broken([&](Codebook& cb) { cb.classes = bad; }, "num_classes");
    broken([&](Codebook& cb) { cb.class_end = bad; }, "class range");
    if (bad == 0) continue;
    broken([&](Codebook& cb) { cb.log2 = bad; }, "order");
    broken([&](Codebook& cb) { cb.row_offset = bad; }, "row");
    broken([&](Codebook& cb) { cb.column_offset = bad; }, "column");
    broken([&](Codebook& cb) { cb.class_begin = bad; }, "class range");
  }
  CHECK(!cpu::set_isa("avx9000").ok());
  std::string name;
  CHECK(cpu::active_isa(&name).ok());
}

void test_concurrent_callers() {
  const Case c(4096);
  const int64_t n = c.cb.features, classes = c.shard(), rows = 64;
  std::vector<float> x(static_cast<size_t>(rows * n));
  for (auto& v : x) v = static_cast<float>(normal());
  const auto compute = [&](std::vector<float>& out) {
    out.resize(static_cast<size_t>(rows * classes));
    HeadProblem p{};
    p.codebook = c.cb;
    p.alpha = 1;
    p.normalize = true;
    p.x = {x.data(), DType::kFloat32, rows, n, n};
    p.out = {out.data(), DType::kFloat32, rows, classes, classes};
    return cpu::head(p, cpu::thread_pool()).ok();
  };
  std::vector<float> expected;
  CHECK(compute(expected));
  std::vector<std::thread> threads;
  std::atomic<int> same{0};
  for (int t = 0; t < 6; ++t)
    threads.emplace_back([&] {
      std::vector<float> out;
      for (int i = 0; i < 5; ++i) {
        const bool ok = compute(out);
        same += ok && std::memcmp(out.data(), expected.data(), 4 * out.size()) == 0;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(same == 30);
}

}  // namespace

int main() {
  std::vector<std::string> names = cpu::supported_isas();
  for (const auto& isa : cpu::compiled_isas()) {
    bool supported = false;
    for (const auto& name : names) supported |= name == isa;
    if (!supported)
      std::printf("skipped: %s is compiled, but this machine can't run it\n", isa.c_str());
  }
  names.emplace_back("wide");
  for (const auto& isa : names) {
    Runner run;
    if (isa == "wide") {
      run.table = &kernels_wide;
    } else {
      CHECK(cpu::set_isa(isa).ok());
    }
    const int before = check::counts().passed;
    for (int i = 0; i < 300; ++i) {
      test_head(run);
      test_reductions(run);
      test_adjoint(run);
      test_transform(run);
    }
    test_extreme_rows(run);
    test_huge_rows(run);
    test_huge_transforms(run);
    test_special_biases(run);
    for (int i = 0; i < 20; ++i) test_batch_invariance();
    for (int i = 0; i < 4; ++i) test_chunks();
    for (int i = 0; i < 40; ++i) test_reduction_backward(run, 80);
    std::printf("%s: %d checks\n", isa.c_str(), check::counts().passed - before);
  }
  for (int i = 0; i < 20; ++i) test_errors();
  for (int i = 0; i < 5; ++i) test_concurrent_callers();
  std::printf("%d passed, %d failed\n", check::counts().passed, check::counts().failed);
  return check::counts().failed == 0 ? 0 : 1;
}
