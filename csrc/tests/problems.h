// Random problems, their float64 oracle, and tests of them that any backend passes: `run` takes a
// problem of core/problem.h, computes it on buffers of exactly the size that it may touch, and
// returns a Status.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "core/problem.h"
#include "tests/check.h"

namespace {

using namespace fixclf;
using Rows = std::vector<std::vector<double>>;

std::mt19937 random_engine(20260117);
int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_engine);
}
bool coin() { return pick(0, 1) == 1; }
double normal() { return std::normal_distribution<double>()(random_engine); }

// Values of any dtype, on a heap block of their exact size.
class Buffer {
 public:
  Buffer(DType dtype, int64_t count)
      : dtype_(dtype),
        count_(count),
        bytes_(new char[static_cast<size_t>(count * size_of(dtype))]) {
    std::memset(bytes_.get(), 0xff, static_cast<size_t>(count * size_of(dtype)));  // NaN
  }
  void* data() { return bytes_.get(); }
  DType dtype() const { return dtype_; }
  int64_t count() const { return count_; }

  // Returns what was stored: value rounded (towards zero, for the 16-bit dtypes) to the dtype.
  double set(int64_t i, double value) {
    const auto f = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    switch (dtype_) {
      case DType::kFloat64:
        std::memcpy(bytes_.get() + 8 * i, &value, 8);
        break;
      case DType::kFloat32:
        std::memcpy(bytes_.get() + 4 * i, &f, 4);
        break;
      case DType::kBFloat16: {
        const auto half = static_cast<uint16_t>(bits >> 16);
        std::memcpy(bytes_.get() + 2 * i, &half, 2);
        break;
      }
      case DType::kInt8: {
        const auto byte = static_cast<int8_t>(std::lround(std::clamp(40 * value, -128.0, 127.0)));
        std::memcpy(bytes_.get() + i, &byte, 1);
        break;
      }
      case DType::kSigns:
        bytes_[i] = static_cast<char>(pick(0, 255));
        break;
      case DType::kFloat16: {
        // Normal numbers only: |value| in [2^-14, 65504], or 0.
        const uint32_t sign = bits >> 16 & 0x8000;
        const bool tiny = std::abs(f) < 0x1p-14f;
        const auto half =
            static_cast<uint16_t>(sign | (tiny ? 0 : ((bits & 0x7fffffff) - 0x38000000) >> 13));
        std::memcpy(bytes_.get() + 2 * i, &half, 2);
        break;
      }
    }
    return get(i);
  }

  double get(int64_t i) const {
    if (dtype_ == DType::kFloat64) {
      double value;
      std::memcpy(&value, bytes_.get() + 8 * i, 8);
      return value;
    }
    if (dtype_ == DType::kFloat32) {
      float value;
      std::memcpy(&value, bytes_.get() + 4 * i, 4);
      return value;
    }
    if (!is_floating(dtype_)) return static_cast<int8_t>(bytes_[i]);
    uint16_t half;
    std::memcpy(&half, bytes_.get() + 2 * i, 2);
    if (dtype_ == DType::kBFloat16) {
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    const int exponent = half >> 10 & 31;
    const int mantissa = half & 1023;
    const double sign = half >> 15 ? -1 : 1;
    if (exponent == 31) return mantissa ? std::nan("") : sign * HUGE_VAL;
    return sign *
           (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
  }

 private:
  DType dtype_;
  int64_t count_;
  std::unique_ptr<char[]> bytes_;
};

// Half a unit in the last place of the output dtype, relative; the 16-bit subnormals, absolute.
double rounding(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-52;
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat16:
      return 0x1p-10;
    default:
      return 0;
  }
}

int sign_of(const std::vector<uint8_t>& bits, int64_t stride, int64_t row, int64_t column) {
  return bits[static_cast<size_t>(row * stride + column / 8)] >> column % 8 & 1 ? -1 : 1;
}

// A random codebook and its bits.
struct Case {
  Codebook cb{};
  std::vector<uint8_t> base, signs;

  explicit Case(int64_t max_classes = 1 << 20) {
    const int64_t orders[] = {1, 1, 1, 1, 2, 4, 12, 20, 28, 36, 68, 100};
    cb.base_order = orders[pick(0, 11)];
    cb.log2 = pick(0, cb.base_order == 1 ? 8 : 4);
    const int64_t n = cb.order();
    const int64_t choices[] = {0, 0, 1, 2, 5};
    const int64_t blocks = choices[pick(0, 4)];
    cb.blocks = blocks == 0 ? 1 : blocks;
    cb.negate = coin();
    if (cb.base_order > 1) fill(base, cb.base_order * cb.base_stride());
    if (blocks > 0) fill(signs, blocks * cb.sign_stride());
    cb.base = base.empty() ? nullptr : base.data();
    cb.signs = signs.empty() ? nullptr : signs.data();
    cb.column_offset = n > 1 ? pick(0, 1) : 0;
    cb.features = pick(1, n - cb.column_offset);
    const int64_t rows = cb.blocks * cb.rows_per_block();
    cb.row_offset = pick(0, rows > 2 ? 2 : 0);
    cb.classes = pick(1, std::min(rows - cb.row_offset, max_classes));
    cb.center = blocks == 0 && !cb.negate && cb.classes > 1 && pick(0, 3) == 0;
    cb.class_begin = coin() ? 0 : pick(0, cb.classes - 1);
    cb.class_end = coin() ? cb.classes : pick(cb.class_begin + 1, cb.classes);
  }

