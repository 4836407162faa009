// Tensors of any float type as float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "bindings/onnxruntime/ort.h"

namespace fixclf::ort {

inline float widen_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  float value = std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
  if (exponent == 0) value = std::ldexp(static_cast<float>(mantissa), -24);
  if (exponent == 0x1f)
    value = mantissa == 0 ? std::numeric_limits<float>::infinity()
                          : std::numeric_limits<float>::quiet_NaN();
  return bits & 0x8000 ? -value : value;
}

inline float widen_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline bool is_float32(const Tensor& tensor) {
  return tensor.element_type() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

// The first `count` values of a tensor. name: for the error where it holds no floats.
inline std::vector<float> floats(const Tensor& tensor, int64_t count, const char* name) {
  std::vector<float> values(static_cast<size_t>(count));
  const auto convert = [&](const auto* from, auto widen) {
    std::transform(from, from + count, values.begin(), widen);
  };
  const auto same = [](auto value) { return static_cast<float>(value); };
  switch (tensor.element_type()) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      convert(tensor.data<float>(), same);
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      convert(tensor.data<double>(), same);
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      convert(tensor.data<uint16_t>(), widen_float16);
      break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      convert(tensor.data<uint16_t>(), widen_bfloat16);
      break;
    default:
      throw InvalidArgument(std::string(name) + " is a tensor of no float type");
  }
  return values;
}

}  // namespace fixclf::ort
