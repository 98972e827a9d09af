// Attention of a decoding step: writes the keys and values of new tokens into the slots of a cache, then each query attends to what its slot holds.
//
// The bits of a result depend on its query and on the keys that it sees alone, not on what else a call computes. So one row and a tile of rows keep
// one order of arithmetic:
//   a score    16 partial sums of the products d, d + 16, d + 32, ..., which are then added in halves;
//   softmax    keys in blocks of 64 from position 0, with a running maximum; one sum of probabilities for each of 16 lanes;
//   a result   the sum over keys, in their order.
// Functions in which the compiler could fuse a multiplication with one of two additions are not inlined, so that it decides once.
//
// Sources: Dao 2023, FlashAttention-2; Agrawal et al. 2024, Sarathi-Serve, for steps that hold single tokens and a chunk of a prompt.
#include "attention.h"

namespace ascend_ops {
namespace {

using namespace attention;

constexpr int64_t kLeastTileRows = 8;  // fewer rows of one slot are computed one by one
constexpr int64_t kAhead = 2048;       // bytes of keys that are asked for before they are needed; of values twice as many

ASCEND_OPS_INLINE float highest_lane(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

__attribute__((noinline, noclone)) void scale(int64_t count, float factor, float *values) {
  for (int64_t i = 0; i < count; i += kLanes) store(values + i, load(values + i) * factor);
}

// The scores of n <= 64 keys become 2^(score - top). Updates the running maximum and the sums of the lanes, and scales the sums of values.
void softmax(int64_t n, float *scores, float *top, float *totals, int64_t width, float *state) {
  constexpr IntVec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Vec highest = splat(-kInfinity);
  for (int64_t k = 0; k < n; k += kLanes) {
    const Vec score = lane < static_cast<int32_t>(n - k) ? load(scores + k) : splat(-kInfinity);
    highest = max(score, highest);
    store(scores + k, score);
  }
  const float old = *top, now = std::max(old, highest_lane(highest)), base = now == -kInfinity ? 0.0f : now;
  const float shrink = exp2(splat(old - base))[0];
  *top = now;
  if (now != old) scale(kLanes, shrink, totals), scale(width, shrink, state);
  Vec sum = load(totals);
  for (int64_t k = 0; k < n; k += kLanes) {
    const Vec probability = exp2(load(scores + k) - base);
    store(scores + k, probability);
    sum += probability;
  }
  store(totals, sum);
}

// The scores become probabilities, which are added to the totals; apart from the scaling of the totals, with which the compiler could fuse it.
__attribute__((noinline, noclone)) void add_probabilities(int64_t rows, int64_t keys, float *scores, const float *top, float *totals) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const Vec highest = load(top + r), base = highest == -kInfinity ? Vec{} : highest;
    for (int64_t k = 0; k < keys; ++k) {
      float *at = scores + k * kRows + r, *total = totals + k % kLanes * kRows + r;
      const Vec probability = exp2(load(at) - base);
      store(at, probability);
      store(total, load(total) + probability);
    }
  }
}

// The same for up to 64 rows: scores [keys, 64] and totals [16, 64] have a lane for each row, which sees the first seen[row] keys.
void softmax_of_rows(int64_t rows, int64_t keys, const int32_t *seen, bool masked, float *scores, float *top, float *totals, float *shrink) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const Vec old = load(top + r);
    Vec highest = old;
    if (masked) {
      const IntVec visible = load_int(seen + r);
      for (int64_t k = 0; k < keys; ++k) {
        float *at = scores + k * kRows + r;
        const Vec score = static_cast<int32_t>(k) < visible ? load(at) : splat(-kInfinity);
        highest = max(score, highest);
        store(at, score);
      }
    } else {
      for (int64_t k = 0; k < keys; ++k) highest = max(load(scores + k * kRows + r), highest);
    }
    const Vec base = highest == -kInfinity ? Vec{} : highest;  // nothing seen yet
    const Vec factor = highest == old ? splat(1.0f) : exp2(old - base);  // exp2(0) is not quite 1
    store(top + r, highest), store(shrink + r, factor);
    for (int64_t lane = 0; lane < kLanes; ++lane) store(totals + lane * kRows + r, load(totals + lane * kRows + r) * factor);
  }
  add_probabilities(rows, keys, scores, top, totals);
}

