// The operator library in a C++ host: tests <libonnxruntime> <libfixclf_onnxruntime>.
#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "bindings/onnxruntime/checksum.h"
#include "tests/check.h"
#include "tests/onnxruntime/host.h"
#include "tests/onnxruntime/model.h"

namespace {

using host::Runtime;
using host::Session;
using Values = std::vector<float>;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr int64_t kFeatures = 60, kOrder = 64, kClasses = 100;
constexpr float kAlpha = 5;
// Two blocks of order 64, each with its signs.
const std::vector<uint8_t> kSigns = {0x3a, 0x91, 0x07, 0xee, 0x5c, 0x20, 0xb8, 0x46,
                                     0xd3, 0x6f, 0x18, 0xa2, 0xf4, 0x09, 0x7b, 0xc5};

Values bias() {
  Values values;
  for (int64_t i = 0; i < kClasses; ++i) values.push_back(static_cast<float>(i % 7) / 8);
  return values;
}

// Attributes of format version 1, whose checksum is over the bits alone; those of version 2.
std::vector<std::pair<std::string, int64_t>> attributes(int64_t version) {
  std::vector<std::pair<std::string, int64_t>> found = {{"format_version", version},
                                                        {"in_features", kFeatures},
                                                        {"num_classes", kClasses},
                                                        {"base_order", 1},
                                                        {"log2", 6},
                                                        {"negate", 0},
                                                        {"center", 0},
                                                        {"row_offset", 0},
                                                        {"column_offset", 0},
                                                        {"has_bias", 1}};
  if (version == 1) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const uint8_t byte : kSigns) hash = (hash ^ byte) * 0x100000001b3;
    found.insert(found.end(), {{"epilogue", 0}, {"checksum", static_cast<int64_t>(hash)}});
    return found;
  }
  const Values b = bias();
  fixclf::ort::Crc32 scale, all;
  scale.add(&kAlpha, sizeof(kAlpha));
  scale.add(b.data(), kClasses * int64_t{sizeof(float)});
  found.insert(found.end(), {{"scale_checksum", scale.value()}, {"epilogue", 0}});
  for (const auto& attribute : found) all.add(attribute.second);
  all.add(kSigns.data(), static_cast<int64_t>(kSigns.size()));
  found.emplace_back("checksum", all.value());
  return found;
}

onnx::Node fixed_head(int64_t version = 2) {
  return {
      "FixedHead",
      {"X", "alpha", "bias", "signs"},
      {onnx::tensor<float>("alpha", {}, {kAlpha}), onnx::tensor<float>("bias", {kClasses}, bias()),
       onnx::tensor<uint8_t>("signs", {2, kOrder / 8}, kSigns)},
      attributes(version),
      kFeatures,
      kClasses};
}

onnx::Node with_attribute(onnx::Node node, const std::string& name, int64_t value) {
  for (auto& attribute : node.attributes)
    if (attribute.first == name) attribute.second = value;
  return node;
}

Values features(int64_t rows, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Values x(static_cast<size_t>(rows * kFeatures));
  for (float& value : x) value = normal(engine);
  return x;
}

// Logits, dense and in double.
std::vector<double> oracle(const Values& x) {
  const Values b = bias();
  std::vector<double> z;
  for (size_t row = 0; row < x.size(); row += kFeatures) {
    double squares = 0;
    for (int64_t j = 0; j < kFeatures; ++j) squares += std::pow(x[row + j], 2);
    for (int64_t i = 0; i < kClasses; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < kFeatures; ++j) {
        const uint64_t both = static_cast<uint64_t>(i % kOrder) & static_cast<uint64_t>(j);
        const int flip = kSigns[i / kOrder * kOrder / 8 + j / 8] >> j % 8 & 1;
        sum += (__builtin_popcountll(both) + flip) % 2 == 0 ? x[row + j] : -x[row + j];
      }
      z.push_back(kAlpha * sum / std::sqrt(squares * kFeatures) + b[i]);
    }
  }
  return z;
}

bool close(const Values& got, const std::vector<double>& want) {
  bool ok = got.size() == want.size();
  for (size_t i = 0; ok && i < got.size(); ++i)
    ok = std::abs(got[i] - want[i]) <= 4 * 0x1p-23 * (kAlpha + 1);
  return ok;
}

// The message of what f throws.
std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const char* part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::printf("'%s' is not in '%s'\n", part, text.c_str());
  return found;
}

void test_crc32() {
  fixclf::ort::Crc32 checksum;
  checksum.add("123456789", 9);
  CHECK(checksum.value() == 0xcbf43926);
}

void test_the_first_format_version(const Runtime& runtime, const char* library) {
  const Session session(runtime, library, onnx::model(fixed_head(1)), 1);
  CHECK(close(session.run(features(3, 1), kFeatures, kClasses), oracle(features(3, 1))));
}

