// index ~ softmax(z), by Gumbel-max: argmax z_i - log E_i with E_i exponentially distributed
// (Gumbel 1954; Maddison et al. 2014, "A* sampling"). One pass, no sum. E_i = -log(1 - U_i), where
// U_i is a hash of the row's seed and i: a row's sample depends on its features and its seed alone.
// Cost: one hash of 6 multiplications, two logarithms and a division a class.
#pragma once

#include "cpu/logits-inl.h"

namespace fixclf {
namespace {

template <class V>
struct SampleEpilogue : EpilogueDefaults {
  using F = typename V::F;
  using S = typename V::S;
  using U = typename V::U;

  static constexpr bool kTakesNaN = true;

  Best<V> best;
  int64_t* index;
  uint32_t key[2];

  bool start(const HeadProblem& p, int64_t row, void* /*scratch*/) {
    index = p.indices + row;
    // splitmix64 (Steele, Lea and Flood 2014): neighbouring seeds get unrelated keys.
    uint64_t x = static_cast<uint64_t>(p.ids[row]) + 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    x ^= x >> 31;
    key[0] = static_cast<uint32_t>(x);
    key[1] = static_cast<uint32_t>(x >> 32);
    return true;
  }

  // triple32, a bijection of 32 bits (Wellons 2018, "hash-prospector").
  static FIXCLF_INLINE U mixed(U x) {
    x ^= x >> 17;
    x *= 0xed5ad4bb;
    x ^= x >> 11;
    x *= 0xac4c1b51;
    x ^= x >> 15;
    x *= 0x31848bab;
    return x ^ x >> 14;
  }

  // -log E for the W classes from `first` on.
  FIXCLF_INLINE F gumbel(int64_t first) const {
    const U ids = V::lane_numbers() + static_cast<uint32_t>(first);
    const U hash = mixed(mixed(ids ^ key[0]) + key[1]);
    // 31 bits and a half: never 0, and dense near 0, where the largest values come from.
    const F u = (__builtin_convertvector(reinterpret_cast<S>(hash >> 1), F) +
                 static_cast<typename V::Real>(0.5)) *
                static_cast<typename V::Real>(0x1p-31);
    // -log(1 - u) without cancellation: the rounding of 1 - u is divided out (Kahan).
    const F rest = V::min(1 - u, V::set(static_cast<typename V::Real>(1 - 0x1p-24)));
    const F exponential = log<V>(rest) * u / (rest - 1);
    return -log<V>(V::max(V::set(static_cast<typename V::Real>(0x1p-34)), exponential));
  }

  template <class Logits>
  FIXCLF_INLINE void segment(int /*pass*/, const Logits& z) {
    best.add(z, [&](int64_t i, F value)
                    __attribute__((always_inline)) { return value + gumbel(z.first_class + i); });
  }
  void merge(const SampleEpilogue& later) { best.merge(later.best); }
  void take_nan(int64_t id) { best.take_nan(id); }
  void finish() { *index = best.id; }
  void invalid(typename V::Real /*nan*/) { *index = 0; }
};

}  // namespace
}  // namespace fixclf