// ---- scores of a tile: a lane for each row, and vectors for the partial sums

// sums [keys, rows] = the products of `first`, `first` + kStep, ..., added in halves down to single partial sums
template <int kStep, int M, int N>
ASCEND_OPS_INLINE void add_partials(int64_t first, int64_t depth, const float *keys, int64_t ldk, const float *q_t, Native (&sums)[M][N]) {
  if constexpr (kStep < kLanes) {
    Native others[M][N];
    add_partials<2 * kStep, M, N>(first, depth, keys, ldk, q_t, sums);
    add_partials<2 * kStep, M, N>(first + kStep, depth, keys, ldk, q_t, others);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[m][n] += others[m][n];
  } else {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[m][n] = Native{};
    for (int64_t d = first; d < depth; d += kLanes) {
      Native line[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) line[n] = load_native(q_t + d * kRows + n * kNative);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[m][n] += line[n] * keys[m * ldk + d];
    }
  }
}

template <int M, int N>
void score_tile(int64_t depth, const float *keys, int64_t ldk, const float *q_t, float *scores) {
  Native sums[M][N];
  add_partials<1, M, N>(0, depth, keys, ldk, q_t, sums);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) std::memcpy(scores + m * kRows + n * kNative, &sums[m][n], sizeof(Native));
}

template <int M, int N>
void score_columns(int64_t n, int64_t depth, const float *keys, int64_t ldk, const float *q_t, float *scores) {
  int64_t k = 0;
  for (; k + M <= n; k += M) score_tile<M, N>(depth, keys + k * ldk, ldk, q_t, scores + k * kRows);
  for (; k < n; ++k) score_tile<1, N>(depth, keys + k * ldk, ldk, q_t, scores + k * kRows);
}

// scores [n, 64] of n keys [n, depth] and rows, whole vectors of them, in q_t [depth, 64]
void score(int64_t n, int64_t rows, int64_t depth, const float *keys, int64_t ldk, const float *q_t, float *scores) {
  int64_t r = 0;
  for (; r + 2 * kNative <= rows; r += 2 * kNative) score_columns<4, 2>(n, depth, keys, ldk, q_t + r, scores + r);
  if (r < rows) score_columns<6, 1>(n, depth, keys, ldk, q_t + r, scores + r);
}

// ---- the step

struct Step {
  int64_t S, R, Q, H, G, D, group, width, stride;  // R rows of a slot; stride: elements of a row, G * D
  float scale;
  const int32_t *positions, *slots;  // of the queries

  int64_t seen(int64_t query) const { return slots[query] < 0 ? 0 : positions[query] + 1; }  // number of keys
};

struct Task {
  int64_t query, count, g_begin, g_end;  // queries of one slot, KV heads
  int64_t work;
};

// T: of queries and results, C: of the cache
template <typename T, typename C>
struct Attend {
  const Step &p;
  const T *q;
  const C *keys, *values;
  T *out;

  int64_t row_at(int64_t query, int64_t g, int64_t i) const { return (query * p.H + g * p.group + i) * p.D; }
  int64_t key_at(int64_t query, int64_t g, int64_t key) const { return (p.slots[query] * p.R + key) * p.stride + g * p.D; }

  void run(const Task &task) const {
    if (p.slots[task.query] < 0) std::fill_n(out + row_at(task.query, 0, 0), task.count * p.H * p.D, T{});
    else if (task.count == 1) one(task.query, task.g_begin, task.g_end);
    else
      for (int64_t g = task.g_begin; g < task.g_end; ++g) tile(task.query, task.count, g);
  }

