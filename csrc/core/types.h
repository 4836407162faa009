// What every backend shares: dtypes, status, matrices. No framework, no intrinsics.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

// For functions in headers that instruction-set units include: one that is emitted out of line
// would be shared among the units. CUDA kernels call them too.
#if defined(__CUDACC__)
#define FIXCLF_INLINE inline __host__ __device__ __attribute__((always_inline))
#else
#define FIXCLF_INLINE inline __attribute__((always_inline))
#endif

namespace fixclf {

// Storage only: kernels convert to float32 on load.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DType : int32_t {
#define FIXCLF_DTYPE(enumerator, value, bytes, is_floating, name) k##enumerator = value,
#include "core/dtype.def"
#undef FIXCLF_DTYPE
};

namespace detail {

struct DTypeFacts {
  int bytes;
  bool is_floating;
  const char* name;
};

FIXCLF_INLINE DTypeFacts facts_of(DType dtype) {
  switch (dtype) {
#define FIXCLF_DTYPE(enumerator, value, bytes, is_floating, name) \
  case DType::k##enumerator:                                      \
    return {bytes, is_floating, name};
#include "core/dtype.def"
#undef FIXCLF_DTYPE
  }
  return {1, false, "an unknown dtype"};
}

}  // namespace detail

FIXCLF_INLINE bool is_floating(DType dtype) { return detail::facts_of(dtype).is_floating; }
FIXCLF_INLINE int64_t size_of(DType dtype) { return detail::facts_of(dtype).bytes; }
inline const char* name_of(DType dtype) { return detail::facts_of(dtype).name; }

// Ok, or one sentence that names the argument, what it was and what was expected.
class Status {
 public:
  Status() = default;
  static Status error(std::string message) {
    Status status;
    status.message_ = std::move(message);
    return status;
  }
  bool ok() const { return message_.empty(); }
  const std::string& message() const { return message_; }

 private:
  std::string message_;
};

// Rows of contiguous elements; stride in elements, any value (0 and negative ones included).
struct ConstMatrix {
  const void* data;
  DType dtype;
  int64_t rows;
  int64_t columns;
  int64_t stride;
};
struct Matrix {
  void* data;
  DType dtype;
  int64_t rows;
  int64_t columns;
  int64_t stride;
};

}  // namespace fixclf
