// What one ISA's translation unit exports: ranges of rows, on the calling thread, of problems that
// have been validated. `scratch` is scratch_bytes() long and 64-byte aligned.
#pragma once

#include "core/problem.h"

namespace fixclf {

struct KernelTable {
  const char* name;
  int64_t (*transform_scratch)(const TransformProblem&);
  int64_t (*head_scratch)(const HeadProblem&);
  int64_t (*adjoint_scratch)(const AdjointProblem&);
  void (*transform)(const TransformProblem&, int64_t begin, int64_t end, void* scratch);
  void (*head)(const HeadProblem&, int64_t begin, int64_t end, void* scratch);
  void (*adjoint)(const AdjointProblem&, int64_t begin, int64_t end, void* scratch);
};

}  // namespace fixclf
