#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/cpu.h"
#include "cpu/kernel_table.h"

namespace fixclf {

#define FIXCLF_ISA(name, arch, supported, flags) extern const KernelTable kernels_##name;
#include "isas.def"
#undef FIXCLF_ISA

namespace cpu {
namespace {

struct Isa {
  const KernelTable* kernels;
  bool supported;
};

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
#define FIXCLF_ISA(name, arch, supported, flags) {&kernels_##name, static_cast<bool>(supported)},
#include "isas.def"
#undef FIXCLF_ISA
  };
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Status find_isa(const std::string& name, const char* source, const KernelTable** found) {
  for (const Isa& isa : isas()) {
    if (name != isa.kernels->name) continue;
    if (!isa.supported)
      return Status::error(std::string(source) + " is '" + name +
                           "', which this machine can't run; it runs " + joined(supported_isas()));
    *found = isa.kernels;
    return {};
  }
  return Status::error(std::string(source) + " is '" + name + "', expected one of " +
                       joined(compiled_isas()));
}

struct Choice {
  Status status;
  std::atomic<const KernelTable*> kernels{nullptr};

  Choice() {
    const KernelTable* found = nullptr;
    const char* forced = std::getenv("FIXCLF_ISA");
    if (forced != nullptr && *forced != '\0') {
      status = find_isa(forced, "the environment variable FIXCLF_ISA", &found);
    } else {
      for (const Isa& isa : isas())
        if (isa.supported) found = isa.kernels;
    }
    kernels = found;
  }
};

Choice& choice() {
  static Choice value;
  return value;
}

// One buffer a thread, kept for the next call and grown when an order asks for more.
void* thread_scratch(int64_t bytes) {
  struct Buffer {
    void* data = nullptr;
    int64_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (buffer.bytes < bytes) {
    std::free(buffer.data);
    buffer.bytes = (bytes + 63) / 64 * 64;
    buffer.data = std::aligned_alloc(64, static_cast<size_t>(buffer.bytes));
    if (buffer.data == nullptr) buffer.bytes = 0;
  }
  return buffer.data;
}

// Rows that are worth a thread: about 10 us of work.
int64_t grain(int64_t operations_per_row) {
  constexpr int64_t kOperations = 1 << 16;
  return operations_per_row >= kOperations ? 1 : kOperations / operations_per_row;
}

int64_t operations_per_row(const Codebook& cb) {
  const int64_t blocks = (cb.computed()) / cb.rows_per_block() + 1;
  return cb.features + 4 * (cb.computed()) +
         blocks * cb.order() * (cb.base_order / 4 + cb.log2 + 1);
}

// Only the scalar unit, the first of the table, has float64.
const KernelTable* kernels_for(DType dtype) {
  return dtype == DType::kFloat64 ? isas().front().kernels : choice().kernels.load();
}

Status out_of_memory(int64_t bytes) {
  return Status::error("out of memory for " + std::to_string(bytes) + " bytes of scratch");
}

// Calls f(begin, end, scratch) over [0, count), each thread with its own scratch.
template <class F>
Status share(const Parallel& parallel, int64_t count, int64_t grain, int64_t scratch_bytes, F f) {
  if (count == 0) return {};
  std::atomic<bool> failed{false};
  parallel(count, grain, [&](int64_t begin, int64_t end) {
    void* scratch = thread_scratch(scratch_bytes);
    if (scratch == nullptr) {
      failed = true;
    } else {
      f(begin, end, scratch);
    }
  });
  return failed ? out_of_memory(scratch_bytes) : Status();
}

// Fewer rows than this share their classes among the threads, not themselves.
constexpr int64_t kManyRows = 32;

Status share_chunks(const KernelTable& kernels, const HeadPlan& plan, const HeadProblem& p,
                    const Parallel& parallel) {
  const int64_t bytes = plan.tile * plan.chunks * plan.state_bytes;
  const std::unique_ptr<char, decltype(&std::free)> states(
      static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes))), &std::free);
  if (states == nullptr) return out_of_memory(bytes);
  for (int64_t row = 0; row < p.x.rows; row += plan.tile) {
    const int count = static_cast<int>(std::min(plan.tile, p.x.rows - row));
    for (int pass = 0; pass < plan.passes; ++pass) {
      Status status = share(
          parallel, plan.chunks, 1, plan.scratch, [&](int64_t begin, int64_t end, void* scratch) {
            kernels.head_chunks(p, row, count, pass, begin, end, states.get(), scratch);
          });
      if (!status.ok()) return status;
      kernels.head_merge(p, count, pass, states.get());
    }
  }
  return {};
}

