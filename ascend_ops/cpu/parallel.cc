#include "parallel.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <system_error>
#include <thread>

#include "kernel.h"

namespace ascend_ops {
namespace {

// Processors' worth of time that a container (cgroup version 2) may use.
int quota() {
  double allowed = 0, period = 0;
  std::ifstream file("/sys/fs/cgroup/cpu.max");  // "200000 100000", or "max 100000" for no limit
  if (!(file >> allowed >> period) || period <= 0) return INT_MAX;
  return std::max(1, static_cast<int>(allowed / period + 0.5));
}

int count_threads() {
  // Not OMP_NUM_THREADS: MindSpore sets that to 1 for the whole process.
  if (const char *text = std::getenv("ASCEND_OPS_NUM_THREADS")) {
    const int n = std::atoi(text);
    if (n > 0) return n;
  }
  cpu_set_t set;
  const bool known = sched_getaffinity(getpid(), sizeof(set), &set) == 0;
  const int processors = known ? CPU_COUNT(&set) : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return std::min(processors, quota());
}

thread_local bool inside = false;  // a task of the pool: what it starts runs on its own thread

// Workers sleep between jobs, after a spin of a few microseconds that spares back-to-back kernels the wake-up.
class Pool {
 public:
  explicit Pool(int workers) : pid_(getpid()) {
    try {
      for (int i = 0; i < workers; ++i) std::thread([this] { work(); }).detach();
    } catch (const std::system_error &) {  // a limit on threads: those that started do, or none
    }
  }
  pid_t pid() const { return pid_; }

  void run(int64_t count, void (*task)(void *, int64_t), void *context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      // A worker that woke too late for the last job may still be looking for a task of it.
      while (active_.load(std::memory_order_acquire) > 0) pause();
      task_ = task, context_ = context, count_ = count;
      next_.store(0), finished_.store(0), error_ = nullptr;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_tasks(task, context, count);
    for (int64_t spins = 0; finished_.load(std::memory_order_acquire) < count; ++spins) {
      if (spins < kSpins) pause();
      else sched_yield();  // more threads than processors
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  void take_tasks(void (*task)(void *, int64_t), void *context, int64_t count) {
    for (int64_t i; (i = next_.fetch_add(1)) < count;) {
      try {
        task(context, i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  void work() {
    const FlushDenormals scope;
    uint64_t seen = 0;
    inside = true;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) pause();
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      active_.fetch_add(1);
      auto task = task_;
      auto context = context_;
      auto count = count_;
      lock.unlock();
      take_tasks(task, context, count);
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

  static constexpr int kSpins = 2000;
  const pid_t pid_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0}, finished_{0};
  std::atomic<int> active_{0};
  void (*task_)(void *, int64_t) = nullptr;
  void *context_ = nullptr;
  int64_t count_ = 0;
  std::exception_ptr error_;  // the first of a job's tasks
};

std::mutex pool_mutex;  // held by the one kernel that uses the pool
Pool *pool = nullptr;   // never freed: its threads live as long as the process

}  // namespace

int num_threads() {
  static const int n = count_threads();
  return n;
}

void detail::run_tasks(int64_t count, void (*task)(void *, int64_t), void *context) {
  std::unique_lock<std::mutex> lock(pool_mutex, std::defer_lock);
  // Nested, alone, or beside another kernel that has the pool: on this thread.
  if (count <= 1 || num_threads() == 1 || inside || !lock.try_lock()) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  if (pool == nullptr || pool->pid() != getpid()) pool = new Pool(num_threads() - 1);  // threads do not survive a fork
  struct Inside {
    Inside() { inside = true; }
    ~Inside() { inside = false; }
  } scope;
  pool->run(count, task, context);
}

}  // namespace ascend_ops