void test_a_good_model(const Runtime& runtime, const char* library) {
  for (const int threads : {1, 3}) {
    const Session session(runtime, library, onnx::model(fixed_head()), threads);
    for (const int64_t rows : {0, 1, 17, 5000}) {
      const Values x = features(rows, 1);
      CHECK(close(session.run(x, kFeatures, kClasses), oracle(x)));
    }
  }
}

void test_bad_models(const Runtime& runtime, const char* library) {
  const auto load = [&](const onnx::Node& node) {
    return error_of([&] { Session(runtime, library, onnx::model(node), 1); });
  };
  CHECK(contains(load(with_attribute(fixed_head(), "format_version", 3)),
                 "written by a newer fixclf_infer"));
  CHECK(contains(load(with_attribute(fixed_head(), "checksum", 1)), "were changed"));
  CHECK(contains(load(with_attribute(fixed_head(), "epilogue", 1)), "were changed"));
  CHECK(contains(load(with_attribute(fixed_head(1), "checksum", 1)), "were changed"));
  CHECK(contains(load(with_attribute(fixed_head(), "has_bias", 0)), "bias is given"));
  CHECK(contains(load(with_attribute(fixed_head(), "log2", 62)), "over the limit"));
  onnx::Node node = fixed_head();
  node.inputs[2] = "";
  CHECK(contains(load(node), "bias is missing"));
  node = fixed_head();
  node.initializers[0] = onnx::tensor<float>("alpha", {}, {kAlpha + 1});
  CHECK(contains(load(node), "alpha or bias is not what the model was written with"));
  node = fixed_head();
  node.attributes.clear();
  CHECK(contains(load(node), "format_version is missing"));
  CHECK(contains(error_of([&] { Session(runtime, library, "no model", 1); }), "protobuf"));

  const Session session(runtime, library, onnx::model(fixed_head()), 1);
  CHECK(contains(error_of([&] { session.run(features(1, 1), kFeatures / 2, kClasses); }), "X"));
  CHECK(close(session.run(features(3, 2), kFeatures, kClasses), oracle(features(3, 2))));
}

void test_concurrency(const Runtime& runtime, const char* library) {
  constexpr int kThreads = 4;
  const std::string model = onnx::model(fixed_head());
  const Session shared(runtime, library, model, 2);
  bool ok[kThreads] = {};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      ok[t] = true;
      for (unsigned i = 0; i < 20; ++i) {
        const Session own(runtime, library, model, 1);
        const Values x = features(300, 100 * t + i);
        const std::vector<double> z = oracle(x);
        for (const Session* session : {&own, &shared})
          ok[t] = ok[t] && close(session->run(x, kFeatures, kClasses), z);
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const bool thread_ok : ok) CHECK(thread_ok);
}

int64_t resident_bytes() {
  int64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * sysconf(_SC_PAGE_SIZE);
}

// Each cycle loads the library, runs it on a thread of its own, whose scratch dies with it, and
// unloads it.
void test_load_and_unload(const Runtime& runtime, const char* library) {
  const std::string good = onnx::model(fixed_head());
  const std::string bad = onnx::model(with_attribute(fixed_head(), "checksum", 1));
  const auto cycle = [&] {
    std::thread([&] {
      const Session session(runtime, library, good, 1);
      session.run(features(1, 1), kFeatures, kClasses);
    }).join();
    error_of([&] { Session(runtime, library, bad, 1); });
  };
  const int cycles = kSanitized ? 50 : 1000;
  for (int i = 0; i < cycles / 5; ++i) cycle();
  malloc_trim(0);
  const int64_t before = resident_bytes();
  for (int i = 0; i < cycles; ++i) cycle();
  malloc_trim(0);
  const int64_t grown = resident_bytes() - before;
  std::printf("%d load/unload cycles: %+lld kB\n", cycles, static_cast<long long>(grown / 1024));
  CHECK(kSanitized || grown < 500 * cycles);  // the sanitizer finds leaks itself
  CHECK(dlopen(library, RTLD_NOW | RTLD_NOLOAD) == nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::printf("usage: %s <libonnxruntime> <libfixclf_onnxruntime>\n", argv[0]);
    return 2;
  }
  const Runtime runtime(argv[1]);
  const char* library = argv[2];
  test_load_and_unload(runtime, library);
  test_crc32();
  test_the_first_format_version(runtime, library);
  test_a_good_model(runtime, library);
  test_bad_models(runtime, library);
  test_concurrency(runtime, library);
  std::printf("%d passed, %d failed\n", check::counts().passed, check::counts().failed);
  return check::counts().failed == 0 ? 0 : 1;
}