// Each row of the ids in ascending order, for kernels that pass over them.
std::vector<int64_t> sorted_ids(const HeadProblem& p) {
  if (p.ids_per_row < 2) return {};
  std::vector<int64_t> ids(p.ids, p.ids + p.x.rows * p.ids_per_row);
  for (auto row = ids.begin(); row != ids.end(); row += p.ids_per_row)
    std::sort(row, row + p.ids_per_row);
  return ids;
}

}  // namespace

Status transform(const TransformProblem& p, const Parallel& parallel) {
  if (Status status = validate(p); !status.ok()) return status;
  if (!choice().status.ok()) return choice().status;
  const KernelTable* kernels = kernels_for(p.x.dtype);
  return share(parallel, p.x.rows, grain(8 * p.x.columns), kernels->transform_scratch(p),
               [&](int64_t begin, int64_t end, void* scratch) {
                 kernels->transform(p, begin, end, scratch);
               });
}

Status head(const HeadProblem& problem, const Parallel& parallel) {
  if (Status status = validate(problem); !status.ok()) return status;
  if (!choice().status.ok()) return choice().status;
  const KernelTable* kernels = kernels_for(problem.x.dtype);
  HeadProblem p = problem;
  if (p.epilogue == Epilogue::kSoftmax) p.largest_logit = kernels->largest_logit(p);
  std::vector<int64_t> sorted;
  if (p.epilogue == Epilogue::kStatistics) {
    sorted = sorted_ids(p);
    p.sorted_ids = sorted.data();
  }
  const HeadPlan plan = kernels->head_plan(p);
  if (plan.chunks > 1 && p.x.rows < kManyRows) return share_chunks(*kernels, plan, p, parallel);
  return share(parallel, p.x.rows, grain(operations_per_row(p.codebook)), plan.scratch,
               [&](int64_t begin, int64_t end, void* scratch) {
                 kernels->head_rows(p, begin, end, scratch);
               });
}

Status adjoint(const AdjointProblem& p, const Parallel& parallel) {
  if (Status status = validate(p); !status.ok()) return status;
  if (!choice().status.ok()) return choice().status;
  const KernelTable* kernels = kernels_for(p.g.dtype);
  return share(
      parallel, p.g.rows, grain(operations_per_row(p.codebook)), kernels->adjoint_scratch(p),
      [&](int64_t begin, int64_t end, void* scratch) { kernels->adjoint(p, begin, end, scratch); });
}

namespace {

// A grid of row parts and block groups, whose partial sums are added in order: of the bias gradient
// over row parts, of the projected gradient over block groups. Its shape depends on sizes alone,
// and keeps the partial sums within about 1 MiB.
struct ReductionBackwardGrid {
  int64_t rows, parts, groups;  // rows a part; parts and groups at a time

