// A row of any length sixteen elements at a time, the last vector perhaps in part; and sums over many rows.
#pragma once

#include <vector>

#include "vector.h"

namespace ascend_ops {

// How many lanes of a vector belong to the row. All is a type of its own, so that the loop over whole vectors has no test in it.
struct All {};
struct First {
  int64_t n;
};

template <typename T>
ASCEND_OPS_INLINE Vec load(const T *p, All) {
  return load(p);
}
template <typename T>
ASCEND_OPS_INLINE Vec load(const T *p, First lanes) {
  return load(p, lanes.n);
}
template <typename T>
ASCEND_OPS_INLINE void store(T *p, Vec v, All) {
  store(p, v);
}
template <typename T>
ASCEND_OPS_INLINE void store(T *p, Vec v, First lanes) {
  store(p, v, lanes.n);
}

// v where the row is, `rest` beyond it
ASCEND_OPS_INLINE Vec keep(Vec v, All, float = 0.0f) { return v; }
ASCEND_OPS_INLINE Vec keep(Vec v, First lanes, float rest = 0.0f) {
  const IntVec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return select(bit_cast<IntVec>(lane < static_cast<int32_t>(lanes.n)), v, splat(rest));
}

// f(offset, lanes, slot) over n elements. The slot, 0 to 3, names one of four accumulators: a single one would wait for each addition.
template <typename F>
ASCEND_OPS_INLINE void each_vector(int64_t n, const F &f) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    f(i, All{}, 0);
    f(i + kLanes, All{}, 1);
    f(i + 2 * kLanes, All{}, 2);
    f(i + 3 * kLanes, All{}, 3);
  }
  for (; i + kLanes <= n; i += kLanes) f(i, All{}, 0);
  if (i < n) f(i, First{n - i}, 0);
}

// A sum with four accumulators, added up in an order that never changes.
struct Total {
  Vec slots[4] = {};
  ASCEND_OPS_INLINE void add(int slot, Vec v) { slots[slot] += v; }
  ASCEND_OPS_INLINE float value() const { return sum((slots[0] + slots[1]) + (slots[2] + slots[3])); }
};

// Sums over rows, as wide as a row: float32 for a few hundred rows, then float64.
class ColumnSums {
 public:
  static constexpr int64_t kRowsInFloat32 = 512;
  explicit ColumnSums(int64_t width) : part_((width + kLanes - 1) / kLanes * kLanes), total_(part_.size()) {}
  ASCEND_OPS_INLINE void add(int64_t column, Vec v) { store(part_.data() + column, load(part_.data() + column) + v); }
  void flush() {
    for (size_t i = 0; i < part_.size(); ++i) total_[i] += part_[i], part_[i] = 0.0f;
  }
  double at(int64_t column) const { return total_[column]; }

 private:
  std::vector<float> part_;
  std::vector<double> total_;
};

}  // namespace ascend_ops