  int64_t shard() const { return cb.computed(); }

  Status validate() const { return fixclf::validate(cb, base_shape(), signs_shape()); }

  double entry(int64_t cls, int64_t feature) const {
    const int64_t row = cls + cb.row_offset, n = cb.order();
    const int64_t block = row / cb.rows_per_block(), within = row % cb.rows_per_block();
    const int64_t i = within % n, j = feature + cb.column_offset, size = int64_t{1} << cb.log2;
    int sign = within >= n ? -1 : 1;
    if (__builtin_parityll(i % size & j % size)) sign = -sign;
    if (cb.base) sign *= sign_of(base, cb.base_stride(), i / size, j / size);
    if (cb.signs) sign *= sign_of(signs, cb.sign_stride(), block, j);
    return sign;
  }

  BitShape base_shape() const {
    return base.empty() ? BitShape{} : BitShape{cb.base_order, cb.base_stride()};
  }
  BitShape signs_shape() const {
    return signs.empty() ? BitShape{} : BitShape{cb.blocks, cb.sign_stride()};
  }

  // Rows of the shard, centred if the codebook is.
  Rows matrix() const {
    Rows w(static_cast<size_t>(cb.classes), std::vector<double>(static_cast<size_t>(cb.features)));
    for (int64_t i = 0; i < cb.classes; ++i)
      for (int64_t j = 0; j < cb.features; ++j) w[i][j] = entry(i, j);
    if (cb.center) {
      const double stretch = std::sqrt(cb.classes / (cb.classes - 1.0));
      for (int64_t j = 0; j < cb.features; ++j) {
        double mean = 0;
        for (const auto& row : w) mean += row[j] / static_cast<double>(cb.classes);
        for (auto& row : w) row[j] = stretch * (row[j] - mean);
      }
    }
    return {w.begin() + cb.class_begin, w.begin() + cb.class_end};
  }

 private:
  static void fill(std::vector<uint8_t>& bits, int64_t bytes) {
    bits.resize(static_cast<size_t>(bytes));
    for (auto& byte : bits) byte = static_cast<uint8_t>(pick(0, 255));
  }
};

std::vector<double> oracle(const Rows& w, const std::vector<double>& x, double alpha,
                           const std::vector<double>& bias, bool normalize, Epilogue epilogue) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double divisor =
      normalize ? std::max(std::sqrt(squares), 1e-12) * std::sqrt(static_cast<double>(x.size()))
                : 1;
  std::vector<double> z(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    double dot = 0;
    for (size_t j = 0; j < x.size(); ++j) dot += w[i][j] * x[j];
    z[i] = alpha * dot / divisor + (bias.empty() ? 0 : bias[i]);
  }
  double top = -HUGE_VAL, sum = 0;
  for (double v : z) top = std::max(top, v);
  for (double v : z) sum += std::exp(v - top);
  const double lse = top + std::log(sum);
  for (double& v : z) {
    if (epilogue == Epilogue::kSoftmax) v = std::exp(v - lse);
    if (epilogue == Epilogue::kLogSoftmax) v -= lse;
    if (epilogue == Epilogue::kSigmoid) v = 1 / (1 + std::exp(-v));
  }
  return z;
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                             DType::kFloat64, DType::kInt8,     DType::kSigns};

// Random rows of features, as stored and as numbers.
struct Features {
  DType dtype;
  int64_t rows, columns, stride;
  Buffer stored;
  Rows values;

  Features(DType type, int64_t rows_, int64_t features, double size)
      : dtype(type),
        rows(rows_),
        columns(type == DType::kSigns ? (features + 7) / 8 : features),
        stride(columns + pick(0, 3)),
        stored(type, rows == 0 ? 0 : (rows - 1) * stride + columns),
        values(static_cast<size_t>(rows)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < columns; ++j) {
        const double value = stored.set(r * stride + j, size * normal());
        if (type != DType::kSigns) values[r].push_back(value);
      }
      for (int64_t j = 0; type == DType::kSigns && j < features; ++j) {
        const int byte = static_cast<int>(stored.get(r * stride + j / 8));
        values[r].push_back(byte >> j % 8 & 1 ? -1 : 1);
      }
    }
  }
  ConstMatrix matrix() { return {stored.data(), dtype, rows, columns, stride}; }

  // These rows `times` times, one after the other.
  Features repeated(int64_t times) {
    Features all(dtype, rows * times, static_cast<int64_t>(values[0].size()), 1);
    const int64_t bytes = size_of(dtype);
    for (int64_t r = 0; r < all.rows; ++r)
      std::memcpy(static_cast<char*>(all.stored.data()) + r * all.stride * bytes,
                  static_cast<char*>(stored.data()) + r % rows * stride * bytes,
                  static_cast<size_t>(columns * bytes));
    return all;
  }
};

