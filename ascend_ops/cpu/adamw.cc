// AdamW in place in one pass, and the sums of squares for clipping.
#include <algorithm>
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
  each_vector(size, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
    const Vec g = load(gradient + i, lanes) * c.factor, p = load(parameter + i, lanes);
    Vec m = load(first + i, lanes), v = load(second + i, lanes);
    m += (g - m) * (1.0f - c.beta1);
    v += (g * g - v) * (1.0f - c.beta2);
    store(first + i, m, lanes);
    store(second + i, v, lanes);
    store(parameter + i, p - c.lr * (m / (square_root(v) + c.eps) + c.weight_decay * p), lanes);
  });
}

// The lines of the first dimension whose norm is not 0; the others are neither written nor read. One norm stands for the whole tensor.
std::vector<int64_t> lines_to_update(const Tensor &norms) {
  std::vector<int64_t> lines;
  for (int64_t k = 0; k < norms.size(); ++k)
    if (norms.as<float>()[k] != 0.0f) lines.push_back(k);
  return lines;
}

void adamw(const Call &call) {
  enum { PARAMETER, M, V, GRADIENT, CONTROLS, NORMS, ATTRIBUTES, DONE };
  const Tensor parameter = call[PARAMETER], norms = call[NORMS];
  const int64_t size = parameter.size();
  require(call[M].size() == size && call[V].size() == size && call[GRADIENT].size() == size, "m, v and gradient must have the shape of the parameter");
  require(call[CONTROLS].size() == 2 && call[ATTRIBUTES].size() == 4, "controls must be (lr, factor), attributes (beta1, beta2, eps, weight_decay)");
  require(norms.size() == 1 || (parameter.rank > 0 && norms.size() == parameter.dim(0)), "norms must have one value for each line of the parameter, or one");
  const float *controls = call[CONTROLS].as<float>(), *attributes = call[ATTRIBUTES].as<float>();
  const Controls c{controls[0], controls[1], attributes[0], attributes[1], attributes[2], attributes[3]};
  const std::vector<int64_t> lines = lines_to_update(norms);
  const int64_t width = size / norms.size();
  with_type(call[GRADIENT], [&](auto t) {
    parallel_ranges(static_cast<int64_t>(lines.size()) * width, kGrain, [&](int64_t, int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t i = lines[begin / width] * width + begin % width, count = std::min(end - begin, width - begin % width);
        update(c, count, call[PARAMETER].as<float>() + i, call[M].as<float>() + i, call[V].as<float>() + i, call[GRADIENT].as<decltype(t)>() + i);
        begin += count;
      }
    });
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

// Each tensor is cut into the same ranges whatever stands beside it, so its norm does not depend on how many there are.
template <typename T>
void squared_norms(const T *x, int64_t count, int64_t size, float *y) {
  const int64_t ranges = num_ranges(size, kGrain);
  std::vector<double> parts(count * ranges);
  const int64_t group = std::max<int64_t>(1, kGrain / size);  // small tensors that are one task
  parallel_tasks((count * ranges + group - 1) / group, [&](int64_t task) {
    for (int64_t i = task * group; i < std::min(count * ranges, (task + 1) * group); ++i) {
      const int64_t range = i % ranges, begin = size * range / ranges, end = size * (range + 1) / ranges;
      parts[i] = sum_squares(x + i / ranges * size + begin, end - begin);
    }
  });
  for (int64_t k = 0; k < count; ++k) {
    double total = 0.0;
    for (int64_t range = 0; range < ranges; ++range) total += parts[k * ranges + range];
    y[k] = static_cast<float>(total);
  }
}

void squared_norm(const Call &call) {
  enum { X, Y };
  with_type(call[X], [&](auto t) { squared_norms(call[X].as<decltype(t)>(), 1, call[X].size(), call[Y].as<float>()); });
}

void squared_norms_of_lines(const Call &call) {
  enum { X, Y };
  const Tensor x = call[X];
  require(x.rank > 0 && x.size() > 0, "x must have a dimension, and none may be 0");
  with_type(x, [&](auto t) { squared_norms(x.as<decltype(t)>(), x.dim(0), x.size() / x.dim(0), call[Y].as<float>()); });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(AdamW, ascend_ops::adamw)
ASCEND_OPS_KERNEL(SquaredNorm, ascend_ops::squared_norm)
ASCEND_OPS_KERNEL(SquaredNorms, ascend_ops::squared_norms_of_lines)
