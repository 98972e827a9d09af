// Routing of tokens to experts: the expert of each token by a fixed table, tokens sorted by expert, and their results back in token order.
//
// A slot is one choice of one token, numbered token * top_k + choice. Whole rows are copied, so all of this is bound by memory.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernel.h"
#include "parallel.h"
#include "vector.h"

namespace ascend_ops {
namespace {


int64_t row_grain(int64_t width) {
  require(width > 0, "no dimension may be 0");
  return std::max<int64_t>(1, kGrain / width);
}

// Everything below indexes memory with these values: refuses the first that is not in [0, limit), before anything is written.
void require_below(const Tensor &values, int64_t limit, const char *name) {
  const int32_t *p = values.as<int32_t>();
  std::atomic<bool> bad{false};
  parallel_ranges(values.size(), kGrain, [&](int64_t, int64_t begin, int64_t end) {
    bool outside = false;
    for (int64_t i = begin; i < end; ++i) outside |= static_cast<uint32_t>(p[i]) >= static_cast<uint64_t>(limit);
    if (outside) bad = true;
  });
  if (!bad) return;
  const int64_t i = std::find_if(p, p + values.size(), [&](int32_t v) { return v < 0 || v >= limit; }) - p;
  throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(p[i]) + ": must be at least 0 and below " +
                              std::to_string(limit));
}

void rre_route(const Call &call) {
  enum { DOMAIN_, IDS, TABLE, EXPERT };
  const Tensor domain = call[DOMAIN_], ids = call[IDS], table = call[TABLE];
  require(table.rank == 2 && domain.size() == ids.size(), "table must be [domains, ids], and domain and ids of one shape");
  require_below(domain, table.dim(0), "domain");
  require_below(ids, table.dim(1), "ids");
  const int32_t *d = domain.as<int32_t>(), *id = ids.as<int32_t>(), *entries = table.as<int32_t>();
  int32_t *expert = call[EXPERT].as<int32_t>();
  const int64_t columns = table.dim(1);
  parallel_ranges(ids.size(), kGrain, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) expert[i] = entries[d[i] * columns + id[i]];
  });
}

// A counting sort in two passes over the same ranges: each range counts its slots of every expert, then knows where its own rows begin.
template <typename T>
void dispatch(const T *x, const int32_t *expert, int64_t slots, int64_t top_k, int64_t width, int64_t experts, T *rows, int32_t *order,
              int32_t *counts) {
  const int64_t grain = row_grain(width);
  std::vector<int32_t> next(num_ranges(slots, grain) * experts);
  parallel_ranges(slots, grain, [&](int64_t range, int64_t begin, int64_t end) {
    int32_t *mine = next.data() + range * experts;
    for (int64_t i = begin; i < end; ++i) ++mine[expert[i]];
  });
  int32_t start = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int32_t first = start;
    for (size_t i = e; i < next.size(); i += experts) start += std::exchange(next[i], start);
    counts[e] = start - first;
  }
  parallel_ranges(slots, grain, [&](int64_t range, int64_t begin, int64_t end) {
    int32_t *mine = next.data() + range * experts;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t row = mine[expert[i]]++;
      order[row] = static_cast<int32_t>(i);
      std::memcpy(rows + row * width, x + i / top_k * width, width * sizeof(T));
    }
  });
}

void moe_dispatch(const Call &call) {
  enum { X, EXPERT, EXPERTS, ROWS, ORDER, COUNTS };
  const Tensor x = call[X], expert = call[EXPERT];
  const int64_t tokens = x.dim(0), slots = expert.size(), experts = call[EXPERTS].size();
  require(x.rank == 2 && tokens && slots % tokens == 0, "x must be [tokens, width] and expert have top_k values a token");
  require(slots <= std::numeric_limits<int32_t>::max(), "slots are numbered in int32");
  require_below(expert, experts, "expert");
  with_type(x, [&](auto t) {
    using T = decltype(t);
    dispatch(x.as<T>(), expert.as<int32_t>(), slots, slots / tokens, x.last(), experts, call[ROWS].as<T>(), call[ORDER].as<int32_t>(),
             call[COUNTS].as<int32_t>());
  });
}

// One call of combine or its gradient.
struct Combination {
  int64_t tokens, top_k, width;
  const float *weights;           // [tokens, top_k], or null: all 1
  std::vector<int32_t> position;  // of each slot among the sorted rows
};

