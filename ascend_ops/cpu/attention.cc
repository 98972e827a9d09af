// Causal attention with a running softmax: memory linear in the sequence, blocks that no query sees are left out.
//
// Sources: Dao et al. 2022, FlashAttention, algorithm 1; Dao 2023, FlashAttention-2; for a few rows Dao et al. 2023, Flash-Decoding.
#include "attention.h"

namespace ascend_ops {
namespace {

using namespace attention;

template <typename T>
struct Forward {
  const Problem &p;
  const T *q, *k, *v;
  T *out;
  float *logsumexp;

  // sums [D] = total * output, the running maximum is `top`
  void write(int64_t b, int64_t g, int64_t row, const float *sums, float top, float total) const {
    const bool blind = total == 0.0f;  // sees no key
    T *to = out + p.query_at(b, g, row);
    if (blind) std::fill(to, to + p.D, T{});
    else unpack_row(sums, p.D, 1.0f / total, to);
    logsumexp[p.statistic_at(b, g, row)] = blind ? -kInfinity : top * kLn2 + std::log(total);
  }
};

// ---- blocks of rows

struct RowBlock {
  int64_t block, first, rows;
  float *q_t;  // [D, 64] scale * log2(e) * q
  float *sums, *top, *total;
  int32_t *index, *segment, *probability;  // probability: place of the row in [B, H, Q, K]
};

// Scores [keys, 64] of a block, a lane for each row, become 2^(score - top); updates the running maximum and sum, and says by what earlier sums
// shrink.
template <bool kDropout>
void softmax_block(const Problem &p, const RowBlock &x, bool masked, int64_t b, int64_t first, int64_t keys, float *scores, float *shrink) {
  const int32_t *key_index = p.keys.index + b * p.K + first, *key_segment = p.keys.segment + b * p.K + first;
  for (int64_t r = 0; r < x.rows; r += kLanes) {
    const Vec old = load(x.top + r);
    Vec highest = old;
    if (masked) {
      const IntVec index = load_int(x.index + r), segment = load_int(x.segment + r);
      for (int64_t k = 0; k < keys; ++k) {
        float *at = scores + k * kRows + r;
        const Vec score = (index >= key_index[k]) & (segment == key_segment[k]) ? load(at) : splat(-kInfinity);
        highest = score > highest ? score : highest;
        store(at, score);
      }
    } else {
      for (int64_t k = 0; k < keys; ++k) highest = max(load(scores + k * kRows + r), highest);
    }
    const Vec base = highest == -kInfinity ? Vec{} : highest;  // nothing seen yet
    const Vec factor = exp2(old - base);
    Vec sum = load(x.total + r) * factor;
    for (int64_t k = 0; k < keys; ++k) {
      float *at = scores + k * kRows + r;
      const Vec probability = exp2(load(at) - base);
      sum += probability;  // of all of them: dropout comes after the softmax
      if (kDropout) store(at, probability * p.dropout.of(bit_cast<UintVec>(load_int(x.probability + r)) + static_cast<uint32_t>(first + k)));
      else store(at, probability);
    }
    store(x.top + r, highest), store(x.total + r, sum), store(shrink + r, factor);
  }
}

template <typename T>
struct Panels : Forward<T> {
  using Forward<T>::p;
  static constexpr int64_t kMost = 4;  // blocks of rows that share the packing of keys

  void run() const {
    const int64_t heads = p.B * p.G, size = std::clamp<int64_t>(heads * p.row_blocks / (4 * num_threads()), 1, kMost);
    const int64_t panels = (p.row_blocks + size - 1) / size;
    parallel_tasks(heads * panels, [&](int64_t i) {  // the last rows see most keys: they come first
      const int64_t begin = (panels - 1 - i / heads) * size;
      panel(i % heads / p.G, i % p.G, begin, std::min(begin + size, p.row_blocks));
    });
  }