template <class Run>
void test_head(const Run& run) {
  const Case c;
  CHECK(c.validate().ok());
  const Rows w = c.matrix();
  const DType dtype = kDTypes[pick(0, 5)];
  const DType exact = accumulation_dtype(dtype);
  const bool normalize = pick(0, 4) > 0, biased = coin();
  const double alpha = static_cast<float>(normalize ? 6 * normal() : 0.02 * normal());
  Features x(dtype, pick(0, 3), c.cb.features, normalize ? 1 : 1. / 16);
  Buffer bias(exact, c.shard());
  std::vector<double> biases;
  for (int64_t i = 0; biased && i < c.shard(); ++i) biases.push_back(bias.set(i, normal()));
  for (const Epilogue epilogue :
       {Epilogue::kLogits, Epilogue::kSoftmax, Epilogue::kLogSoftmax, Epilogue::kSigmoid}) {
    Buffer out(coin() && is_floating(dtype) ? dtype : exact, x.rows * c.shard());
    HeadProblem p{};
    p.codebook = c.cb;
    p.x = x.matrix();
    p.alpha = alpha;
    p.has_bias = biased;
    p.bias = biased ? bias.data() : nullptr;
    p.bias_length = c.shard();
    p.bias_dtype = exact;
    p.normalize = normalize;
    p.epilogue = epilogue;
    p.out = {out.data(), out.dtype(), x.rows, c.shard(), c.shard()};
    CHECK(run(p).ok());
    for (int64_t r = 0; r < x.rows; ++r) {
      const auto expected = oracle(w, x.values[r], alpha, biases, normalize, epilogue);
      for (int64_t i = 0; i < c.shard(); ++i) {
        const double got = out.get(r * c.shard() + i), want = expected[i];
        const double bound = 3e-5 + rounding(out.dtype()) * (std::abs(want) + 0x1p-14);
        if (!(std::abs(got - want) <= bound)) {
          std::printf("  epilogue %d, %s to %s, b=%ld k=%ld N=%ld C=%ld blocks=%ld: %g, not %g\n",
                      static_cast<int>(epilogue), name_of(dtype), name_of(out.dtype()),
                      static_cast<long>(c.cb.base_order), static_cast<long>(c.cb.log2),
                      static_cast<long>(c.cb.features), static_cast<long>(c.cb.classes),
                      static_cast<long>(c.cb.blocks), got, want);
          CHECK(!"the head differs from the oracle");
          return;
        }
      }
    }
  }
  CHECK(true);
}

// Every reduction of one problem, on buffers of their exact sizes.
struct Reductions {
  HeadProblem common{};
  Buffer values, topk_lse, log_probs, logits, log_prob_lse, losses, nll_lse;
  Buffer at_ids, others_lse, sum, squares, softplus;
  std::vector<int64_t> topk, argmax, sample, ids, targets, seeds;
  bool wanted[4];  // of the statistics: logsumexp, sum, squares, softplus

  Reductions(const HeadProblem& p, int64_t k, int64_t ids_per_row)
      : common(p),
        values(exact(), p.x.rows * k),
        topk_lse(exact(), p.x.rows),
        log_probs(exact(), p.x.rows * ids_per_row),
        logits(exact(), p.x.rows * ids_per_row),
        log_prob_lse(exact(), p.x.rows),
        losses(exact(), p.x.rows),
        nll_lse(exact(), p.x.rows),
        at_ids(exact(), p.x.rows * ids_per_row),
        others_lse(exact(), p.x.rows),
        sum(exact(), p.x.rows),
        squares(exact(), p.x.rows),
        softplus(exact(), p.x.rows),
        topk(static_cast<size_t>(p.x.rows * k)),
        argmax(static_cast<size_t>(p.x.rows)),
        sample(argmax.size()),
        ids(static_cast<size_t>(p.x.rows * ids_per_row)),
        targets(argmax.size()),
        seeds(argmax.size()) {
    const int64_t classes = p.codebook.computed();
    common.k = k;
    for (auto& id : ids) id = pick(0, classes - 1);
    for (auto& target : targets) target = pick(0, 9) == 0 ? -100 : pick(0, classes - 1);
    for (auto& seed : seeds) seed = pick(std::numeric_limits<int64_t>::min(), 0);
    common.ids_per_row = ids_per_row;
    common.ignore_index = -100;
    common.label_smoothing = coin() ? 0 : 0.1;
    for (bool& each : wanted) each = pick(0, 3) != 0;
  }
  DType exact() const { return accumulation_dtype(common.x.dtype); }