  // One query: bound by memory, so each key is read once, in the order of memory, for all heads of the task.
  void one(int64_t query, int64_t g_begin, int64_t g_end) const {
    const int64_t heads = g_end - g_begin, rows = heads * p.group, width = p.width, n = p.seen(query);
    Scratch space = Scratch::of(round_up(rows) * (2 * width + kLanes * kLanes + kKeys + kLanes + 1));
    float *queries = space.take(round_up(rows) * width), *state = space.take(rows * width), *products = space.take(rows * kLanes * kLanes);
    float *scores = space.take(rows * kKeys), *totals = space.take(rows * kLanes), *top = space.take(rows);
    pack(rows, p.D, width, p.scale * kLog2E, queries, [&](int64_t i) { return q + row_at(query, g_begin, i); });
    std::fill(state, state + rows * width, 0.0f);
    std::fill(totals, totals + rows * kLanes, 0.0f);
    std::fill(top, top + rows, -kInfinity);
    // Of few heads less is read for each key: more keys are asked for ahead.
    const int64_t ahead = std::max<int64_t>(2, kAhead / (heads * p.D * sizeof(C))) * p.stride;
    for (int64_t first = 0; first < n; first += kKeys) {
      const int64_t block = std::min(kKeys, n - first);
      const C *key = keys + key_at(query, g_begin, first), *value = values + key_at(query, g_begin, first);
      for (int64_t k = 0; k < block; k += kLanes) {
        const int64_t some = std::min<int64_t>(kLanes, block - k);
        for (int64_t j = 0; j < some; ++j, key += p.stride) multiply_key(heads, key, ahead, queries, products + j * kLanes);
        for (int64_t row = 0; row < rows; ++row) store(scores + row * kKeys + k, sum_each(products + row * kLanes * kLanes));
      }
      for (int64_t row = 0; row < rows; ++row)
        softmax(block, scores + row * kKeys, top + row, totals + row * kLanes, width, state + row * width);
      int64_t k = 0;
      for (; k + 4 <= block; k += 4, value += 4 * p.stride) add_values<4>(heads, value, 2 * ahead, scores + k, state);
      for (; k < block; ++k, value += p.stride) add_values<1>(heads, value, 2 * ahead, scores + k, state);
    }
    for (int64_t row = 0; row < rows; ++row) write(query, g_begin, row, state + row * width, totals + row * kLanes);
  }

  // Asks for what is needed some keys later: a key of all heads often fills a page, where the processor's own prefetch ends.
  ASCEND_OPS_INLINE Vec load_ahead(const C *from, int64_t ahead) const {
    __builtin_prefetch(from + ahead);
    return load(from);
  }

  // The products of one key with the queries of its heads, still to be summed over the lanes.
  ASCEND_OPS_INLINE void multiply_key(int64_t heads, const C *key, int64_t ahead, const float *queries, float *products) const {
    for (int64_t g = 0; g < heads; ++g, key += p.D)
      for (int64_t r = 0; r < p.group; ++r, queries += p.width, products += kLanes * kLanes) {
        Vec total{};
        int64_t d = 0;
        for (; d + kLanes <= p.D; d += kLanes) total += load_ahead(key + d, ahead) * load(queries + d);
        if (d < p.D) total += load(key + d, p.D - d) * load(queries + d);
        store(products, total);
      }
  }

  // state += the values of K keys times their probabilities
  template <int K>
  ASCEND_OPS_INLINE void add_values(int64_t heads, const C *value, int64_t ahead, const float *scores, float *state) const {
    for (int64_t g = 0; g < heads; ++g, value += p.D)
      for (int64_t r = 0; r < p.group; ++r, scores += kKeys, state += p.width) {
        int64_t d = 0;
        for (; d + kLanes <= p.D; d += kLanes) {
          Vec sum = load(state + d);
#pragma GCC unroll 4
          for (int k = 0; k < K; ++k) sum += load_ahead(value + k * p.stride + d, ahead) * scores[k];
          store(state + d, sum);
        }
        if (d == p.D) continue;
        Vec sum = load(state + d);
        for (int k = 0; k < K; ++k) sum += load(value + k * p.stride + d, p.D - d) * scores[k];
        store(state + d, sum);
      }
  }

