// Cross-entropy of each token over its row of logits, its gradient, and for inference the log-probability of a token and the likeliest one. None
// keeps a second copy of the logits.
//
// The forward pass reads the logits once: block after block, with the sum of exponentials rescaled whenever the maximum grows.
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", in blocks.
#include <algorithm>
#include <cmath>

#include "kernel.h"
#include "parallel.h"
#include "row.h"
#include "vector.h"

namespace ascend_ops {
namespace {

constexpr int64_t kBlock = 2048;         // elements: 8 KB, which stay in the first cache between the maximum and the exponentials
constexpr float kLowest = -3.402823e38f;  // finite, so that -inf - maximum is -inf, not NaN

template <typename T>
ASCEND_OPS_INLINE float maximum(const T *x, int64_t n) {
  Vec slots[4] = {splat(kLowest), splat(kLowest), splat(kLowest), splat(kLowest)};
  each_vector(n, [&](int64_t i, auto lanes, int slot) __attribute__((always_inline)) {
    slots[slot] = max(slots[slot], keep(load(x + i, lanes), lanes, kLowest));
  });
  return max(max(max(slots[0], slots[1]), max(slots[2], slots[3])));
}

template <typename T>
float log_sum_exp(const T *x, int64_t n) {
  float top = kLowest;
  double total = 0.0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const T *block = x + start;
    const int64_t size = std::min(kBlock, n - start);
    const float higher = std::max(maximum(block, size), top);
    Total part;
    each_vector(size, [&](int64_t i, auto lanes, int slot) __attribute__((always_inline)) {
      part.add(slot, keep(exp(load(block + i, lanes) - higher), lanes));
    });
    total = total * std::exp(static_cast<double>(top) - higher) + part.value();
    top = higher;
  }
  return static_cast<float>(top + std::log(total));
}

struct Shape {
  int64_t tokens, vocab;
  Shape(const Tensor &logits, const Tensor &labels, const Tensor &mask) : tokens(logits.rows()), vocab(logits.last()) {
    require(tokens > 0 && vocab > 0, "logits must be [..., vocabulary] and not empty");
    require(labels.size() == tokens && mask.size() == tokens, "labels and mask must have one value for each token");
  }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / vocab); }
};

// Masked tokens may have any label; a wrong one of the others must not be read, and must not pass in silence.
void check_labels(const Shape &shape, const int32_t *labels, const float *mask) {
  for (int64_t t = 0; t < shape.tokens; ++t)
    if (mask[t] != 0.0f && (labels[t] < 0 || labels[t] >= shape.vocab))
      throw std::invalid_argument("label " + std::to_string(labels[t]) + " of token " + std::to_string(t) + " is not in a vocabulary of " +
                                  std::to_string(shape.vocab) + "; mask the token or correct the label");
}

void softmax_cross_entropy(const Call &call) {
  enum { LOGITS, LABELS, MASK, LOSS, LOGSUMEXP };
  const Shape shape(call[LOGITS], call[LABELS], call[MASK]);
  const int32_t *labels = call[LABELS].as<int32_t>();
  const float *mask = call[MASK].as<float>();
  float *loss = call[LOSS].as<float>(), *logsumexp = call[LOGSUMEXP].as<float>();
  check_labels(shape, labels, mask);
  with_type(call[LOGITS], [&](auto type) {
    using T = decltype(type);
    const T *logits = call[LOGITS].as<T>();
    parallel_ranges(shape.tokens, shape.grain(), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T *row = logits + t * shape.vocab;
        const bool counts = mask[t] != 0.0f;
        logsumexp[t] = counts ? log_sum_exp(row, shape.vocab) : 0.0f;
        loss[t] = counts ? logsumexp[t] - to_float(row[labels[t]]) : 0.0f;
      }
    });
  });
}

// The first of the largest values; 0 in a row of NaN.
template <typename T>
int32_t first_largest(const T *x, int64_t n) {
  const float top = maximum(x, n);
  for (int64_t i = 0; i < n; ++i)
    if (to_float(x[i]) == top) return static_cast<int32_t>(i);
  return 0;
}

void token_logprobs(const Call &call) {
  enum { LOGITS, TARGETS, LOGPROB, BEST };
  const Tensor &logits = call[LOGITS];
  const int64_t tokens = logits.rows(), vocab = logits.last();
  require(tokens > 0 && vocab > 0, "logits must be [..., vocabulary] and not empty");
  require(call[TARGETS].size() == tokens, "targets must have one value for each token");
  const int32_t *targets = call[TARGETS].as<int32_t>();
  float *logprob = call[LOGPROB].as<float>();
  int32_t *best = call[BEST].as<int32_t>();
  for (int64_t t = 0; t < tokens; ++t)
    if (targets[t] >= vocab)
      throw std::invalid_argument("target " + std::to_string(targets[t]) + " of token " + std::to_string(t) + " is not in a vocabulary of " +
                                  std::to_string(vocab) + "; a negative one leaves the token out");
  with_type(logits, [&](auto type) {
    using T = decltype(type);
    const T *x = logits.as<T>();
    parallel_ranges(tokens, std::max<int64_t>(1, kGrain / vocab), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T *row = x + t * vocab;
        const bool counts = targets[t] >= 0;
        logprob[t] = counts ? to_float(row[targets[t]]) - log_sum_exp(row, vocab) : 0.0f;
        best[t] = counts ? first_largest(row, vocab) : -1;
      }
    });
  });
}

// d loss / d logit = softmax - [is the label]
template <typename T>
void gradient_row(const T *x, int64_t n, int32_t label, float logsumexp, float dloss, T *dx) {
  each_vector(n, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) { store(dx + i, exp(load(x + i, lanes) - logsumexp) * dloss, lanes); });
  store(dx + label, splat(std::expm1(to_float(x[label]) - logsumexp) * dloss), 1);
}

void softmax_cross_entropy_grad(const Call &call) {
  enum { DLOSS, LOGITS, LABELS, MASK, LOGSUMEXP, DLOGITS };
  const Shape shape(call[LOGITS], call[LABELS], call[MASK]);
  require(call[DLOSS].size() == shape.tokens && call[LOGSUMEXP].size() == shape.tokens, "dloss and logsumexp must have one value for each token");
  const int32_t *labels = call[LABELS].as<int32_t>();
  const float *mask = call[MASK].as<float>(), *dloss = call[DLOSS].as<float>(), *logsumexp = call[LOGSUMEXP].as<float>();
  check_labels(shape, labels, mask);
  with_type(call[LOGITS], [&](auto type) {
    using T = decltype(type);
    const T *logits = call[LOGITS].as<T>();
    T *dlogits = call[DLOGITS].as<T>();
    parallel_ranges(shape.tokens, shape.grain(), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        T *row = dlogits + t * shape.vocab;
        if (mask[t] == 0.0f) std::memset(static_cast<void *>(row), 0, shape.vocab * sizeof(T));  // whatever the logits, NaN included
        else gradient_row(logits + t * shape.vocab, shape.vocab, labels[t], logsumexp[t], dloss[t], row);
      }
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(SoftmaxCrossEntropy, ascend_ops::softmax_cross_entropy)
ASCEND_OPS_KERNEL(SoftmaxCrossEntropyGrad, ascend_ops::softmax_cross_entropy_grad)
ASCEND_OPS_KERNEL(TokenLogprobs, ascend_ops::token_logprobs)