  template <class Run>
  bool run(Run&& head) {
    HeadProblem p = common;
    const int64_t rows = p.x.rows;
    p.epilogue = Epilogue::kTopK;
    p.out = {values.data(), exact(), rows, p.k, p.k};
    p.indices = topk.data();
    p.logsumexp = topk_lse.data();
    bool ok = head(p).ok();
    p.epilogue = Epilogue::kArgMax;
    p.indices = argmax.data();
    ok = head(p).ok() && ok;
    p.epilogue = Epilogue::kSample;
    p.indices = sample.data();
    p.ids = seeds.data();
    ok = head(p).ok() && ok;
    p.epilogue = Epilogue::kLogProb;
    p.ids = ids.data();
    p.out = {log_probs.data(), exact(), rows, p.ids_per_row, p.ids_per_row};
    p.logits = logits.data();
    p.logsumexp = log_prob_lse.data();
    ok = head(p).ok() && ok;
    p.epilogue = Epilogue::kStatistics;
    p.logits = at_ids.data();
    p.logsumexp = wanted[0] ? others_lse.data() : nullptr;
    p.sum = wanted[1] ? sum.data() : nullptr;
    p.squares = wanted[2] ? squares.data() : nullptr;
    p.softplus = wanted[3] ? softplus.data() : nullptr;
    ok = head(p).ok() && ok;
    if (p.allowed != nullptr) return ok;
    p.epilogue = Epilogue::kNll;
    p.ids = targets.data();
    p.ids_per_row = 1;
    p.out = {losses.data(), exact(), rows, 1, 1};
    p.logsumexp = nll_lse.data();
    return head(p).ok() && ok;
  }
};

bool takes_part(const HeadProblem& p, int64_t row, int64_t i) {
  if (p.allowed == nullptr) return true;
  return p.allowed[(p.allowed_rows == 1 ? 0 : row) * p.allowed_bytes + i / 8] >> i % 8 & 1;
}

bool near(double got, double want) {
  return got == want || std::abs(got - want) <= 3e-5 * (1 + std::abs(want));
}

// Row r of the statistics, against its logits.
void check_statistics(const Reductions& got, int64_t r, std::vector<double> z) {
  const int64_t each = got.common.ids_per_row;
  const auto* ids = got.ids.data() + r * each;
  for (int64_t m = 0; m < each; ++m) CHECK(near(got.at_ids.get(r * each + m), z[ids[m]]));
  for (int64_t m = 0; m < each; ++m) z[ids[m]] = -HUGE_VAL;  // which leaves it out below
  double top = -HUGE_VAL, exponentials = 0, sum = 0, size = 0, squares = 0, softplus = 0;
  for (double v : z) top = std::max(top, v);
  for (double v : z) {
    if (v == -HUGE_VAL) continue;
    exponentials += std::exp(v - top);
    sum += v;
    size += std::abs(v);
    squares += v * v;
    softplus += std::max(v, 0.) + std::log1p(std::exp(-std::abs(v)));
  }
  if (got.wanted[0]) CHECK(near(got.others_lse.get(r), top + std::log(exponentials)));
  if (got.wanted[1]) CHECK(std::abs(got.sum.get(r) - sum) <= 3e-6 * (1 + size));
  if (got.wanted[2]) CHECK(std::abs(got.squares.get(r) - squares) <= 3e-5 * (1 + squares));
  if (got.wanted[3]) CHECK(std::abs(got.softplus.get(r) - softplus) <= 3e-5 * softplus);
}