  // Up to 64 rows of queries of one slot, for one KV head: each block of keys is packed once for all of them.
  void tile(int64_t query, int64_t count, int64_t g) const {
    const int64_t rows = count * p.group, width = p.width;
    Scratch space = Scratch::of(kRows * (2 * width + kKeys + kLanes + 3) + kKeys * 2 * width);
    float *q_t = space.take(kRows * width), *state = space.take(kRows * width), *scores = space.take(kRows * kKeys);
    float *totals = space.take(kRows * kLanes), *top = space.take(kRows), *shrink = space.take(kRows);
    float *block_keys = space.take(kKeys * width), *block_values = space.take(kKeys * width);
    int32_t *seen = reinterpret_cast<int32_t *>(space.take(kRows));
    pack(rows, p.D, width, p.scale * kLog2E, state, [&](int64_t i) { return q + row_at(query + i / p.group, g, i % p.group); });
    transpose(round_up(rows), width, state, width, q_t, kRows);
    std::fill(state, state + kRows * width, 0.0f);
    std::fill(totals, totals + kRows * kLanes, 0.0f);
    std::fill(top, top + kRows, -kInfinity);
    int64_t shortest = INT64_MAX, longest = 0;
    for (int64_t i = 0; i < count; ++i) shortest = std::min(shortest, p.seen(query + i)), longest = std::max(longest, p.seen(query + i));
    for (int64_t first = 0; first < longest; first += kKeys) {
      const int64_t n = std::min(kKeys, longest - first);
      const bool masked = first + n > shortest;
      for (int64_t row = 0; row < kRows; ++row) seen[row] = static_cast<int32_t>(p.seen(query + std::min(row, rows - 1) / p.group) - first);
      pack(n, p.D, width, 1.0f, block_keys, [&](int64_t j) { return keys + key_at(query, g, first + j); });
      pack(n, p.D, width, 1.0f, block_values, [&](int64_t j) { return values + key_at(query, g, first + j); });
      score(n, round_up(rows), p.D, block_keys, width, q_t, scores);
      softmax_of_rows(rows, n, seen, masked, scores, top, totals, shrink);
      for (int64_t row = 0; row < rows; ++row)
        if (shrink[row] != 1.0f) scale(width, shrink[row], state + row * width);
      if (!masked) multiply<true>(rows, width, n, scores, kRows, block_values, width, state, width, true);
      for (int64_t i = 0; masked && i < count; ++i) {  // no row reads a value that it does not see, which may be NaN
        const int64_t row = i * p.group, some = std::min<int64_t>(n, seen[row]);
        if (some > 0) multiply<true>(p.group, width, some, scores + row, kRows, block_values, width, state + row * width, width, true);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      float lanes[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = totals[lane * kRows + row];
      write(query + row / p.group, g, row % p.group, state + row * width, lanes);
    }
  }

  __attribute__((noinline)) void write(int64_t query, int64_t g, int64_t row, const float *state, const float *totals) const {
    unpack_row(state, p.D, 1.0f / sum(load(totals)), out + row_at(query, g, row));
  }
};

// The queries in tasks, the longest first. Those of one slot that follow each other, the chunk of a prompt, form tiles.
std::vector<Task> tasks_of(const Step &p) {
  const int64_t most = std::max<int64_t>(1, kRows / p.group);
  std::vector<Task> whole, tasks;
  int64_t total = 0;
  for (int64_t i = 0; i < p.Q;) {
    int64_t count = 1, longest = p.seen(i);
    while (i + count < p.Q && p.slots[i + count] == p.slots[i]) ++count;
    const bool tiled = p.slots[i] < 0 || count * p.group >= kLeastTileRows;
    count = !tiled ? 1 : p.slots[i] < 0 ? count : std::min(count, most);
    for (int64_t j = 1; j < count; ++j) longest = std::max(longest, p.seen(i + j));
    whole.push_back({i, count, 0, p.G, count * longest * p.group * p.stride});
    total += whole.back().work;
    i += count;
  }
  const int64_t least = std::max<int64_t>(kGrain, total / (4 * num_threads()));
  for (const Task &task : whole) {
    const int64_t parts = std::clamp<int64_t>(task.work / least, 1, p.G);
    for (int64_t i = 0; i < parts; ++i) tasks.push_back({task.query, task.count, p.G * i / parts, p.G * (i + 1) / parts, task.work / parts});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task &a, const Task &b) { return a.work > b.work; });
  return tasks;
}

// Copies values, rounded to the type of the cache.
template <typename T, typename C>
void copy_row(const T *from, int64_t count, C *to) {
  for (int64_t d = 0; d < count; d += kLanes) store_upto(to + d, load_upto(from + d, count - d), count - d);
}
template <typename T>
void copy_row(const T *from, int64_t count, T *to) {
  std::copy_n(from, count, to);
}

template <typename T, typename C>
void copy_rows(const Step &p, const Tensor &rows, const int32_t *positions, const int32_t *slots, int64_t count, C *cache) {
  for (int64_t i = 0; i < count; ++i)
    if (slots[i] >= 0) copy_row(rows.as<T>() + i * p.stride, p.stride, cache + (slots[i] * p.R + positions[i]) * p.stride);
}

// Calls f(T{}, C{}) with the types of the queries and of the cache.
template <typename F>
void with_types(const Tensor &q, const Tensor &keys, F f) {
  if (!std::strcmp(q.dtype, "float32")) return with_type(keys, [&](auto c) { f(float{}, c); });
  require(!std::strcmp(q.dtype, keys.dtype), "keys and values must have the dtype of q, unless it is float32");
  with_type(q, [&](auto t) { f(t, t); });
}

void cached_attention(const Call &call) {
  enum { Q, K, V, KEYS, VALUES, POSITIONS, SLOTS, QUERY_POSITIONS, QUERY_SLOTS, ATTRIBUTES, OUT };
  const Tensor q = call[Q], keys = call[KEYS];
  const float *attributes = call[ATTRIBUTES].as<float>();
  const int64_t rows = call[POSITIONS].size();
  Step p{};
  p.scale = attributes[0], p.H = static_cast<int64_t>(attributes[1]), p.S = static_cast<int64_t>(attributes[2]);
  require(keys.rank == 2 && keys.size() > 0 && call[VALUES].size() == keys.size() && !std::strcmp(keys.dtype, call[VALUES].dtype),
          "keys and values must be [rows, width] of one dtype");
  require(p.S > 0 && keys.dim(0) % p.S == 0, "keys must have as many rows for each slot");
  p.R = keys.dim(0) / p.S, p.stride = keys.dim(1), p.Q = call[QUERY_POSITIONS].size();
  require(p.Q > 0 && p.H > 0 && q.size() > 0 && q.size() % (p.Q * p.H) == 0, "q must have a row of heads for each query position");
  p.D = q.size() / (p.Q * p.H), p.G = p.stride / p.D;
  require(p.G > 0 && p.G * p.D == p.stride && p.H % p.G == 0, "a row of the cache must hold heads of the size of those of q, whose number divides theirs");
  require(call[K].size() == rows * p.stride && call[V].size() == rows * p.stride, "k and v must have a row for each position");
  require(call[SLOTS].size() == rows && call[QUERY_SLOTS].size() == p.Q, "slots must be as many as positions");
  p.group = p.H / p.G, p.width = round_up(p.D);
  for (int port : {POSITIONS, QUERY_POSITIONS}) {
    const int32_t *positions = call[port].as<int32_t>(), *slots = call[port + 1].as<int32_t>();
    for (int64_t i = 0; i < call[port].size(); ++i)
      require(slots[i] < 0 || (slots[i] < p.S && positions[i] >= 0 && positions[i] < p.R - 1), "a position is outside of its slot, or there is no such slot");
  }
  p.positions = call[QUERY_POSITIONS].as<int32_t>(), p.slots = call[QUERY_SLOTS].as<int32_t>();
  with_types(q, keys, [&](auto t, auto c) {
    using T = decltype(t);
    using C = decltype(c);
    const int32_t *positions = call[POSITIONS].as<int32_t>(), *slots = call[SLOTS].as<int32_t>();
    copy_rows<T>(p, call[K], positions, slots, rows, keys.as<C>());
    copy_rows<T>(p, call[V], positions, slots, rows, call[VALUES].as<C>());
    const Attend<T, C> attend{p, q.as<T>(), keys.as<C>(), call[VALUES].as<C>(), call[OUT].as<T>()};
    const std::vector<Task> tasks = tasks_of(p);
    int64_t work = 0;
    for (const Task &task : tasks) work += task.work;
    if (work < 2 * kGrain)
      for (const Task &task : tasks) attend.run(task);
    else parallel_tasks(tasks.size(), [&](int64_t i) { attend.run(tasks[i]); });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(CachedAttention, ascend_ops::cached_attention)