  void panel(int64_t b, int64_t g, int64_t begin, int64_t end) const {
    const int64_t width = p.width;
    Scratch space = Scratch::of(kMost * (2 * width + 5) * kRows + (2 * width + kRows) * kKeys + kRows);
    float *keys = space.take(kKeys * width), *values = space.take(kKeys * width), *scores = space.take(kKeys * kRows), *shrink = space.take(kRows);
    RowBlock blocks[kMost];
    for (int64_t i = begin; i < end; ++i) blocks[i - begin] = make_block(space, b, g, i);
    for (int64_t key_block = 0; key_block < p.key_blocks; ++key_block) {
      const int64_t key = key_block * kKeys, n = std::min(kKeys, p.K - key);
      bool packed = false;
      for (int64_t i = 0; i < end - begin; ++i) {
        const RowBlock &x = blocks[i];
        const Visible seen = p.sees(b, x.block, key_block);
        if (seen == Visible::kNone) continue;
        if (!packed) {
          pack(n, p.D, width, 1.0f, keys, [&](int64_t j) { return this->k + p.key_at(b, g, key + j); });
          pack(n, p.D, width, 1.0f, values, [&](int64_t j) { return this->v + p.key_at(b, g, key + j); });
          packed = true;
        }
        multiply<false>(n, round_up(x.rows), p.D, keys, width, x.q_t, kRows, scores, kRows, false);
        (p.dropout.drops() ? softmax_block<true> : softmax_block<false>)(p, x, seen == Visible::kSome, b, key, n, scores, shrink);
        for (int64_t r = 0; r < x.rows; ++r)
          for (float *at = x.sums + r * width; at < x.sums + (r + 1) * width; at += kLanes) store(at, load(at) * shrink[r]);
        multiply<true>(x.rows, width, n, scores, kRows, values, width, x.sums, width, true);
      }
    }
    for (const RowBlock *x = blocks; x < blocks + (end - begin); ++x)
      for (int64_t r = 0; r < x->rows; ++r) this->write(b, g, x->first + r, x->sums + r * width, x->top[r], x->total[r]);
  }

  RowBlock make_block(Scratch &space, int64_t b, int64_t g, int64_t block) const {
    RowBlock x{block, block * kRows, std::min(kRows, p.rows - block * kRows), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    x.q_t = space.take(p.width * kRows), x.sums = space.take(p.width * kRows), x.top = space.take(kRows), x.total = space.take(kRows);
    x.index = reinterpret_cast<int32_t *>(space.take(kRows)), x.segment = reinterpret_cast<int32_t *>(space.take(kRows));
    x.probability = reinterpret_cast<int32_t *>(space.take(kRows));
    pack(x.rows, p.D, p.width, p.scale * kLog2E, x.sums, [&](int64_t i) { return this->q + p.query_at(b, g, x.first + i); });
    transpose(round_up(x.rows), p.width, x.sums, p.width, x.q_t, kRows);
    std::fill(x.sums, x.sums + kRows * p.width, 0.0f);
    std::fill(x.top, x.top + kRows, -kInfinity);
    std::fill(x.total, x.total + kRows, 0.0f);
    for (int64_t i = 0; i < kRows; ++i) {
      const int64_t row = std::min(x.first + i, p.rows - 1), at = b * p.Q + row / p.group;
      x.probability[i] = static_cast<int32_t>(p.probability_at(b, g, row));
      x.index[i] = p.queries.index[at], x.segment[i] = p.queries.segment[at];
    }
    return x;
  }
};

// ---- a few rows for each KV head (decoding): bound by memory, so each key is read once, in the order of memory, for all heads

template <typename T>
struct FewRows : Forward<T> {
  using Forward<T>::p;
  static constexpr int64_t kMost = 8;     // rows; more are served better by blocks
  static constexpr int64_t kChunk = 256;  // keys of a task

  // What a task keeps of each row of each head, `all` of them: [width] sums of values, then maximum and sum of the probabilities.
  int64_t all() const { return p.G * p.rows; }
  int64_t step() const { return p.width + kLanes; }

  void run() const {
    const int64_t chunks = (p.K + kChunk - 1) / kChunk, size = all() * step();
    std::vector<float> found(p.B * chunks * size);
    parallel_tasks(p.B * chunks, [&](int64_t i) { chunk(i / chunks, i % chunks * kChunk, found.data() + i * size); });
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t i = 0; i < all(); ++i) merge(b, i, chunks, found.data() + b * chunks * size + i * step());
  }

  void chunk(int64_t b, int64_t begin, float *found) const {
    const int64_t all = this->all(), step = this->step(), end = std::min(begin + kChunk, p.K);
    Scratch space = Scratch::of(all * (2 * step + (kLanes + 2) * kLanes));
    float *queries = space.take(all * p.width), *products = space.take(all * kLanes * kLanes), *scores = space.take(all * kLanes);
    float *totals = space.take(all * kLanes), *state = space.take(all * step);
    pack(all, p.D, p.width, p.scale * kLog2E, queries, [&](int64_t i) { return this->q + p.query_at(b, i / p.rows, i % p.rows); });
    std::fill(totals, totals + all * kLanes, 0.0f);
    std::fill(state, state + all * step, 0.0f);
    for (int64_t i = 0; i < all; ++i) state[i * step + p.width] = -kInfinity;
    for (int64_t key = begin; key < end; key += kLanes) {
      const Visible seen = p.sees(b, 0, key / kKeys);
      if (seen == Visible::kNone) continue;
      const int64_t n = std::min<int64_t>(kLanes, end - key);
      for (int64_t j = 0; j < n; ++j) multiply_key(this->k + p.key_at(b, 0, key + j), queries, products + j * kLanes);
      for (int64_t i = 0; i < all; ++i) {
        const IntVec lanes = visible_lanes(b, i % p.rows / p.group, key, n, seen == Visible::kSome);
        softmax_lanes(lanes, products + i * kLanes * kLanes, scores + i * kLanes, totals + i * kLanes, state + i * step);
      }
      for (int64_t j = 0; j < n; ++j) add_value(this->v + p.key_at(b, 0, key + j), scores + j, state);
    }
    for (int64_t i = 0; i < all; ++i) state[i * step + p.width + 1] = sum(load(totals + i * kLanes));
    std::copy(state, state + all * step, found);
  }