template <class Run>
void test_reductions(const Run& run) {
  const Case c;
  const Rows w = c.matrix();
  const DType dtype = kDTypes[pick(0, 5)], exact = accumulation_dtype(dtype);
  Features x(dtype, pick(0, 6), c.cb.features, 1);
  const double alpha = static_cast<float>(6 * normal());
  Buffer bias(exact, c.shard());
  std::vector<double> biases;
  for (int64_t i = 0; i < c.shard(); ++i) biases.push_back(bias.set(i, normal()));
  HeadProblem p{};
  p.codebook = c.cb;
  p.x = x.matrix();
  p.alpha = alpha;
  p.normalize = true;
  p.has_bias = coin();
  p.bias = p.has_bias ? bias.data() : nullptr;
  p.bias_length = c.shard();
  p.bias_dtype = exact;
  if (!p.has_bias) biases.clear();
  p.allowed_rows = coin() ? 1 : x.rows;
  p.allowed_bytes = (c.shard() + 7) / 8;
  std::vector<uint8_t> allowed(static_cast<size_t>(p.allowed_rows * p.allowed_bytes));
  if (coin()) {
    const int density = static_cast<int>(pick(0, 8));
    for (int64_t r = 0; r < p.allowed_rows; ++r) {
      for (int64_t i = 0; i < p.allowed_bytes; ++i)
        for (int bit = 0; bit < 8; ++bit)
          allowed[r * p.allowed_bytes + i] |= static_cast<uint8_t>((pick(0, 8) < density) << bit);
      const int64_t one = pick(0, c.shard() - 1);
      allowed[r * p.allowed_bytes + one / 8] |= static_cast<uint8_t>(1 << one % 8);
    }
    p.allowed = allowed.data();
  }
  Reductions got(p, pick(1, std::min<int64_t>(c.shard(), 40)), pick(1, 4));
  if (!CHECK(got.run(run))) return;
  const int64_t k = got.common.k;
  for (int64_t r = 0; r < x.rows; ++r) {
    auto z = oracle(w, x.values[r], alpha, biases, true, Epilogue::kLogits);
    double mean = 0;
    for (double v : z) mean += v / static_cast<double>(z.size());
    for (int64_t i = 0; i < c.shard(); ++i)
      if (!takes_part(p, r, i)) z[i] = -HUGE_VAL;
    double top = -HUGE_VAL, sum = 0;
    for (double v : z) top = std::max(top, v);
    for (double v : z) sum += std::exp(v - top);
    const double lse = top + std::log(sum);
    CHECK(near(got.topk_lse.get(r), lse) && near(got.log_prob_lse.get(r), lse));
    auto sorted = z;
    std::sort(sorted.begin(), sorted.end(), [](double a, double b) { return a > b; });
    std::vector<bool> seen(z.size());
    bool good = true;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t id = got.topk[r * k + i];
      if (!CHECK(id >= 0 && id < c.shard() && !seen[id])) return;
      seen[id] = true;
      good = good && near(got.values.get(r * k + i), sorted[i]) && near(z[id], sorted[i]);
    }
    CHECK(good);
    CHECK(got.argmax[r] == got.topk[r * k]);
    CHECK(takes_part(p, r, got.sample[r]));
    for (int64_t i = 0; i < got.common.ids_per_row; ++i) {
      const int64_t at = r * got.common.ids_per_row + i;
      CHECK(near(got.logits.get(at), z[got.ids[at]]));
      CHECK(near(got.log_probs.get(at), z[got.ids[at]] - lse));
    }
    check_statistics(got, r, z);
    if (p.allowed != nullptr) continue;
    const double eps = got.common.label_smoothing;
    const double loss = got.targets[r] < 0 ? 0 : lse - (1 - eps) * z[got.targets[r]] - eps * mean;
    CHECK(near(got.losses.get(r), loss));
  }
}

