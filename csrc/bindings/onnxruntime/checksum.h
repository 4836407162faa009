// The checksums of a head's file, as fixclf_infer/fileformat.py writes them.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

namespace fixclf::ort {

// FNV-1a, 64 bits: format version 1.
class Fnv1a {
 public:
  void add(const void* data, int64_t bytes) {
    const auto* byte = static_cast<const uint8_t*>(data);
    for (int64_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ byte[i]) * 0x100000001b3;
  }
  int64_t value() const { return static_cast<int64_t>(hash_); }

 private:
  uint64_t hash_ = 0xcbf29ce484222325;
};

constexpr std::array<uint32_t, 256> crc32_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t rest = i;
    for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ (rest & 1 ? 0xedb88320 : 0);
    table[i] = rest;
  }
  return table;
}

// CRC-32 of IEEE 802.3, as in zip files: format version 2.
class Crc32 {
 public:
  void add(const void* data, int64_t bytes) {
    const auto* byte = static_cast<const uint8_t*>(data);
    for (int64_t i = 0; i < bytes; ++i) rest_ = kTable[(rest_ ^ byte[i]) & 0xff] ^ rest_ >> 8;
  }
  void add(int64_t integer) {  // little-endian
    for (int i = 0; i < 8; ++i) {
      const auto byte = static_cast<uint8_t>(static_cast<uint64_t>(integer) >> 8 * i);
      add(&byte, 1);
    }
  }
  int64_t value() const { return ~rest_; }

 private:
  static constexpr std::array<uint32_t, 256> kTable = crc32_table();

  uint32_t rest_ = 0xffffffff;
};

}  // namespace fixclf::ort
