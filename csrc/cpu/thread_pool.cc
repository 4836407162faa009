#include "cpu/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
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

// Never destroyed: at exit a call may still run, and its threads may be gone already.
struct Shared {
  std::mutex turn;  // held while a call uses the pool
  Pool* pool = nullptr;
};
std::atomic<Shared*> shared{nullptr};
std::atomic<int> wanted{0};

// A forked child has none of the threads, and its copy of the mutex may be locked for ever: what it
// inherited is left where it is.
void forget() { shared = nullptr; }
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, forget);

Shared& get() {
  Shared* found = shared;
  if (found != nullptr) return *found;
  auto* made = new Shared;
  if (shared.compare_exchange_strong(found, made)) return *made;
  delete made;  // another thread was first
  return *found;
}

void run(void* /*state*/, int64_t count, int64_t grain, Parallel::Body body, void* body_state) {
  Shared& own = get();
  const std::unique_lock lock(own.turn, std::try_to_lock);
  const int threads = lock.owns_lock() ? num_threads() : 1;
  const int64_t parts = std::min<int64_t>(threads, count / std::max<int64_t>(grain, 1));
  if (parts <= 1) return body(body_state, 0, count);
  if (own.pool == nullptr || own.pool->wanted() != threads) {
    delete own.pool;
    own.pool = new Pool(threads);
  }
  own.pool->run(count, parts, body, body_state);
}

}  // namespace

void set_num_threads(int threads) { wanted = std::clamp(threads, 0, kMaxThreads); }

int num_threads() {
  const int threads = wanted;
  return threads > 0 ? threads : cores();
}

Parallel thread_pool() { return {run, nullptr}; }

}  // namespace fixclf::cpu
