// A codebook as data: everything a kernel knows about W. Which family it came from, and why these
// bits, only Python knows (fixclf_infer/codebooks).
#pragma once

#include <cstdint>

#include "core/types.h"

namespace fixclf {

constexpr int kMaxLog2Order = 22;
constexpr int64_t kMaxOrder = int64_t{1} << kMaxLog2Order;
constexpr int64_t kMaxBaseOrder = 512;

// W is rows [row_offset, row_offset + classes) of the stack
//   [ B_0; -B_0; B_1; -B_1; ... ]   (the negations only with `negate`)
// and columns [column_offset, column_offset + features) of
//   B_j = H_n D_j,   H_n = P_b (x) H_{2^k},   n = b 2^k.
// Bits are packed little-endian within bytes, a set bit is -1, each row starts a new byte.
struct Codebook {
  int64_t features;      // N
  int64_t classes;       // C
  int64_t base_order;    // b; 1 for a Sylvester matrix
  int64_t log2;          // k
  const uint8_t* base;   // [b, ceil(b/8)]: P_b; null iff b == 1
  const uint8_t* signs;  // [blocks, ceil(n/8)]: D_j; null: one block and no sign flips
  int64_t blocks;        // 1 where signs is null
  bool negate;           // each block is followed by its negation
  bool center;           // simplex ETF: y -> sqrt(C/(C-1)) (y - mean of y over the classes)
  int64_t row_offset;
  int64_t column_offset;
  int64_t class_begin;  // the shard [class_begin, class_end) of the classes to compute
  int64_t class_end;

  FIXCLF_INLINE int64_t order() const { return base_order << log2; }
  FIXCLF_INLINE int64_t rows_per_block() const { return negate ? 2 * order() : order(); }
  FIXCLF_INLINE int64_t sign_stride() const { return (order() + 7) / 8; }
  FIXCLF_INLINE int64_t base_stride() const { return (base_order + 7) / 8; }
};

}  // namespace fixclf