// The gradients of the reductions against those of the oracle.
template <class Run>
void test_reduction_backward(const Run& run, int64_t most_rows) {
  const Case c;
  const Rows w = c.matrix();
  const DType dtype = kDTypes[pick(0, 3)], exact = accumulation_dtype(dtype);
  const int64_t rows = pick(1, most_rows), n = c.cb.features, each = pick(0, 3);
  const bool masked = pick(0, 2) == 0, others = coin();
  const bool softmax = pick(0, 3) != 0, uniform = coin(), linear = coin(), sigmoid = coin();
  Features x(dtype, rows, n, 1);
  Buffer bias(exact, c.shard()), log_probs(exact, rows * each), logits(exact, rows * each);
  Buffer lse(exact, rows), softmax_grad(exact, rows), ids_grad(exact, rows * each);
  Buffer uniform_grad(exact, rows), linear_grad(exact, rows), sigmoid_grad(exact, rows);
  Buffer projected(exact, rows * n), bias_grad(exact, c.shard());
  std::vector<double> biases;
  for (int64_t i = 0; i < c.shard(); ++i) biases.push_back(bias.set(i, normal()));
  std::vector<int64_t> ids(static_cast<size_t>(rows * each));
  for (auto& id : ids) id = pick(0, c.shard() - 1);
  const int64_t allowed_bytes = (c.shard() + 7) / 8, allowed_rows = coin() ? 1 : rows;
  std::vector<uint8_t> allowed(static_cast<size_t>(allowed_rows * allowed_bytes));
  for (int64_t r = 0; r < allowed_rows; ++r) {
    for (int64_t i = 0; i < c.shard(); ++i)
      allowed[r * allowed_bytes + i / 8] |= static_cast<uint8_t>(coin() << i % 8);
    allowed[r * allowed_bytes] |= 1;
  }
  ReductionBackwardProblem p{};
  p.head.codebook = c.cb;
  p.head.x = x.matrix();
  p.head.alpha = 3;
  p.head.normalize = true;
  p.head.has_bias = true;
  p.head.bias = bias.data();
  p.head.bias_length = c.shard();
  p.head.bias_dtype = exact;
  if (masked) {
    p.head.allowed = allowed.data();
    p.head.allowed_rows = allowed_rows;
    p.head.allowed_bytes = allowed_bytes;
  }
  p.head.epilogue = others ? Epilogue::kStatistics : Epilogue::kLogProb;
  p.head.ids = ids.data();
  p.head.ids_per_row = each;
  p.head.out = {log_probs.data(), exact, rows, each, each};
  p.head.logits = logits.data();
  p.head.logsumexp = lse.data();
  if (!CHECK(run(p.head).ok())) return;
  for (int64_t r = 0; r < rows; ++r) {
    const bool counts = pick(0, 5) != 0;
    softmax_grad.set(r, counts && softmax ? normal() : 0);
    // Of means over the classes.
    const double mean = 1 / static_cast<double>(c.shard());
    uniform_grad.set(r, counts && uniform ? normal() * mean : 0);
    linear_grad.set(r, counts && linear ? normal() * mean : 0);
    sigmoid_grad.set(r, counts && sigmoid ? normal() * mean : 0);
    for (int64_t m = 0; m < each; ++m) ids_grad.set(r * each + m, counts ? normal() : 0);
    if (!counts) lse.set(r, -1e30);  // of a target without loss: exp(z - lse) overflows
  }
  // Ids beyond the classes, of a target without loss, do not count.
  if (each > 0 && !others) ids[0] = -100;
  p.softmax_grad = softmax ? softmax_grad.data() : nullptr;
  p.ids_grad = ids_grad.data();
  p.uniform_grad = uniform ? uniform_grad.data() : nullptr;
  p.linear_grad = linear ? linear_grad.data() : nullptr;
  p.sigmoid_grad = sigmoid ? sigmoid_grad.data() : nullptr;
  p.others = others;
  if (!softmax) p.head.logsumexp = nullptr;
  p.projected = {projected.data(), exact, rows, n, n};
  p.bias_grad = bias_grad.data();
  if (!CHECK(run(p).ok())) return;
  std::vector<double> db(w.size());
  double worst = 0;
  for (int64_t r = 0; r < rows; ++r) {
    auto dz = oracle(w, x.values[r], 3, biases, true, Epilogue::kLogits);
    std::vector<bool> counts(dz.size());
    double sum = 0;
    for (int64_t i = 0; i < c.shard(); ++i) {
      counts[i] = takes_part(p.head, r, i);
      for (int64_t m = 0; others && m < each; ++m)
        if (ids[r * each + m] == i) counts[i] = false;
      sum += counts[i] ? std::exp(dz[i]) : 0;
    }
    for (int64_t i = 0; i < c.shard(); ++i) {
      const double z = dz[i];
      dz[i] = !counts[i] ? 0
                         : softmax_grad.get(r) * std::exp(z) / sum + uniform_grad.get(r) +
                               linear_grad.get(r) * z + sigmoid_grad.get(r) / (1 + std::exp(-z));
      for (int64_t m = 0; m < each; ++m)
        if (ids[r * each + m] == i && takes_part(p.head, r, i)) dz[i] += ids_grad.get(r * each + m);
      db[i] += dz[i];
    }
    for (int64_t j = 0; j < n; ++j) {
      double want = 0;
      for (size_t i = 0; i < dz.size(); ++i) want += w[i][j] * dz[i];
      worst = std::max(worst, std::abs(projected.get(r * n + j) - want));
    }
  }
  CHECK(worst < 1e-4);
  for (size_t i = 0; i < db.size(); ++i)
    worst = std::max(worst, std::abs(bias_grad.get(static_cast<int64_t>(i)) - db[i]));
  CHECK(worst < 1e-4);
}

template <class Run>
void test_adjoint(const Run& run) {
  const Case c;
  const Rows w = c.matrix();
  const DType dtype = kDTypes[pick(0, 3)];
  const int64_t rows = pick(0, 3);
  Buffer g(dtype, rows * c.shard());
  Buffer out(accumulation_dtype(dtype), rows * c.cb.features);
  for (int64_t i = 0; i < g.count(); ++i) g.set(i, normal());
  const AdjointProblem p{c.cb,
                         {g.data(), dtype, rows, c.shard(), c.shard()},
                         {out.data(), out.dtype(), rows, c.cb.features, c.cb.features}};
  CHECK(run(p).ok());
  double worst = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < c.cb.features; ++j) {
      double want = 0, size = 0;
      for (int64_t i = 0; i < c.shard(); ++i) {
        want += w[i][j] * g.get(r * c.shard() + i);
        size += std::abs(g.get(r * c.shard() + i));
      }
      worst = std::max(worst, std::abs(out.get(r * c.cb.features + j) - want) / (size + 1));
    }
  }
  CHECK(worst < 2e-6);
}

