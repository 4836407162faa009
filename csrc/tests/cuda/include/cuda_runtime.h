// As much of CUDA as csrc/cuda uses, on the host, so that its kernels can be compiled and run
// without a device and without nvcc. Each thread of a CTA is a fiber; between barriers the fibers
// run one after the other in an order drawn from a seed, so that a missing barrier shows as a
// wrong result in some of the runs. Shared memory is a heap block of exactly the bytes asked for,
// full of NaN: AddressSanitizer finds what lies outside of it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)

struct uint4 {
  uint32_t x, y, z, w;
};
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

// The fibers of one CTA.
class Cta {
 public:
  static constexpr int kWarp = 32;

  uint3 block_index{}, thread_index{};
  dim3 block_size, grid_size;
  std::unique_ptr<char[]> shared;

  Cta(dim3 grid, dim3 block, size_t shared_bytes, unsigned seed)
      : block_size(block), grid_size(grid), shared(new char[shared_bytes]), random_(seed) {
    std::memset(shared.get(), 0xff, shared_bytes);
    fibers_.resize(block.x);
  }

  void run(const std::function<void()>& body) {
    body_ = &body;
    for (size_t i = 0; i < fibers_.size(); ++i) start(static_cast<int>(i));
    std::vector<int> order(fibers_.size());
    std::iota(order.begin(), order.end(), 0);
    for (size_t left = fibers_.size(); left > 0;) {
      std::shuffle(order.begin(), order.end(), random_);
      bool progress = false;
      for (const int i : order) {
        if (fibers_[i].state != State::kReady) continue;
        progress = true;
        resume(i);
        if (fibers_[i].state == State::kDone) --left;
      }
      if (!progress) fail("a barrier that not all threads reach");
    }
  }

  // All threads of the CTA (or of the warp) arrive before one leaves; the or of their values.
  bool arrive_cta(bool value) { return arrive(0, static_cast<int>(fibers_.size()), value, cta_); }
  bool arrive_warp(bool value) {
    const int first = current_ / kWarp * kWarp;
    if (first + kWarp > static_cast<int>(fibers_.size())) fail("a warp that is not whole");
    return arrive(first, kWarp, value, warps_[static_cast<size_t>(first / kWarp)]);
  }
  uint32_t exchange(uint32_t value, int offset) {
    uint32_t* slots = fibers_slots_.data();
    slots[current_] = value;
    arrive_warp(false);
    const uint32_t other = slots[current_ ^ offset];
    arrive_warp(false);
    return other;
  }

