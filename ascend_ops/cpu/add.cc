// y = a + b. MindSpore's own Add takes twenty times as long in bfloat16.
#include <algorithm>

#include "kernel.h"
#include "parallel.h"
#include "row.h"

namespace ascend_ops {
namespace {

void add(const Call &call) {
  enum { A, B, Y };
  const int64_t size = call[A].size();
  require(call[B].size() == size, "a and b must have the same shape");
  with_type(call[A], [&](auto t) {
    using T = decltype(t);
    const T *a = call[A].as<T>(), *b = call[B].as<T>();
    T *y = call[Y].as<T>();
    parallel_ranges((size + kLanes - 1) / kLanes, kGrain / kLanes, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin * kLanes; i < std::min(end * kLanes, size); i += kLanes) {
        const int64_t valid = std::min<int64_t>(kLanes, size - i);
        store_upto(y + i, load_upto(a + i, valid) + load_upto(b + i, valid), valid);
      }
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(Add, ascend_ops::add)
