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

// The values are part of every binding's interface.
enum class DType : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kFloat16 = 2,
  kFloat64 = 3,
  kInt8 = 4,  // features only
  // Features only: eight of +-1 in a byte, little-endian bits, a set bit is -1, as in a codebook.
  kSigns = 5,
};

FIXCLF_INLINE bool is_floating(DType dtype) { return dtype <= DType::kFloat64; }

FIXCLF_INLINE int64_t size_of(DType dtype) {
  if (!is_floating(dtype)) return 1;
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat64:
      return "float64";
    case DType::kInt8:
      return "int8";
    case DType::kSigns:
      return "uint8 (packed signs)";
  }
  return "an unknown dtype";
}

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
