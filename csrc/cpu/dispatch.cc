#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/cpu.h"
#include "cpu/kernel_table.h"

namespace fixclf {

// Rows of isa.def for other architectures vanish.
#define FIXCLF_ARCH_any(...) __VA_ARGS__
#if defined(__x86_64__)
#define FIXCLF_ARCH_x86_64(...) __VA_ARGS__
#else
#define FIXCLF_ARCH_x86_64(...)
#endif
#if defined(__aarch64__)
#define FIXCLF_ARCH_aarch64(...) __VA_ARGS__
#else
#define FIXCLF_ARCH_aarch64(...)
#endif

#define FIXCLF_ISA(name, arch, supported, flags) \
  FIXCLF_ARCH_##arch(extern const KernelTable kernels_##name;)
#include "cpu/isa.def"
#undef FIXCLF_ISA

namespace cpu {
namespace {

struct Isa {
  const KernelTable* kernels;
  bool supported;
};

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
#define FIXCLF_ISA(name, arch, supported, flags) \
  FIXCLF_ARCH_##arch({&kernels_##name, static_cast<bool>(supported)}, )
#include "cpu/isa.def"
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
  const int64_t blocks = (cb.class_end - cb.class_begin) / cb.rows_per_block() + 1;
  return cb.features + 4 * (cb.class_end - cb.class_begin) +
         blocks * cb.order() * (cb.base_order / 4 + cb.log2 + 1);
}

template <class Problem>
using Kernel = void (*)(const Problem&, int64_t, int64_t, void*);
template <class Problem>
using Scratch = int64_t (*)(const Problem&);

template <class Problem>
Status run(const Problem& problem, Kernel<Problem> KernelTable::* kernel,
           Scratch<Problem> KernelTable::* scratch_bytes, const ConstMatrix& input,
           int64_t operations, const Parallel& parallel) {
  if (!choice().status.ok()) return choice().status;
  if (input.rows == 0) return {};
  // Only the scalar unit, the first of the table, has float64.
  const KernelTable* kernels =
      input.dtype == DType::kFloat64 ? isas().front().kernels : choice().kernels.load();
  const int64_t bytes = (kernels->*scratch_bytes)(problem);
  std::atomic<bool> out_of_memory{false};
  parallel(input.rows, grain(operations), [&](int64_t begin, int64_t end) {
    void* scratch = thread_scratch(bytes);
    if (scratch == nullptr) {
      out_of_memory = true;
      return;
    }
    (kernels->*kernel)(problem, begin, end, scratch);
  });
  if (out_of_memory)
    return Status::error("out of memory for " + std::to_string(bytes) +
                         " bytes of scratch a thread");
  return {};
}

}  // namespace

Status transform(const TransformProblem& p, const Parallel& parallel) {
  if (Status status = validate(p); !status.ok()) return status;
  return run(p, &KernelTable::transform, &KernelTable::transform_scratch, p.x, 8 * p.x.columns,
             parallel);
}

Status head(const HeadProblem& p, const Parallel& parallel) {
  if (Status status = validate(p); !status.ok()) return status;
  return run(p, &KernelTable::head, &KernelTable::head_scratch, p.x, operations_per_row(p.codebook),
             parallel);
}

Status adjoint(const AdjointProblem& p, const Parallel& parallel) {
  if (Status status = validate(p); !status.ok()) return status;
  return run(p, &KernelTable::adjoint, &KernelTable::adjoint_scratch, p.g,
             operations_per_row(p.codebook), parallel);
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