template <class Run>
void test_transform(const Run& run) {
  const DType dtype = kDTypes[pick(0, 3)];
  // The largest order of every backend.
  const int k = static_cast<int>(pick(0, dtype == DType::kFloat64 ? 14 : 15));
  const int64_t n = int64_t{1} << k, rows = pick(0, 3), stride = n + pick(0, 2);
  const double scale = coin() ? 1 : 0.25;
  Buffer x(dtype, rows == 0 ? 0 : (rows - 1) * stride + n), y(dtype, rows * n);
  for (int64_t i = 0; i < x.count(); ++i) x.set(i, normal());
  CHECK(run(TransformProblem{
                {x.data(), dtype, rows, n, stride}, {y.data(), dtype, rows, n, n}, scale})
            .ok());
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> want(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) want[i] = scale * x.get(r * stride + i);
    for (int64_t h = 1; h < n; h *= 2)
      for (int64_t i = 0; i < n; ++i)
        if (!(i & h)) {
          const double u = want[i], v = want[i + h];
          want[i] = u + v;
          want[i + h] = u - v;
        }
    double worst = 0;
    for (int64_t i = 0; i < n; ++i)
      worst = std::max(
          worst, (std::abs(y.get(r * n + i) - want[i]) - rounding(dtype) * std::abs(want[i])) /
                     std::sqrt(static_cast<double>(n)));
    CHECK(worst < 1e-5);
  }
}

template <class Run>
void test_extreme_rows(const Run& run) {
  const int64_t n = 24;
  Codebook cb{};
  cb.features = n;
  cb.classes = cb.class_end = 32;
  cb.base_order = cb.blocks = 1;
  cb.log2 = 5;
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const float size : {1e30f, 1e-30f, 3e38f, 1e-44f, 0.f, inf, nan}) {
    std::vector<float> x(n), out(32), bias(32, 0.5f);
    for (int64_t j = 0; j < n; ++j) x[j] = j % 3 == 0 ? -size : size;
    HeadProblem p{};
    p.codebook = cb;
    p.x = {x.data(), DType::kFloat32, 1, n, n};
    p.alpha = 2;
    p.has_bias = true;
    p.bias = bias.data();
    p.bias_length = 32;
    p.bias_dtype = DType::kFloat32;
    p.normalize = true;
    p.out = {out.data(), DType::kFloat32, 1, 32, 32};
    CHECK(run(p).ok());
    // Class 0 sees the sum of the features, 8 of them negative.
    double want = 2 * 8 * (size / std::max(std::sqrt(24.0) * size, 1e-12)) / std::sqrt(24.0) + 0.5;
    if (size == 0) want = 0.5;
    if (std::isfinite(size)) {
      CHECK(std::abs(out[0] - want) < 1e-6);
      for (const float z : out) CHECK(std::isfinite(z));
    } else {
      for (const float z : out) CHECK(std::isnan(z));
    }
  }
}

// Features whose sums are beyond the range of float32, without normalisation: finite or infinite,
// never NaN, and right.
template <class Run>
void test_huge_rows(const Run& run) {
  const float big = 3e38f;
  for (const int64_t n : {4, 32, 64, 200}) {
    Codebook cb{};
    cb.features = n;
    cb.base_order = cb.blocks = 1;
    while (int64_t{1} << cb.log2 < n) ++cb.log2;
    cb.classes = cb.class_end = cb.order();
    cb.negate = true;
    std::vector<float> x(n), out(cb.classes);
    x[0] = x[1] = big;
    x[2] = x[3] = -big;
    for (const double alpha : {1.0, 0.25, 1e-30, 3e38}) {
      HeadProblem p{};
      p.codebook = cb;
      p.x = {x.data(), DType::kFloat32, 1, n, n};
      p.alpha = alpha;
      p.out = {out.data(), DType::kFloat32, 1, cb.classes, cb.classes};
      CHECK(run(p).ok());
      bool good = true;
      for (int64_t i = 0; i < cb.classes; ++i) {
        // Row i of H_4 in the first columns: only the third sees the signs of x.
        const double want = i % 4 == 2 ? static_cast<float>(alpha) * 4.0 * big : 0;
        const double got = out[i];
        good = good && (want > 3.4e38 ? got > 3.4e38 : std::abs(got - want) <= 1e-6 * want);
      }
      CHECK(good);
    }
  }
}

