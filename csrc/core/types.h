// What every backend shares: dtypes, status, matrices. No framework, no intrinsics.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace fixclf {

// Storage only: kernels convert to float32 on load.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The values are part of every binding's interface.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

inline int64_t size_of(DType dtype) {
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
