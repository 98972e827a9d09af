// AdamW in place in one pass, and the sum of squares for clipping.
#include <cmath>
#include <vector>

#include "kernel.h"
#include "parallel.h"
#include "row.h"
#include "vector.h"

namespace ascend_ops {
namespace {

ASCEND_OPS_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_sqrt_ps(bit_cast<__m512>(x)));
#else
  Vec root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
#endif
}

struct Controls {
  float lr, factor, beta1, beta2, eps, weight_decay;
};

// p -= lr (m / (sqrt(v) + eps) + decay p), without bias correction: MindSpore's AdamWeightDecay, in its order of operations.
// Source: Loshchilov and Hutter 2019, algorithm 2; specification A3.1.
template <typename T>
void update(const Controls &c, int64_t size, float *parameter, float *first, float *second, const T *gradient) {
  parallel_ranges(size, kGrain, [&](int64_t, int64_t begin, int64_t end) {
    each_vector(end - begin, [&](int64_t offset, auto lanes, int) __attribute__((always_inline)) {
      const int64_t i = begin + offset;
      const Vec g = load(gradient + i, lanes) * c.factor, p = load(parameter + i, lanes);
      Vec m = load(first + i, lanes), v = load(second + i, lanes);
      m += (g - m) * (1.0f - c.beta1);
      v += (g * g - v) * (1.0f - c.beta2);
      store(first + i, m, lanes);
      store(second + i, v, lanes);
      store(parameter + i, p - c.lr * (m / (square_root(v) + c.eps) + c.weight_decay * p), lanes);
    });
  });
}

void adamw(const Call &call) {
  enum { PARAMETER, M, V, GRADIENT, CONTROLS, ATTRIBUTES, DONE };
  const int64_t size = call[PARAMETER].size();
  require(call[M].size() == size && call[V].size() == size && call[GRADIENT].size() == size, "m, v and gradient must have the shape of the parameter");
  require(call[CONTROLS].size() == 2 && call[ATTRIBUTES].size() == 4, "controls must be (lr, factor), attributes (beta1, beta2, eps, weight_decay)");
  const float *controls = call[CONTROLS].as<float>(), *attributes = call[ATTRIBUTES].as<float>();
  const Controls c{controls[0], controls[1], attributes[0], attributes[1], attributes[2], attributes[3]};
  with_type(call[GRADIENT], [&](auto t) {
    update(c, size, call[PARAMETER].as<float>(), call[M].as<float>(), call[V].as<float>(), call[GRADIENT].as<decltype(t)>());
  });
  call[DONE].as<float>()[0] = 1.0f;
}

// A float32 sum of a few thousand squares is right to 1e-6; float64 adds those.
template <typename T>
double sum_squares(const T *x, int64_t n) {
  constexpr int64_t kBlock = 4096;
  double total = 0.0;
  for (int64_t start = 0; start < n; start += kBlock) {
    Total part;
    each_vector(n - start < kBlock ? n - start : kBlock, [&](int64_t i, auto lanes, int slot) __attribute__((always_inline)) {
      const Vec v = load(x + start + i, lanes);
      part.add(slot, v * v);
    });
    total += part.value();
  }
  return total;
}

void squared_norm(const Call &call) {
  enum { X, Y };
  const int64_t size = call[X].size();
  std::vector<double> parts(num_ranges(size, kGrain));
  with_type(call[X], [&](auto t) {
    const auto *x = call[X].as<decltype(t)>();
    parallel_ranges(size, kGrain, [&](int64_t range, int64_t begin, int64_t end) { parts[range] = sum_squares(x + begin, end - begin); });
  });
  double total = 0.0;
  for (double part : parts) total += part;
  call[Y].as<float>()[0] = static_cast<float>(total);
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(AdamW, ascend_ops::adamw)
ASCEND_OPS_KERNEL(SquaredNorm, ascend_ops::squared_norm)