// weights of rank 1 give the number of tokens by their length alone.
Combination make_combination(const Tensor &rows, const Tensor &order, const Tensor &weights) {
  const int64_t slots = order.size(), tokens = weights.dim(0);
  require(rows.rank == 2 && rows.dim(0) == slots, "rows must be [slots, width] and order [slots]");
  require(tokens && slots % tokens == 0 && (weights.rank == 1 || weights.size() == slots), "weights must be [tokens, top_k], or [tokens] for none");
  require_below(order, slots, "order");
  Combination made{tokens, slots / tokens, rows.last(), weights.rank == 2 ? weights.as<float>() : nullptr, std::vector<int32_t>(slots, -1)};
  for (int64_t i = 0; i < slots; ++i) {
    int32_t &position = made.position[order.as<int32_t>()[i]];
    require(position < 0, "order must hold every slot once");
    position = static_cast<int32_t>(i);
  }
  return made;
}

// y = sum over choices of weight * row; kChoices is top_k where it is small, so that the compiler unrolls the sum, else 0.
template <int64_t kChoices, typename T>
void combine_token(const T *const *row, const float *weight, int64_t top_k, int64_t width, T *y) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t valid = std::min<int64_t>(kLanes, width - i);
    Vec total = weight[0] * load_upto(row[0] + i, valid);
    for (int64_t k = 1; k < (kChoices ? kChoices : top_k); ++k) total += weight[k] * load_upto(row[k] + i, valid);
    store_upto(y + i, total, valid);
  }
}

template <typename T>
void combine(const Combination &c, const T *rows, T *y) {
  const auto combine_one = c.top_k == 1 ? combine_token<1, T> : c.top_k == 2 ? combine_token<2, T> : combine_token<0, T>;
  parallel_ranges(c.tokens, row_grain(c.width * c.top_k), [&](int64_t, int64_t begin, int64_t end) {
    std::vector<const T *> row(c.top_k);
    const std::vector<float> ones(c.top_k, 1.0f);
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t k = 0; k < c.top_k; ++k) row[k] = rows + c.position[token * c.top_k + k] * c.width;
      if (!c.weights && c.top_k == 1) std::memcpy(y + token * c.width, row[0], c.width * sizeof(T));
      else combine_one(row.data(), c.weights ? c.weights + token * c.top_k : ones.data(), c.top_k, c.width, y + token * c.width);
    }
  });
}

void moe_combine(const Call &call) {
  enum { ROWS, ORDER, WEIGHTS, Y };
  const Combination c = make_combination(call[ROWS], call[ORDER], call[WEIGHTS]);
  with_type(call[ROWS], [&](auto t) {
    using T = decltype(t);
    combine(c, call[ROWS].as<T>(), call[Y].as<T>());
  });
}

// drow = weight * dy of its token; returns the weight's gradient <dy, row>.
template <typename T>
float weighted_grad(const T *dy, const T *row, float weight, int64_t width, T *drow) {
  Vec product{};
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t valid = std::min<int64_t>(kLanes, width - i);
    const Vec g = load_upto(dy + i, valid);
    store_upto(drow + i, weight * g, valid);
    product += g * load_upto(row + i, valid);
  }
  return sum(product);
}

// Without weights the rows are not read.
template <typename T>
void combine_grad(const Combination &c, const T *dy, const T *rows, T *drows, float *dweights) {
  if (!c.weights) std::fill_n(dweights, c.tokens, 0.0f);
  parallel_ranges(c.tokens, row_grain(c.width * c.top_k), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t slot = begin * c.top_k; slot < end * c.top_k; ++slot) {
      const int64_t row = c.position[slot] * c.width;
      const T *g = dy + slot / c.top_k * c.width;
      if (c.weights) dweights[slot] = weighted_grad(g, rows + row, c.weights[slot], c.width, drows + row);
      else std::memcpy(drows + row, g, c.width * sizeof(T));
    }
  });
}

void moe_combine_grad(const Call &call) {
  enum { DY, ROWS, ORDER, WEIGHTS, DROWS, DWEIGHTS };
  const Combination c = make_combination(call[ROWS], call[ORDER], call[WEIGHTS]);
  require(call[DY].size() == c.tokens * c.width, "dy must be [tokens, width]");
  with_type(call[ROWS], [&](auto t) {
    using T = decltype(t);
    combine_grad(c, call[DY].as<T>(), call[ROWS].as<T>(), call[DROWS].as<T>(), call[DWEIGHTS].as<float>());
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(RreRoute, ascend_ops::rre_route)
ASCEND_OPS_KERNEL(MoeDispatch, ascend_ops::moe_dispatch)
ASCEND_OPS_KERNEL(MoeCombine, ascend_ops::moe_combine)
ASCEND_OPS_KERNEL(MoeCombineGrad, ascend_ops::moe_combine_grad)