// The same in transforms, beside ordinary rows, whose bits don't change; and scales beyond the
// range.
template <class Run>
void test_huge_transforms(const Run& run) {
  for (const int64_t n : {2, 8, 32, 64, 1024}) {
    const int64_t rows = 3;
    std::vector<float> x(rows * n), y(rows * n, 0), alone(n);
    for (int64_t i = 0; i < n; ++i) {
      x[i] = static_cast<float>(normal());
      x[n + i] = i % 2 == 0 ? 3e38f : -3e38f;
      x[2 * n + i] = static_cast<float>(normal());
    }
    const double scale = 1 / static_cast<double>(n);
    const auto matrix = [&](float* data, int64_t count) {
      return Matrix{data, DType::kFloat32, count, n, n};
    };
    const auto input = [&](const float* data, int64_t count) {
      return ConstMatrix{data, DType::kFloat32, count, n, n};
    };
    CHECK(run(TransformProblem{input(x.data(), rows), matrix(y.data(), rows), scale}).ok());
    bool good = true;
    for (int64_t i = 0; i < n; ++i) good = good && y[n + i] == (i == 1 ? 3e38f : 0);
    for (int64_t row = 0; row < rows; ++row) {
      CHECK(run(TransformProblem{input(&x[row * n], 1), matrix(alone.data(), 1), scale}).ok());
      for (int64_t i = 0; i < n; ++i) good = good && alone[i] == y[row * n + i];
    }
    // In place, and in a batch that shares its barriers with the huge row.
    std::vector<float> same = x;
    CHECK(run(TransformProblem{input(same.data(), rows), matrix(same.data(), rows), scale}).ok());
    for (size_t i = 0; i < same.size(); ++i) good = good && same[i] == y[i];
    std::fill(x.begin(), x.end(), 0.f);
    x[0] = 1;
    x[1] = -1;
    x[n] = 1e-44f;
    CHECK(run(TransformProblem{input(x.data(), 2), matrix(y.data(), 2), 1e300}).ok());
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < n; ++i)
      good = good && y[i] == (i % 2 == 0 ? 0 : infinity) && y[n + i] == infinity;
    CHECK(run(TransformProblem{input(x.data(), 2), matrix(y.data(), 2), 1e-42}).ok());
    for (int64_t i = 1; i < n; i += 2) good = good && std::abs(y[i] - 2e-42) < 1e-44;
    CHECK(good);
  }
}

// NaN, infinities and huge numbers in the bias, as torch has them.
template <class Run>
void test_special_biases(const Run& run) {
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  for (const int64_t blocks : {1, 3}) {
    Codebook cb{};
    cb.features = 24;
    cb.base_order = 1;
    cb.log2 = 5;
    cb.blocks = blocks;
    std::vector<uint8_t> signs(static_cast<size_t>(4 * blocks));
    for (auto& byte : signs) byte = static_cast<uint8_t>(pick(0, 255));
    cb.signs = signs.data();
    const int64_t classes = cb.classes = cb.class_end = 32 * blocks - 1;
    std::vector<float> x(cb.features), bias(classes);
    for (auto& value : x) value = static_cast<float>(normal());
    HeadProblem p{};
    p.codebook = cb;
    p.x = {x.data(), DType::kFloat32, 1, cb.features, cb.features};
    p.alpha = 3;
    p.normalize = p.has_bias = true;
    p.bias = bias.data();
    p.bias_length = classes;
    p.bias_dtype = DType::kFloat32;

    std::vector<float> values(5), probabilities(classes);
    std::vector<int64_t> indices(5);
    float lse = 0;
    int64_t best = -1;
    const auto solve = [&](bool log_probabilities) {
      HeadProblem top = p, arg = p, map = p;
      top.epilogue = Epilogue::kTopK;
      top.k = 5;
      top.log_probabilities = log_probabilities;
      top.out = {values.data(), DType::kFloat32, 1, 5, 5};
      top.indices = indices.data();
      top.logsumexp = &lse;
      arg.epilogue = Epilogue::kArgMax;
      arg.indices = &best;
      map.epilogue = Epilogue::kLogSoftmax;
      map.out = {probabilities.data(), DType::kFloat32, 1, classes, classes};
      CHECK(run(top).ok() && run(arg).ok() && run(map).ok());
    };
    bias[classes - 1] = bias[7] = nan;
    bias[3] = infinity;
    solve(false);
    CHECK(best == 7 && indices[0] == 7 && indices[1] == classes - 1 && indices[2] == 3);
    CHECK(std::isnan(values[0]) && std::isnan(values[1]) && values[2] == infinity);
    CHECK(std::isfinite(values[3]) && std::isnan(lse) && std::isnan(probabilities[0]));
    bias[classes - 1] = bias[7] = 0;
    solve(false);
    CHECK(best == 3 && indices[0] == 3 && values[0] == infinity && lse == infinity);
    CHECK(std::isfinite(values[1]) && std::isnan(probabilities[0]));
    for (const float size : {1e30f, -3e38f}) {
      for (auto& value : bias) value = size;
      solve(true);
      const double want = -std::log(static_cast<double>(classes));
      CHECK(best == 0 && indices[4] == 4 && lse == size);
      CHECK(std::abs(values[0] - want) < 1e-5 && std::abs(probabilities[9] - want) < 1e-5);
      HeadProblem loss = p;
      const int64_t target = 5;
      float out = 0;
      loss.epilogue = Epilogue::kNll;
      loss.ids = &target;
      loss.ids_per_row = 1;
      loss.ignore_index = -100;
      loss.label_smoothing = 0.3;
      loss.out = {&out, DType::kFloat32, 1, 1, 1};
      loss.logsumexp = &lse;
      CHECK(run(loss).ok());
      CHECK(std::abs(out + want) < 1e-5);
    }
  }
}

}  // namespace
