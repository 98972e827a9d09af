// y = x * mask / (1 - rate), the mask a hash of the element's index. Backward is the same function of dy.
#include "dropout.h"

#include <algorithm>

#include "kernel.h"
#include "parallel.h"

namespace ascend_ops {
namespace {

void dropout(const Call &call) {
  enum { X, SEED, RATE, Y };
  const int64_t size = call[X].size();
  const DropoutMask mask(call[SEED].as<int32_t>()[0], call[RATE].as<float>()[0]);
  with_type(call[X], [&](auto t) {
    using T = decltype(t);
    const T *x = call[X].as<T>();
    T *y = call[Y].as<T>();
    parallel_ranges((size + kLanes - 1) / kLanes, 1024, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin * kLanes; i < end * kLanes; i += kLanes) {
        const int64_t valid = std::min<int64_t>(kLanes, size - i);
        store_upto(y + i, load_upto(x + i, valid) * mask.at(i), valid);
      }
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(Dropout, ascend_ops::dropout)