  ReductionBackwardGrid(int64_t features, int64_t classes, int64_t blocks) {
    constexpr int64_t kElements = int64_t{1} << 18;
    groups = classes > kElements / 16 ? std::min<int64_t>(blocks, 8) : 1;
    parts = groups > 1 ? 1 : std::clamp<int64_t>(kElements / classes, 1, 16);
    rows = groups > 1 ? std::clamp<int64_t>(kElements / (groups * features), 4, 32) : 32;
  }
};

// to += from.
template <class Real>
void add(const Real* from, int64_t count, Real* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

template <class Real>
Status reduction_backward_as(const KernelTable& kernels, const ReductionBackwardProblem& p,
                             const Parallel& parallel) {
  const HeadProblem& head = p.head;
  const Codebook& cb = head.codebook;
  const int64_t n = cb.features, classes = cb.computed();
  const int64_t first = cb.first_block(), blocks = cb.last_block() + 1 - first;
  const ReductionBackwardGrid grid(n, classes, blocks);
  auto* projected = static_cast<Real*>(p.projected.data);
  auto* bias_grad = static_cast<Real*>(p.bias_grad);
  if (bias_grad != nullptr) std::fill_n(bias_grad, classes, Real(0));
  std::vector<Real> part_sums(grid.parts > 1 && bias_grad != nullptr ? grid.parts * classes : 0);
  std::vector<Real> group_sums(grid.groups > 1 ? grid.groups * grid.rows * n : 0);
  const int64_t rows = head.x.rows;
  for (int64_t begin = 0; begin < rows; begin += grid.parts * grid.rows) {
    const int64_t end = std::min(rows, begin + grid.parts * grid.rows);
    const int64_t parts = (end - begin + grid.rows - 1) / grid.rows;
    std::fill(part_sums.begin(), part_sums.end(), Real(0));
    const auto cell = [&](int64_t i, void* scratch) {
      const int64_t part = i / grid.groups, group = i % grid.groups;
      ReductionBackwardPart work;
      work.row_begin = begin + part * grid.rows;
      work.row_end = std::min(end, work.row_begin + grid.rows);
      work.first_block = first + blocks * group / grid.groups;
      work.last_block = first + blocks * (group + 1) / grid.groups - 1;
      work.projected = grid.groups > 1 ? group_sums.data() + group * grid.rows * n
                                       : projected + work.row_begin * n;
      work.bias_grad = part_sums.empty() ? bias_grad : part_sums.data() + part * classes;
      kernels.reduction_backward(p, work, scratch);
    };
    Status status = share(parallel, parts * grid.groups, 1, kernels.reduction_backward_scratch(p),
                          [&](int64_t from, int64_t to, void* scratch) {
                            for (int64_t i = from; i < to; ++i) cell(i, scratch);
                          });
    if (!status.ok()) return status;
    if (grid.groups > 1) {
      std::copy_n(group_sums.data(), (end - begin) * n, projected + begin * n);
      for (int64_t group = 1; group < grid.groups; ++group)
        add(group_sums.data() + group * grid.rows * n, (end - begin) * n, projected + begin * n);
    }
    if (!part_sums.empty())
      for (int64_t part = 0; part < parts; ++part)
        add(part_sums.data() + part * classes, classes, bias_grad);
  }
  return {};
}

}  // namespace

Status reduction_backward(const ReductionBackwardProblem& problem, const Parallel& parallel) {
  if (Status status = validate(problem); !status.ok()) return status;
  if (!choice().status.ok()) return choice().status;
  ReductionBackwardProblem p = problem;
  std::vector<int64_t> sorted;
  if (p.others) {
    sorted = sorted_ids(p.head);
    p.head.sorted_ids = sorted.data();
  }
  const KernelTable& kernels = *kernels_for(p.head.x.dtype);
  return p.head.x.dtype == DType::kFloat64 ? reduction_backward_as<double>(kernels, p, parallel)
                                           : reduction_backward_as<float>(kernels, p, parallel);
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) names.emplace_back(isa.kernels->name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas())
    if (isa.supported) names.emplace_back(isa.kernels->name);
  return names;
}

Status active_isa(std::string* name) {
  if (choice().status.ok()) *name = choice().kernels.load()->name;
  return choice().status;
}

Status set_isa(const std::string& name) {
  const KernelTable* found = nullptr;
  Status status = find_isa(name, "isa", &found);
  if (status.ok()) {
    choice().kernels = found;
    choice().status = {};
  }
  return status;
}

}  // namespace cpu
}  // namespace fixclf
