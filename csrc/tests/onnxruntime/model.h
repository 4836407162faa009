// ONNX models as bytes: just enough of the protocol buffers' encoding for one node.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace onnx {

inline std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes += static_cast<char>(value);
}
inline std::string field(int number, int64_t value) {
  return varint(static_cast<uint64_t>(number << 3)) + varint(static_cast<uint64_t>(value));
}
inline std::string field(int number, const std::string& bytes) {
  return varint(static_cast<uint64_t>(number << 3 | 2)) + varint(bytes.size()) + bytes;
}

// Values of TensorProto.DataType.
template <class T>
constexpr int kDataType = 0;
template <>
inline constexpr int kDataType<float> = 1;
template <>
inline constexpr int kDataType<uint8_t> = 2;

template <class T>
std::string tensor(const std::string& name, const std::vector<int64_t>& shape,
                   const std::vector<T>& values) {
  std::string raw(values.size() * sizeof(T), '\0');
  std::memcpy(raw.data(), values.data(), raw.size());
  std::string bytes;
  for (const int64_t size : shape) bytes += field(1, size);
  return bytes + field(2, int64_t{kDataType<T>}) + field(8, name) + field(9, raw);
}

inline std::string attribute(const std::string& name, int64_t value) {
  return field(1, name) + field(3, value) + field(20, int64_t{2});
}

// A float32 matrix of `columns` columns and any number of rows.
inline std::string rows(const std::string& name, int64_t columns) {
  const std::string shape = field(1, field(2, std::string("batch"))) + field(1, field(1, columns));
  return field(1, name) + field(2, field(1, field(1, int64_t{1}) + field(2, shape)));
}

struct Node {
  std::string op;
  std::vector<std::string> inputs;  // the first is the graph's input, "X"
  std::vector<std::string> initializers;
  std::vector<std::pair<std::string, int64_t>> attributes;
  int64_t in_features, out_features;
};

inline std::string model(const Node& node) {
  std::string bytes, graph;
  for (const std::string& name : node.inputs) bytes += field(1, name);
  bytes += field(2, std::string("Y")) + field(4, node.op) + field(7, std::string("ai.fixclf"));
  for (const auto& [name, value] : node.attributes) bytes += field(5, attribute(name, value));
  graph = field(1, bytes) + field(2, std::string("test"));
  for (const std::string& initializer : node.initializers) graph += field(5, initializer);
  graph += field(11, rows("X", node.in_features)) + field(12, rows("Y", node.out_features));
  const std::string onnx_opset = field(1, std::string()) + field(2, int64_t{18});
  const std::string our_opset = field(1, std::string("ai.fixclf")) + field(2, int64_t{1});
  return field(1, int64_t{8}) + field(7, graph) + field(8, onnx_opset) + field(8, our_opset);
}

}  // namespace onnx
