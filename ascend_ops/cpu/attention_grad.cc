// Gradients of attention: probabilities are computed again, block by block, from the scores and their logsumexp.
// Source: Dao et al. 2022, FlashAttention, algorithm 4.
#include "attention.h"

namespace ascend_ops {
namespace {

using namespace attention;

template <typename T>
struct Backward {
  const Problem &p;
  const T *dout, *q, *k, *v;
  const float *logsumexp, *delta;  // delta [B, H, Q]: sum of dout * out over the head

  // Blocks of one (batch, KV head) that a thread has packed. q holds scale * log2(e) * q.
  struct Block {
    int64_t b, g, row, rows, key, keys;
    float *q, *dout, *logsumexp, *delta, *k, *k_t, *v_t, *p, *ds;
  };

  static int64_t block_size(const Problem &p) { return (2 * p.width + 2) * kRows + 4 * p.width * kKeys + 2 * kRows * kKeys; }

  Block make_block(Scratch &space, int64_t b, int64_t g) const {
    Block x{};
    x.b = b, x.g = g;
    for (float **rows : {&x.q, &x.dout}) *rows = space.take(kRows * p.width);
    for (float **rows : {&x.logsumexp, &x.delta}) *rows = space.take(kRows);
    for (float **keys : {&x.k, &x.k_t, &x.v_t}) *keys = space.take(kKeys * p.width);
    for (float **scores : {&x.p, &x.ds}) *scores = space.take(kRows * kKeys);
    return x;
  }

  void load_rows(Block &x, int64_t row_block) const {
    x.row = row_block * kRows, x.rows = std::min(kRows, p.rows - x.row);
    pack(x.rows, p.D, p.width, p.scale * kLog2E, x.q, [&](int64_t i) { return q + p.query_at(x.b, x.g, x.row + i); });
    pack(x.rows, p.D, p.width, 1.0f, x.dout, [&](int64_t i) { return dout + p.query_at(x.b, x.g, x.row + i); });
    for (int64_t i = 0; i < x.rows; ++i) {
      const int64_t at = p.statistic_at(x.b, x.g, x.row + i);
      x.logsumexp[i] = logsumexp[at] * kLog2E, x.delta[i] = delta[at];
    }
  }

  void load_keys(Block &x, int64_t key_block) const {
    x.key = key_block * kKeys, x.keys = std::min(kKeys, p.K - x.key);
    float *v_rows = x.p;  // free at this time; wide heads go through it in slices
    for (int64_t d = 0; d < p.width; d += kRows) {
      const int64_t width = std::min(kRows, p.width - d);
      pack(x.keys, std::min(kRows, p.D - d), width, 1.0f, v_rows, [&](int64_t j) { return v + p.key_at(x.b, x.g, x.key + j) + d; });
      transpose(round_up(x.keys), width, v_rows, width, x.v_t + d * kKeys, kKeys);
    }
    pack(x.keys, p.D, p.width, 1.0f, x.k, [&](int64_t j) { return k + p.key_at(x.b, x.g, x.key + j); });
    transpose(round_up(x.keys), p.width, x.k, p.width, x.k_t, kKeys);
  }

  // p [rows, keys] = softmax of the scores after dropout, ds = p * (dout v^T - delta): the gradient of the scores
  void probabilities(Block &x, bool masked) const {
    const int64_t width = round_up(x.keys);
    multiply<false>(x.rows, width, p.D, x.q, p.width, x.k_t, kKeys, x.p, kKeys, false);
    multiply<false>(x.rows, width, p.D, x.dout, p.width, x.v_t, kKeys, x.ds, kKeys, false);
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.keys; j += kLanes) {
        const Vec probability = exp2(load(x.p + i * kKeys + j) - x.logsumexp[i]);
        Vec dprobability = load(x.ds + i * kKeys + j), kept = probability;
        if (p.dropout.drops()) {
          const Vec mask = p.dropout.at(p.probability_at(x.b, x.g, x.row + i) + x.key + j);
          dprobability *= mask, kept *= mask;
        }
        Vec gradient = probability * (dprobability - x.delta[i]);
        if (masked) {
          const IntVec seen = p.visible_keys(x.b, (x.row + i) / p.group, x.key + j, std::min<int64_t>(kLanes, x.keys - j));
          kept = seen ? kept : Vec{}, gradient = seen ? gradient : Vec{};
        }
        store(x.p + i * kKeys + j, kept), store(x.ds + i * kKeys + j, gradient);
      }
    }
  }

  // Gradients of a block of keys from all rows; with dq_sums [rows, width] also adds what the block gives to the rows.
  void key_block(Block &x, int64_t key_block, float *dk_sums, float *dv_sums, T *dk, T *dv, float *dq_sums) const {
    load_keys(x, key_block);
    std::fill(dk_sums, dk_sums + kKeys * p.width, 0.0f);
    std::fill(dv_sums, dv_sums + kKeys * p.width, 0.0f);
    for (int64_t row_block = 0; row_block < p.row_blocks; ++row_block) {
      const Visible seen = p.sees(x.b, row_block, key_block);
      if (seen == Visible::kNone) continue;
      load_rows(x, row_block);
      probabilities(x, seen == Visible::kSome);
      multiply<true>(x.keys, p.width, x.rows, x.p, kKeys, x.dout, p.width, dv_sums, p.width, true);
      multiply<true>(x.keys, p.width, x.rows, x.ds, kKeys, x.q, p.width, dk_sums, p.width, true);
      if (dq_sums) multiply<false>(x.rows, p.width, x.keys, x.ds, kKeys, x.k, p.width, dq_sums + x.row * p.width, p.width, true);
    }
    for (int64_t j = 0; j < x.keys; ++j) {
      const int64_t at = p.key_at(x.b, x.g, x.key + j);
      unpack_row(dv_sums + j * p.width, p.D, 1.0f, dv + at);
      unpack_row(dk_sums + j * p.width, p.D, kLn2, dk + at);  // q was scaled, by log2(e) too much
    }
  }

