// y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin, with sin times `sign`: each pair (x1, x2), D/2 apart in a head, turns by an angle of its position.
// Backward turns dy by the negative angle: the same function with sign -1.
#include <algorithm>

#include "kernel.h"
#include "parallel.h"
#include "row.h"

namespace ascend_ops {
namespace {

template <typename T>
ASCEND_OPS_INLINE void rotate_head(const T *x, const float *cosines, const float *sines, float sign, int64_t half, T *y) {
  each_vector(half, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
    const Vec first = load(x + i, lanes), second = load(x + half + i, lanes), c = load(cosines + i, lanes), s = load(sines + i, lanes) * sign;
    store(y + i, first * c - second * s, lanes);
    store(y + half + i, second * c + first * s, lanes);
  });
}

// x [B, S, H * D] or [B, S, H, D], which is the same memory; cos_sin [B, S, D].
void rotary(const Call &call) {
  enum { X, COS_SIN, SIGN, Y };
  const Tensor source = call[X], cos_sin = call[COS_SIN];
  const int64_t rows = cos_sin.rows(), head = cos_sin.last(), half = head / 2;
  require(source.size() > 0 && cos_sin.size() > 0, "no dimension may be 0");
  require(head % 2 == 0, "the last dimension of cos_sin must be even");
  require(source.rank > 2 && cos_sin.rank == 3 && std::equal(cos_sin.shape, cos_sin.shape + 2, source.shape), "cos_sin must have the batch and length of x");
  require(source.rank == 3 ? source.last() % head == 0 : source.last() == head, "x must hold heads of the last dimension of cos_sin");
  const int64_t width = source.size() / rows;
  with_type(source, [&](auto t) {
    using T = decltype(t);
    const T *x = source.as<T>();
    const float *angles = cos_sin.as<float>(), sign = *call[SIGN].as<float>();
    T *y = call[Y].as<T>();
    parallel_ranges(rows, std::max<int64_t>(1, kGrain / width), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float *cosines = angles + row * head;
        for (int64_t i = row * width; i < (row + 1) * width; i += head) rotate_head(x + i, cosines, cosines + half, sign, half, y + i);
      }
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(RotaryEmbedding, ascend_ops::rotary)