  // Asks for what is needed two keys later: a key of all heads often fills a page, where the processor's own prefetch ends.
  ASCEND_OPS_INLINE Vec load_ahead(const T *from) const {
    __builtin_prefetch(from + 2 * p.G * p.D);
    return load(from);
  }

  // The products of one key with the queries of its head, still to be summed over the lanes.
  ASCEND_OPS_INLINE void multiply_key(const T *key, const float *queries, float *products) const {
    for (int64_t g = 0; g < p.G; ++g, key += p.D)
      for (int64_t r = 0; r < p.rows; ++r, queries += p.width, products += kLanes * kLanes) {
        Vec total{};
        int64_t d = 0;
        for (; d + kLanes <= p.D; d += kLanes) total += load_ahead(key + d) * load(queries + d);
        if (d < p.D) total += load(key + d, p.D - d) * load(queries + d);
        store(products, total);
      }
  }

  ASCEND_OPS_INLINE void add_value(const T *value, const float *scores, float *state) const {
    for (int64_t g = 0; g < p.G; ++g, value += p.D)
      for (int64_t r = 0; r < p.rows; ++r, scores += kLanes, state += step()) {
        int64_t d = 0;
        for (; d + kLanes <= p.D; d += kLanes) store(state + d, load(state + d) + load_ahead(value + d) * *scores);
        if (d < p.D) store(state + d, load(state + d) + load(value + d, p.D - d) * *scores);
      }
  }

  IntVec visible_lanes(int64_t b, int64_t query, int64_t key, int64_t n, bool masked) const {
    constexpr IntVec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const IntVec valid = lane < static_cast<int32_t>(n);
    return masked ? valid & p.visible_keys(b, query, key, n) : valid;
  }

  void softmax_lanes(IntVec seen, const float *products, float *scores, float *total, float *state) const {
    const Vec score = seen ? sum_each(products) : splat(-kInfinity);
    const float old = state[p.width], highest = std::max(old, max(score)), base = highest == -kInfinity ? 0.0f : highest;
    const Vec probability = exp2(score - base);
    const float shrink = exp2(splat(old - base))[0];
    store(scores, probability);
    store(total, load(total) * shrink + probability);
    state[p.width] = highest;
    if (shrink != 1.0f)
      for (int64_t d = 0; d < p.width; d += kLanes) store(state + d, load(state + d) * shrink);
  }

  // Row i of all heads from what the chunks found out of it, which stands `size` apart.
  void merge(int64_t b, int64_t i, int64_t chunks, float *found) const {
    const int64_t size = all() * step();
    float highest = -kInfinity, total = 0.0f;
    for (int64_t c = 0; c < chunks; ++c) highest = std::max(highest, found[c * size + p.width]);
    const float base = highest == -kInfinity ? 0.0f : highest;
    for (int64_t c = 0; c < chunks; ++c) {
      const float *other = found + c * size;
      const float factor = exp2(splat(other[p.width] - base))[0];
      total += other[p.width + 1] * factor;
      for (int64_t d = 0; d < p.width; d += kLanes) store(found + d, (c ? load(found + d) : Vec{}) + load(other + d) * factor);
    }
    this->write(b, i / p.rows, i % p.rows, found, highest, total);
  }
};

void causal_attention(const Call &call) {
  enum { Q, K, V, Q_INDEX, K_INDEX, Q_SEGMENT, K_SEGMENT, HEADS, SEED, ATTRIBUTES, OUT, LOGSUMEXP };
  const Problem p = make_problem(call, Q, ATTRIBUTES);
  with_type(call[Q], [&](auto t) {
    using T = decltype(t);
    const Forward<T> forward{p, call[Q].as<T>(), call[K].as<T>(), call[V].as<T>(), call[OUT].as<T>(), call[LOGSUMEXP].as<float>()};
    if (p.rows <= FewRows<T>::kMost && !p.dropout.drops()) FewRows<T>{forward}.run();
    else Panels<T>{forward}.run();
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(CausalAttention, ascend_ops::causal_attention)
