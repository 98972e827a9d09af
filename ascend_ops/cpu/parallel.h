// One pool of threads for all kernels. Work is cut into contiguous ranges, so results depend on the number of threads, never on timing.
#pragma once

#include <cstdint>

namespace ascend_ops {

constexpr int64_t kGrain = 1 << 14;  // elements of a simple kernel that are worth a thread

// Threads that a kernel may use: ASCEND_OPS_NUM_THREADS, else the processors that this process may run on.
int num_threads();

namespace detail {
void run_tasks(int64_t count, void (*task)(void *, int64_t), void *context);
}

// f(i) for i in [0, count), each once, in any order and on any thread; for tasks of unequal length.
template <typename F>
void parallel_tasks(int64_t count, const F &f) {
  detail::run_tasks(count, [](void *context, int64_t i) { (*static_cast<const F *>(context))(i); }, const_cast<F *>(&f));
}

// Number of ranges that parallel_ranges makes of n items, none shorter than grain (but the last); partial sums need one slot each.
inline int64_t num_ranges(int64_t n, int64_t grain) {
  const int64_t most = (n + grain - 1) / grain;
  return most < num_threads() ? (most > 0 ? most : 1) : num_threads();
}

// f(range, begin, end) for num_ranges(n, grain) contiguous ranges that cover [0, n).
template <typename F>
void parallel_ranges(int64_t n, int64_t grain, const F &f) {
  const int64_t count = num_ranges(n, grain);
  if (count == 1) return f(int64_t{0}, int64_t{0}, n);
  parallel_tasks(count, [&](int64_t i) { f(i, n * i / count, n * (i + 1) / count); });
}

}  // namespace ascend_ops
