// How a kernel asks its host for threads: torch passes torch's pool, ONNX Runtime its own, NumPy
// the small one in cpu/thread_pool.h. A null `run` means: this thread.
#pragma once

#include <cstdint>

namespace fixclf {

struct Parallel {
  using Body = void (*)(void* body_state, int64_t begin, int64_t end);

  // Calls body over disjoint ranges that cover [0, count), none smaller than grain except the last.
  void (*run)(void* state, int64_t count, int64_t grain, Body body, void* body_state) = nullptr;
  void* state = nullptr;

  template <class F>
  void operator()(int64_t count, int64_t grain, F&& f) const {
    if (run == nullptr || count <= grain) {
      f(int64_t{0}, count);
      return;
    }
    run(
        state, count, grain,
        [](void* body_state, int64_t begin, int64_t end) {
          (*static_cast<F*>(body_state))(begin, end);
        },
        &f);
  }
};

}  // namespace fixclf
