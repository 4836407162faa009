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
// With `center`, y = W x becomes sqrt(C/(C-1)) (y - mean of y over the classes). Bits are packed
// little-endian within bytes, a set bit is -1, each row starts a new byte.
struct Codebook {
#define FIXCLF_CODEBOOK(type, field, name) type field;
#include "core/codebook.def"
#undef FIXCLF_CODEBOOK
  const uint8_t* base;   // [b, ceil(b/8)]: P_b; null iff b == 1
  const uint8_t* signs;  // [blocks, ceil(n/8)]: D_j; null: one block and no sign flips
  int64_t blocks;        // 1 where signs is null

  FIXCLF_INLINE int64_t order() const { return base_order << log2; }
  FIXCLF_INLINE int64_t rows_per_block() const { return negate ? 2 * order() : order(); }
  FIXCLF_INLINE int64_t sign_stride() const { return (order() + 7) / 8; }
  FIXCLF_INLINE int64_t base_stride() const { return (base_order + 7) / 8; }

  // The classes to compute; the blocks [first_block, last_block] that they come from.
  FIXCLF_INLINE int64_t computed() const { return class_end - class_begin; }
  FIXCLF_INLINE int64_t first_block() const {
    return (class_begin + row_offset) / rows_per_block();
  }
  FIXCLF_INLINE int64_t last_block() const {
    return (class_end - 1 + row_offset) / rows_per_block();
  }
  // The class, counted from class_begin and maybe not in the shard, that row 0 of a block is; of
  // its negation with `half` 1.
  FIXCLF_INLINE int64_t class_at(int64_t block, int half = 0) const {
    return block * rows_per_block() + half * order() - row_offset - class_begin;
  }
};

#define FIXCLF_CODEBOOK(type, field, name) +1
constexpr int kCodebookIntegers = 0
#include "core/codebook.def"
    ;
#undef FIXCLF_CODEBOOK

// A codebook without its bits.
inline Codebook codebook_of(const int64_t (&integers)[kCodebookIntegers]) {
  const int64_t* next = integers;
  Codebook codebook{};
#define FIXCLF_CODEBOOK(type, field, name) codebook.field = static_cast<type>(*next++);
#include "core/codebook.def"
#undef FIXCLF_CODEBOOK
  codebook.blocks = 1;
  return codebook;
}

}  // namespace fixclf
