// A small pool of threads for hosts that bring none (NumPy, plain C++).
#pragma once

#include "core/parallel.h"

namespace fixclf::cpu {

constexpr int kMaxThreads = 256;

// Threads that a call may use, the calling one included; 0 stands for the number of cores,
// and more than kMaxThreads for that many.
void set_num_threads(int threads);
int num_threads();

// Concurrent callers take turns: the second one runs its work on its own thread alone.
Parallel thread_pool();

}  // namespace fixclf::cpu
