#include "cpu/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fixclf::cpu {
namespace {

class Pool {
 public:
  // Makes do with fewer threads where the system gives no more.
  explicit Pool(int threads) : wanted_(threads) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::exception&) {
    }
  }
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int wanted() const { return wanted_; }

  // Range i of `parts` equal ones goes to thread i: no queue, and the same split every time.
  void run(int64_t count, int64_t parts, Parallel::Body body, void* body_state) {
    parts = std::min<int64_t>(parts, static_cast<int64_t>(workers_.size()) + 1);
    {
      const std::lock_guard lock(mutex_);
      count_ = count;
      parts_ = parts;
      body_ = body;
      body_state_ = body_state;
      pending_ = static_cast<int>(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    run_part(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void run_part(int64_t i) const {
    if (i >= parts_) return;
    const int64_t begin = count_ * i / parts_, end = count_ * (i + 1) / parts_;
    if (begin < end) body_(body_state_, begin, end);
  }

  void work(int i) {
    uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
        if (stop_) return;
        seen = generation_;
      }
      run_part(i);
      const std::lock_guard lock(mutex_);
      if (--pending_ == 0) done_.notify_one();
    }
  }

  const int wanted_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  bool stop_ = false;
  uint64_t generation_ = 0;
  int pending_ = 0;
  int64_t count_ = 0, parts_ = 0;
  Parallel::Body body_ = nullptr;
  void* body_state_ = nullptr;
};

int cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

// Held while a call uses the pool or its size changes.
std::mutex& turn() {
  static auto* mutex = new std::mutex;
  return *mutex;
}
// Never destroyed: at exit its threads may be gone already. After a fork they are, hence the pid.
Pool* pool = nullptr;
pid_t pool_process = 0;
int wanted = 0;

void run(void* /*state*/, int64_t count, int64_t grain, Parallel::Body body, void* body_state) {
  const std::unique_lock lock(turn(), std::try_to_lock);
  const int threads = lock.owns_lock() ? (wanted > 0 ? wanted : cores()) : 1;
  const int64_t parts = std::min<int64_t>(threads, count / std::max<int64_t>(grain, 1));
  if (parts <= 1) return body(body_state, 0, count);
  if (pool_process != getpid()) {
    pool = nullptr;
    pool_process = getpid();
  }
  if (pool == nullptr || pool->wanted() != threads) {
    delete pool;
    pool = new Pool(threads);
  }
  pool->run(count, parts, body, body_state);
}

}  // namespace

void set_num_threads(int threads) {
  const std::lock_guard lock(turn());
  wanted = std::clamp(threads, 0, kMaxThreads);
}

int num_threads() {
  const std::lock_guard lock(turn());
  return wanted > 0 ? wanted : cores();
}

Parallel thread_pool() { return {run, nullptr}; }

}  // namespace fixclf::cpu