 private:
  enum class State { kReady, kWaiting, kDone };
  struct Fiber {
    ucontext_t context;
    State state = State::kReady;
    void* fake_stack = nullptr;
  };
  struct Barrier {
    int arrived = 0;
    bool any = false, result = false;
  };
  static constexpr size_t kStack = 256 << 10;

  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what);
    std::abort();
  }

  static std::vector<std::unique_ptr<char[]>>& stacks() {
    static std::vector<std::unique_ptr<char[]>> all;
    return all;
  }

  void start(int i) {
    if (warps_.empty()) {
      warps_.resize((fibers_.size() + kWarp - 1) / kWarp);
      fibers_slots_.resize(fibers_.size());
    }
    auto& all = stacks();
    while (all.size() <= static_cast<size_t>(i)) all.emplace_back(new char[kStack]);
    ucontext_t& context = fibers_[static_cast<size_t>(i)].context;
    getcontext(&context);
    context.uc_stack.ss_sp = all[static_cast<size_t>(i)].get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, &Cta::entry, 0);
  }

  static void entry();

  void resume(int i) {
    current_ = i;
    thread_index = {static_cast<unsigned>(i), 0, 0};
    Fiber& fiber = fibers_[static_cast<size_t>(i)];
#if defined(__SANITIZE_ADDRESS__)
    void* mine = nullptr;
    __sanitizer_start_switch_fiber(&mine, fiber.context.uc_stack.ss_sp, kStack);
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(mine, nullptr, nullptr);
#endif
  }

  void leave() {
    Fiber& fiber = fibers_[static_cast<size_t>(current_)];
    const int me = current_;
#if defined(__SANITIZE_ADDRESS__)
    const bool done = fiber.state == State::kDone;
    __sanitizer_start_switch_fiber(done ? nullptr : &fiber.fake_stack, host_stack_, host_bytes_);
#endif
    swapcontext(&fiber.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &host_stack_, &host_bytes_);
#endif
    current_ = me;
    thread_index = {static_cast<unsigned>(me), 0, 0};
  }

  bool arrive(int first, int count, bool value, Barrier& barrier) {
    barrier.any = barrier.any || value;
    if (++barrier.arrived == count) {
      barrier.result = barrier.any;
      barrier.any = false;
      barrier.arrived = 0;
      for (int i = first; i < first + count; ++i)
        if (fibers_[static_cast<size_t>(i)].state == State::kWaiting)
          fibers_[static_cast<size_t>(i)].state = State::kReady;
      // The last to arrive waits too: otherwise it would always be the first to leave.
      leave();
    } else {
      fibers_[static_cast<size_t>(current_)].state = State::kWaiting;
      leave();
    }
    return barrier.result;
  }

  std::vector<Fiber> fibers_;
  std::vector<Barrier> warps_;
  std::vector<uint32_t> fibers_slots_;
  Barrier cta_;
  ucontext_t scheduler_{};
  const std::function<void()>* body_ = nullptr;
  std::mt19937 random_;
  int current_ = 0;
  const void* host_stack_ = nullptr;
  size_t host_bytes_ = 0;
};

inline Cta*& cta() {
  static Cta* current = nullptr;
  return current;
}

inline void Cta::entry() {
  Cta* self = cta();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->host_stack_, &self->host_bytes_);
#endif
  (*self->body_)();
  self->fibers_[static_cast<size_t>(self->current_)].state = State::kDone;
  self->leave();
}

inline char* shared_memory() { return cta()->shared.get(); }

// Of the launches to come; the order of threads and CTAs follows from it.
inline unsigned& seed() {
  static unsigned value = 1;
  return value;
}

}  // namespace emulation

#define threadIdx (emulation::cta()->thread_index)
#define blockIdx (emulation::cta()->block_index)
#define blockDim (emulation::cta()->block_size)
#define gridDim (emulation::cta()->grid_size)

inline void __syncthreads() { emulation::cta()->arrive_cta(false); }
inline int __syncthreads_or(int value) { return emulation::cta()->arrive_cta(value != 0); }
inline void __syncwarp() { emulation::cta()->arrive_warp(false); }
inline int __any_sync(unsigned, int value) { return emulation::cta()->arrive_warp(value != 0); }
inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int offset) {
  return emulation::cta()->exchange(value, offset);
}
inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}

template <class To, class From>
To emulated_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(uint32_t bits) { return emulated_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return emulated_cast<uint32_t>(value); }
inline double __longlong_as_double(long long bits) { return emulated_cast<double>(bits); }
inline long long __double_as_longlong(double value) { return emulated_cast<long long>(value); }
inline float __expf(float x) { return std::exp(x); }
using std::exp;
using std::fma;
using std::fmax;
using std::fmin;
using std::log;
using std::sqrt;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// As on sm_90.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 227 << 10;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
template <class Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || block.x == 0 || block.x > 1024)
    return cudaErrorInvalidValue;
  std::mt19937 random(emulation::seed()++);
  std::vector<unsigned> order(size_t{grid.x} * grid.y);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned i : order) {
    emulation::Cta cta(grid, block, shared_bytes, random());
    cta.block_index = {i % grid.x, i / grid.x, 0};
    emulation::cta() = &cta;
    cta.run([&] { kernel(*static_cast<Arguments*>(arguments[0])); });
  }
  emulation::cta() = nullptr;
  return cudaSuccess;
}
