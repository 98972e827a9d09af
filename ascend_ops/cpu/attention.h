// What the attention kernels share: products of small matrices, which keys a query sees, blocks packed as float32.
//
// The query heads that share a KV head form one matrix of `rows` = (position, head of the group). A block of rows meets blocks of keys; both are
// packed into buffers that stay in the cache. Scores are in units of log2, since 2^x is cheaper than e^x.
#pragma once

#include <algorithm>
#include <climits>
#include <cmath>
#include <vector>

#include "dropout.h"
#include "kernel.h"
#include "parallel.h"
#include "vector.h"

namespace ascend_ops {
namespace attention {

constexpr int64_t kRows = 64, kKeys = 64;  // a block: 64 x 64 scores are 16 KB
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_inff();

// Source: minimax fit of 2^r on [-1/2, 1/2], relative error 8e-8. Below 2^-126 the result is 0; x > 127 does not occur. NaN stays.
ASCEND_OPS_INLINE Vec exp2(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
  const Vec whole = (x + kRound) - kRound, r = x - whole;
  Vec p = r * 1.3276470126584172e-3f + 9.675540961325169e-3f;
  p = p * r + 5.550713092088699e-2f;
  p = p * r + 2.4022120237350464e-1f;
  p = p * r + 6.931469440460205e-1f;
  p = p * r + 1.0000001192092896f;
  const Vec y = bit_cast<Vec>(bit_cast<IntVec>(p) + (__builtin_convertvector(whole, IntVec) << 23));
  return x < -126.0f ? Vec{} : y;
}

ASCEND_OPS_INLINE IntVec load_int(const int32_t *p) {
  IntVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// ---- matrix products

// A vector of one register, and the tile of sums that fits the registers beside a line of `b`: wider vectors would go through memory.
#if defined(__AVX512F__)
constexpr int kNative = 16, kTileVectors = 4, kTileRows = 6;
#elif defined(__AVX__)
constexpr int kNative = 8, kTileVectors = 2, kTileRows = 6;
#elif defined(__aarch64__)
constexpr int kNative = 4, kTileVectors = 4, kTileRows = 6;
#else
constexpr int kNative = 4, kTileVectors = 2, kTileRows = 4;
#endif
typedef float Native __attribute__((vector_size(kNative * sizeof(float))));

ASCEND_OPS_INLINE Native load_native(const float *p) {
  Native v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// c[m][n] = (add ? c[m][n] : 0) + sum over k of a(m, k) * b[k][n] for M rows and N vectors, sums in registers. a(m, k) stands at a[m * lda + k], or
// at a[k * lda + m] if transposed.
template <bool kTransposed, int M, int N>
ASCEND_OPS_INLINE void tile(int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
  Native sums[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sums[m][n] = add ? load_native(c + m * ldc + n * kNative) : Native{};
  for (int64_t k = 0; k < depth; ++k) {
    Native line[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) line[n] = load_native(b + k * ldb + n * kNative);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const float factor = kTransposed ? a[k * lda + m] : a[m * lda + k];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] += line[n] * factor;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) std::memcpy(c + m * ldc + n * kNative, &sums[m][n], sizeof(Native));
}

template <bool kTransposed, int N>
void columns(int64_t rows, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
  constexpr int M = kTileRows * kTileVectors / N > 12 ? 12 : kTileRows * kTileVectors / N;  // fewer vectors, more rows
  const int64_t step = kTransposed ? 1 : lda;
  int64_t m = 0;
  for (; m + M <= rows; m += M) tile<kTransposed, M, N>(depth, a + m * step, lda, b, ldb, c + m * ldc, ldc, add);
  for (; m + 4 <= rows; m += 4) tile<kTransposed, 4, N>(depth, a + m * step, lda, b, ldb, c + m * ldc, ldc, add);
  for (; m < rows; ++m) tile<kTransposed, 1, N>(depth, a + m * step, lda, b, ldb, c + m * ldc, ldc, add);
}

// c [rows, width] = or += a [rows, depth] b [depth, width] for a width of whole Vecs; a is stored [depth, rows] if transposed.
template <bool kTransposed>
void multiply(int64_t rows, int64_t width, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
  constexpr int64_t kTile = kTileVectors * kNative;
  for (; width >= kTile; width -= kTile, b += kTile, c += kTile) columns<kTransposed, kTileVectors>(rows, depth, a, lda, b, ldb, c, ldc, add);
#if defined(__AVX512F__)  // elsewhere a Vec is one or two tiles
  if (width == 3 * kLanes) columns<kTransposed, 3>(rows, depth, a, lda, b, ldb, c, ldc, add);
  if (width == 2 * kLanes) columns<kTransposed, 2>(rows, depth, a, lda, b, ldb, c, ldc, add);
  if (width == kLanes) columns<kTransposed, 1>(rows, depth, a, lda, b, ldb, c, ldc, add);
#endif
}

#if defined(__AVX512F__)
constexpr IntVec kInterleave = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
ASCEND_OPS_INLINE Vec interleave_low(Vec a, Vec b) { return __builtin_shuffle(a, b, kInterleave); }
ASCEND_OPS_INLINE Vec interleave_high(Vec a, Vec b) { return __builtin_shuffle(a, b, kInterleave + 8); }

// to[c][r] = from[r][c] for 16 x 16 values: four rounds that interleave row i with row i + 8
ASCEND_OPS_INLINE void transpose_tile(const float *from, int64_t ld_from, float *to, int64_t ld_to) {
  Vec a[kLanes], b[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) a[i] = load(from + i * ld_from);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) b[2 * i] = interleave_low(a[i], a[i + 8]), b[2 * i + 1] = interleave_high(a[i], a[i + 8]);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(to + i * ld_to, a[i]);
}

// Lane i of the result is the sum of the lanes of the i-th of 16 vectors: the same rounds with sums.
ASCEND_OPS_INLINE Vec sum_each(const float *vectors) {
  Vec v[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) v[i] = load(vectors + i * kLanes);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) v[i] = interleave_low(v[i], v[i + half]) + interleave_high(v[i], v[i + half]);
  return v[0];
}
#else  // without shuffles of whole vectors one value at a time is faster
inline void transpose_tile(const float *from, int64_t ld_from, float *to, int64_t ld_to) {
  for (int c = 0; c < kLanes; ++c)
    for (int r = 0; r < kLanes; ++r) to[c * ld_to + r] = from[r * ld_from + c];
}

inline Vec sum_each(const float *vectors) {
  float sums[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = sum(load(vectors + i * kLanes));
  return load(sums);
}
#endif

inline int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// to [width, n] = from [n, width], both padded to whole vectors
inline void transpose(int64_t n, int64_t width, const float *from, int64_t ld_from, float *to, int64_t ld_to) {
  for (int64_t r = 0; r < n; r += kLanes)
    for (int64_t c = 0; c < width; c += kLanes) transpose_tile(from + r * ld_from + c, ld_from, to + c * ld_to + r, ld_to);
}

// ---- the problem

struct Range {  // of indices and segments of a block
  int32_t first_index = INT_MAX, last_index = INT_MIN, first_segment = INT_MAX, last_segment = INT_MIN;
};

enum class Visible { kNone, kSome, kAll };

inline Visible visible(const Range &rows, const Range &keys) {
  if (keys.first_index > rows.last_index || keys.first_segment > rows.last_segment || keys.last_segment < rows.first_segment) return Visible::kNone;
  const bool one_segment = std::min(rows.first_segment, keys.first_segment) == std::max(rows.last_segment, keys.last_segment);
  return one_segment && keys.last_index <= rows.first_index ? Visible::kAll : Visible::kSome;
}

struct Positions {  // index and segment of each position of a stream, [B, length]
  const int32_t *index, *segment;
  int64_t length;

  // ranges [B, blocks] of blocks of `size` rows, `group` of which share a position
  std::vector<Range> ranges(int64_t batch, int64_t group, int64_t size) const {
    const int64_t blocks = (length * group + size - 1) / size;
    std::vector<Range> found(batch * blocks);
    for (int64_t i = 0; i < batch * blocks; ++i) {
      const int64_t b = i / blocks, begin = i % blocks * size, end = std::min(begin + size, length * group);
      for (int64_t at = b * length + begin / group; at <= b * length + (end - 1) / group; ++at) {
        found[i].first_index = std::min(found[i].first_index, index[at]), found[i].last_index = std::max(found[i].last_index, index[at]);
        found[i].first_segment = std::min(found[i].first_segment, segment[at]), found[i].last_segment = std::max(found[i].last_segment, segment[at]);
      }
    }
    return found;
  }
};

struct Problem {
  int64_t B, Q, K, H, G, D, group, width, rows, row_blocks, key_blocks;  // width: D in whole vectors
  float scale;
  Positions queries, keys;
  std::vector<Range> row_ranges, key_ranges;
  DropoutMask dropout;  // of the probabilities, by their place in [B, H, Q, K]

  int64_t query_at(int64_t b, int64_t g, int64_t row) const { return ((b * Q + row / group) * H + g * group + row % group) * D; }
  int64_t key_at(int64_t b, int64_t g, int64_t key) const { return ((b * K + key) * G + g) * D; }
  int64_t statistic_at(int64_t b, int64_t g, int64_t row) const { return (b * H + g * group + row % group) * Q + row / group; }
  uint32_t probability_at(int64_t b, int64_t g, int64_t row) const { return static_cast<uint32_t>(statistic_at(b, g, row) * K); }
  // which of the n <= 16 keys from `key` on a query sees
  ASCEND_OPS_INLINE IntVec visible_keys(int64_t b, int64_t query, int64_t key, int64_t n) const {
    const int32_t *from_index = keys.index + b * K + key, *from_segment = keys.segment + b * K + key;
    IntVec index{}, segment{};
    if (n == kLanes) {
      index = load_int(from_index), segment = load_int(from_segment);
    } else {
      std::memcpy(&index, from_index, n * sizeof(int32_t));
      std::memcpy(&segment, from_segment, n * sizeof(int32_t));
    }
    return (index <= queries.index[b * Q + query]) & (segment == queries.segment[b * Q + query]);
  }
  Visible sees(int64_t b, int64_t row_block, int64_t key_block) const {
    return visible(row_ranges[b * row_blocks + row_block], key_ranges[b * key_blocks + key_block]);
  }
};

// The inputs of a call from `first` on: q, k, v, q_index, k_index, q_segment, k_segment, heads, dropout_seed; then the attributes scale and
// dropout_rate. The last two dimensions of q, k and v may be one.
inline Problem make_problem(const Call &call, int first, int attributes) {
  const Tensor q = call[first], k = call[first + 1], v = call[first + 2];
  const int64_t heads = call[first + 7].size();
  require(q.rank >= 3 && k.rank >= 3 && q.size() > 0 && k.size() > 0 && heads > 0, "q, k and v must be [batch, length, heads, head size]");
  Problem p{};
  p.dropout = DropoutMask(*call[first + 8].as<int32_t>(), call[attributes].as<float>()[1]);
  p.B = q.dim(0), p.Q = q.dim(1), p.H = heads, p.D = q.size() / (p.B * p.Q * heads), p.K = k.dim(1);
  p.G = p.D ? k.size() / (k.dim(0) * p.K * p.D) : 0;
  require(p.G > 0 && p.H % p.G == 0 && q.size() == p.B * p.Q * p.H * p.D && k.size() == p.B * p.K * p.G * p.D,
          "k must have the batch and head size of q, and its heads must divide those of q");
  require(v.rank == k.rank && v.size() == k.size(), "k and v must have the same shape");
  for (int i = 0; i < 4; ++i)
    require(call[first + 3 + i].size() == p.B * (i % 2 ? p.K : p.Q), "indices and segments must be [batch, length]");
  p.group = p.H / p.G, p.width = round_up(p.D), p.rows = p.Q * p.group, p.scale = call[attributes].as<float>()[0];
  p.row_blocks = (p.rows + kRows - 1) / kRows, p.key_blocks = (p.K + kKeys - 1) / kKeys;
  p.queries = {call[first + 3].as<int32_t>(), call[first + 5].as<int32_t>(), p.Q};
  p.keys = {call[first + 4].as<int32_t>(), call[first + 6].as<int32_t>(), p.K};
  p.row_ranges = p.queries.ranges(p.B, p.group, kRows), p.key_ranges = p.keys.ranges(p.B, 1, kKeys);
  return p;
}

// ---- blocks

// Buffers of one thread, kept from call to call.
class Scratch {
 public:
  float *take(int64_t count) {
    float *taken = at_;
    at_ += round_up(count);
    return taken;
  }
  static Scratch of(int64_t count) {
    thread_local std::vector<float> memory;
    if (memory.size() < static_cast<size_t>(count + kLanes)) memory = std::vector<float>(count + kLanes);
    return Scratch(reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64));
  }

 private:
  explicit Scratch(float *memory) : at_(memory) {}
  float *at_;
};

// n vectors of D values times `factor`, the i-th at source(i), as float32 rows of `width`; rows of zeros up to a whole vector of rows
template <typename Source>
ASCEND_OPS_INLINE void pack(int64_t n, int64_t D, int64_t width, float factor, float *to, const Source &source) {
  const int64_t whole = D / kLanes * kLanes;
  for (int64_t i = 0; i < n; ++i, to += width) {
    const auto *from = source(i);
    for (int64_t d = 0; d < whole; d += kLanes) store(to + d, load(from + d) * factor);
    if (whole < D) store(to + whole, load(from + whole, D - whole) * factor);
  }
  std::fill(to, to + (round_up(n) - n) * width, 0.0f);
}

template <typename T>
ASCEND_OPS_INLINE void unpack_row(const float *from, int64_t D, float factor, T *to) {
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) store(to + d, load(from + d) * factor);
  if (d < D) store(to + d, load(from + d) * factor, D - d);
}

}  // namespace attention
}  // namespace ascend_ops