  // Gradients of a block of rows from all keys.
  void row_block(Block &x, int64_t row_block, float *dq_sums, T *dq) const {
    load_rows(x, row_block);
    std::fill(dq_sums, dq_sums + kRows * p.width, 0.0f);
    for (int64_t key_block = 0; key_block < p.key_blocks; ++key_block) {
      const Visible seen = p.sees(x.b, row_block, key_block);
      if (seen == Visible::kNone) continue;
      load_keys(x, key_block);
      probabilities(x, seen == Visible::kSome);
      multiply<false>(x.rows, p.width, x.keys, x.ds, kKeys, x.k, p.width, dq_sums, p.width, true);
    }
    write_dq(x, x.row, x.rows, dq_sums, dq);
  }

  void write_dq(const Block &x, int64_t row, int64_t rows, const float *dq_sums, T *dq) const {
    for (int64_t i = 0; i < rows; ++i) unpack_row(dq_sums + i * p.width, p.D, p.scale, dq + p.query_at(x.b, x.g, row + i));
  }

  // A task is a KV head: five products for each pair of blocks.
  void by_head(T *dq, T *dk, T *dv) const {
    parallel_tasks(p.B * p.G, [&](int64_t i) {
      Scratch space = Scratch::of(block_size(p) + 2 * kKeys * p.width + p.rows * p.width);
      Block x = make_block(space, i / p.G, i % p.G);
      float *dk_sums = space.take(kKeys * p.width), *dv_sums = space.take(kKeys * p.width), *dq_sums = space.take(p.rows * p.width);
      std::fill(dq_sums, dq_sums + p.rows * p.width, 0.0f);
      for (int64_t block = 0; block < p.key_blocks; ++block) key_block(x, block, dk_sums, dv_sums, dk, dv, dq_sums);
      write_dq(x, 0, p.rows, dq_sums, dq);
    });
  }

  // A task is a block of keys or a block of rows: seven products, but work for more threads than there are heads.
  void by_block(T *dq, T *dk, T *dv) const {
    const int64_t heads = p.B * p.G;
    parallel_tasks(heads * (p.key_blocks + p.row_blocks), [&](int64_t i) {
      Scratch space = Scratch::of(block_size(p) + 2 * kKeys * p.width);
      Block x = make_block(space, i % heads / p.G, i % p.G);
      float *sums = space.take(kKeys * p.width), *more_sums = space.take(kKeys * p.width);
      const int64_t block = i / heads;  // first the early keys, which most rows see, then the late rows
      if (block < p.key_blocks) key_block(x, block, sums, more_sums, dk, dv, nullptr);
      else row_block(x, p.row_blocks - 1 - (block - p.key_blocks), sums, dq);
    });
  }
};

// sum of dout * out over each head, [B, H, Q]
template <typename T>
std::vector<float> row_products(const Problem &p, const T *dout, const T *out) {
  std::vector<float> delta(p.B * p.H * p.Q);
  parallel_ranges(p.B * p.Q, 64, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin * p.H; row < end * p.H; ++row) {
      const T *x = dout + row * p.D, *y = out + row * p.D;
      Vec total{};
      int64_t d = 0;
      for (; d + kLanes <= p.D; d += kLanes) total += load(x + d) * load(y + d);
      if (d < p.D) total += load(x + d, p.D - d) * load(y + d, p.D - d);
      const int64_t position = row / p.H, head = row % p.H;
      delta[(position / p.Q * p.H + head) * p.Q + position % p.Q] = sum(total);
    }
  });
  return delta;
}

void causal_attention_grad(const Call &call) {
  enum { DOUT, Q, K, V, Q_INDEX, K_INDEX, Q_SEGMENT, K_SEGMENT, HEADS, SEED, OUT, LOGSUMEXP, ATTRIBUTES, DQ, DK, DV };
  const Problem p = make_problem(call, Q, ATTRIBUTES);
  require(call[DOUT].size() == call[Q].size() && call[OUT].size() == call[Q].size(), "dout and out must have the shape of q");
  require(call[LOGSUMEXP].size() == p.B * p.H * p.Q, "logsumexp must be [batch, heads, queries]");
  with_type(call[Q], [&](auto t) {
    using T = decltype(t);
    const std::vector<float> delta = row_products(p, call[DOUT].as<T>(), call[OUT].as<T>());
    const Backward<T> backward{p, call[DOUT].as<T>(), call[Q].as<T>(), call[K].as<T>(), call[V].as<T>(), call[LOGSUMEXP].as<float>(), delta.data()};
    // Seven products by all threads beat five by some where a third of them would be idle.
    const int64_t heads = p.B * p.G, rounds = (heads + num_threads() - 1) / num_threads();
    const bool whole = 5 * rounds * num_threads() <= 7 * heads;
    (backward.*(whole ? &Backward<T>::by_head : &Backward<T>::by_block))(call[DQ].as<T>(), call[DK].as<T>(), call[DV].as<T>());
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(CausalAttentionGrad, ascend_ops::causal_attention_grad)
