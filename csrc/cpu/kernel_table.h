// What one ISA's translation unit exports: parts, on the calling thread, of problems that have been
// validated. `scratch` is as many bytes as said and 64-byte aligned.
#pragma once

#include "core/problem.h"

namespace fixclf {

// How the work of a head may be shared: by rows, or by chunks of the classes of a tile of rows.
struct HeadPlan {
  int64_t scratch;      // bytes a thread
  int64_t state_bytes;  // of one row after one chunk
  int passes;           // over the chunks
  int64_t tile;         // rows that are computed together
  int64_t chunks;
};

// Some rows and blocks of the gradients.
struct ReductionBackwardPart {
  int64_t row_begin, row_end;
  int64_t first_block, last_block;
  void* projected;  // [row_end - row_begin, N], set
  void* bias_grad;  // [M], the blocks' classes added to; may be null
};

struct KernelTable {
  const char* name;
  int64_t (*transform_scratch)(const TransformProblem&);
  int64_t (*adjoint_scratch)(const AdjointProblem&);
  void (*transform)(const TransformProblem&, int64_t begin, int64_t end, void* scratch);
  void (*adjoint)(const AdjointProblem&, int64_t begin, int64_t end, void* scratch);

  // What HeadProblem::largest_logit may be.
  double (*largest_logit)(const HeadProblem&);
  HeadPlan (*head_plan)(const HeadProblem&);
  // Rows [begin, end), whole.
  void (*head_rows)(const HeadProblem&, int64_t begin, int64_t end, void* scratch);
  // Or, for a tile of `count` rows from `row` on and for each pass: all chunks, in any grouping,
  // then the merge. `states` holds count x chunks states, 64-byte aligned.
  void (*head_chunks)(const HeadProblem&, int64_t row, int count, int pass, int64_t begin,
                      int64_t end, char* states, void* scratch);
  void (*head_merge)(const HeadProblem&, int count, int pass, char* states);

  int64_t (*reduction_backward_scratch)(const ReductionBackwardProblem&);
  void (*reduction_backward)(const ReductionBackwardProblem&, const ReductionBackwardPart&,
                             void* scratch);
};

}  // namespace fixclf
