// y = activation(x W^T + bias) with weights that were packed once, and rows of the same weights as an embedding.
//
// A packed weight of [out, in] is [blocks of 16 outputs][lines][16 outputs][inputs of a line]. A line is 64 bytes, which hold 1 (float32), 2 (bfloat16)
// or 4 (uint8) consecutive inputs of 16 outputs; what the last block and line lack is 0. A product walks the lines of a block in order and keeps the
// sums of several rows and blocks in registers, so that there are no horizontal sums. The terms of a sum are added in the order of the inputs in every
// tile: the bits of a row of y depend on its row of x alone.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "activations.h"
#include "kernel.h"
#include "onednn.h"
#include "parallel.h"
#include "vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ascend_ops {
namespace {

// Part: a vector of the processor's own width (of wider ones the compiler keeps sums in memory). kTileRows x kTileBlocks x kParts of them are sums.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kTileRows = 6, kTileBlocks = 4;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kTileRows = 6, kTileBlocks = 1;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kWidth = 4, kTileRows = 6, kTileBlocks = 1;  // 24 of 32
#else
constexpr int kWidth = 4, kTileRows = 2, kTileBlocks = 1;  // 8 of 16
#endif
constexpr int kParts = kLanes / kWidth;
typedef float Part __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntPart __attribute__((vector_size(4 * kWidth)));
typedef uint32_t UintPart __attribute__((vector_size(4 * kWidth)));
typedef int16_t ShortPart __attribute__((vector_size(4 * kWidth)));

template <typename P>
ASCEND_OPS_INLINE P load_part(const void *p) {
  P part;
  std::memcpy(&part, p, sizeof(part));
  return part;
}
template <typename P>
ASCEND_OPS_INLINE void store_part(void *p, P part) {
  std::memcpy(p, &part, sizeof(part));
}

constexpr int64_t kLine = 64;  // bytes
template <typename W>
constexpr int kInputs = 4 / sizeof(W);  // of a line

// Input i of a line for kWidth outputs.
ASCEND_OPS_INLINE Part weights(UintPart words, int, float) { return bit_cast<Part>(words); }
ASCEND_OPS_INLINE Part weights(UintPart words, int i, Bfloat16) { return bit_cast<Part>(i ? words & 0xffff0000u : words << 16); }
ASCEND_OPS_INLINE Part weights(UintPart words, int i, uint8_t) { return __builtin_convertvector(bit_cast<IntPart>(words >> 8 * i & 0xffu) - 128, Part); }

// ---- float32 and bfloat16: x is [inputs][kRows]

template <typename W, int kRows, int kBlocks>
void multiply(const float *x, const char *w, int64_t block_bytes, int64_t lines, float *sums) {
  Part s[kRows][kBlocks][kParts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) s[r][b][p] = load_part<Part>(sums + (r * kBlocks + b) * kLanes + p * kWidth);
  for (int64_t line = 0; line < lines; ++line) {
    UintPart words[kBlocks][kParts];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) words[b][p] = load_part<UintPart>(w + b * block_bytes + line * kLine + p * 4 * kWidth);
#pragma GCC unroll 4
    for (int i = 0; i < kInputs<W>; ++i) {
      Part wide[kBlocks][kParts];
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) wide[b][p] = weights(words[b][p], i, W{});
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Part v = Part{} + x[(line * kInputs<W> + i) * kRows + r];
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
          for (int p = 0; p < kParts; ++p) s[r][b][p] += v * wide[b][p];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) store_part(sums + (r * kBlocks + b) * kLanes + p * kWidth, s[r][b][p]);
}

using Multiply = void (*)(const float *, const char *, int64_t, int64_t, float *);

template <typename W, int kBlocks>
Multiply tile_of(int64_t rows) {
  switch (rows) {
    case 1: return multiply<W, 1, kBlocks>;
    case 2: return multiply<W, 2, kBlocks>;
#if defined(__AVX2__) || defined(__aarch64__)
    case 3: return multiply<W, 3, kBlocks>;
    case 4: return multiply<W, 4, kBlocks>;
    case 5: return multiply<W, 5, kBlocks>;
    case 6: return multiply<W, 6, kBlocks>;
#endif
  }
  return nullptr;
}

// The rows of x in tiles of nearly equal height.
struct Tiles {
  explicit Tiles(int64_t m) : rows(m), count((m + kTileRows - 1) / kTileRows) {}
  int64_t rows, count;
  int64_t first(int64_t tile) const { return rows * tile / count; }
  int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
};

// What a product is made of. The bias may be null.
struct Product {
  const char *weight;
  int64_t lines, k, n;
  const float *scale, *bias;
  int activation;  // -1 for none
  int64_t blocks() const { return (n + kLanes - 1) / kLanes; }
  int64_t block_bytes() const { return lines * kLine; }
};

constexpr int64_t kChunk = 256;  // lines: those of four blocks stay in the second cache while tile after tile reads them

template <typename W>
class FloatRows {
 public:
  template <typename T>
  FloatRows(const T *x, int64_t m, const Product &product) : tiles_(m), inputs_(product.lines * kInputs<W>), panels_(m * inputs_ * sizeof(float)) {
    parallel_ranges(tiles_.count, std::max<int64_t>(1, kGrain / (inputs_ * kTileRows)), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) interleave(x + tiles_.first(t) * product.k, tiles_.height(t), product.k, panel(t));
    });
  }
  const Tiles &tiles() const { return tiles_; }

  template <int kBlocks>
  void columns(const char *w, const Product &product, float *sums) const {
    const int64_t chunk = tiles_.count == 1 ? product.lines : kChunk;
    for (int64_t line = 0; line < product.lines; line += chunk)
      for (int64_t t = 0; t < tiles_.count; ++t) {
        const int64_t height = tiles_.height(t);
        tile_of<W, kBlocks>(height)(panel(t) + line * kInputs<W> * height, w + line * kLine, product.block_bytes(), std::min(chunk, product.lines - line),
                                    sums + tiles_.first(t) * kBlocks * kLanes);
      }
  }

 private:
  float *panel(int64_t tile) const { return panels_.as<float>() + tiles_.first(tile) * inputs_; }

  template <typename T>
  void interleave(const T *x, int64_t height, int64_t k, float *panel) const {
    for (int64_t r = 0; r < height; ++r)
      for (int64_t i = 0; i < inputs_; i += kLanes) {
        float values[kLanes];
        store(values, i < k ? load_upto(x + r * k + i, k - i) : Vec{});
        for (int64_t j = 0; j < std::min<int64_t>(kLanes, inputs_ - i); ++j) panel[(i + j) * height + r] = values[j];
      }
  }

  Tiles tiles_;
  int64_t inputs_;
  Workspace panels_;
};

// ---- all

struct Identity {
  static ASCEND_OPS_INLINE Activated at(Vec u) { return {u, Vec{}}; }
};

// Columns from `column` of y from sums [rows][blocks * 16].
template <typename T, typename Activation>
void finish(const Product &product, int64_t rows, int64_t blocks, int64_t column, const float *sums, T *y) {
  for (int64_t b = 0; b < blocks; ++b, column += kLanes) {
    const int64_t valid = product.n - column;
    const Vec bias = product.bias ? load_upto(product.bias + column, valid) : Vec{}, scale = load_upto(product.scale + column, valid);
    for (int64_t r = 0; r < rows; ++r)
      store_upto(y + r * product.n + column, Activation::at(load(sums + (r * blocks + b) * kLanes) * scale + bias).value, valid);
  }
}

template <typename T>
using Finish = void (*)(const Product &, int64_t, int64_t, int64_t, const float *, T *);

template <typename T>
Finish<T> finish_of(int activation) {
  if (activation < 0) return finish<T, Identity>;
  Finish<T> found = nullptr;
  with_activation(activation, [&](auto a) { found = finish<T, decltype(a)>; });
  return found;
}

template <typename Rows, typename T>
void multiply_rows(const T *rows, int64_t m, const Product &product, T *y) {
  const Rows x(rows, m, product);
  const Finish<T> finish = finish_of<T>(product.activation);
  parallel_ranges(product.blocks(), std::max<int64_t>(1, kGrain / (kLanes * product.k)), [&](int64_t, int64_t begin, int64_t end) {
    const Workspace workspace(m * kTileBlocks * kLanes * sizeof(float));
    float *const sums = workspace.as<float>();
    auto columns = [&](int64_t block, auto blocks) {
      std::fill_n(sums, m * blocks * kLanes, 0.0f);
      x.template columns<blocks>(product.weight + block * product.block_bytes(), product, sums);
      finish(product, m, blocks, block * kLanes, sums, y);
    };
    int64_t block = begin;
    for (; block + kTileBlocks <= end; block += kTileBlocks) columns(block, std::integral_constant<int, kTileBlocks>{});
    for (; block < end; ++block) columns(block, std::integral_constant<int, 1>{});
  });
}

// Calls f(W{}) with the element type of a packed weight.
template <typename F>
void with_packed(const Tensor &weight, F f) {
  if (!std::strcmp(weight.dtype, "float32")) return f(float{});
  if (!std::strcmp(weight.dtype, "bfloat16")) return f(Bfloat16{});
  if (!std::strcmp(weight.dtype, "uint8")) return f(uint8_t{});
  throw std::invalid_argument("a packed weight is float32, bfloat16 or uint8");
}

template <typename W>
void require_packed(const Tensor &weight, int64_t n, int64_t k) {
  require(weight.rank == 4 && weight.dim(2) == kLanes && weight.dim(3) == kInputs<W> && weight.dim(0) == (n + kLanes - 1) / kLanes &&
              weight.dim(1) == (k + kInputs<W> - 1) / kInputs<W>,
          "weight must be packed from [out, in], with a scale for each of out and in channels of x");
}

void packed_linear(const Call &call) {
  enum { X, WEIGHT, SCALE, BIAS, ACTIVATION, Y };
  const Tensor x = call[X], weight = call[WEIGHT], bias = call[BIAS];
  const int64_t n = call[SCALE].size(), k = x.last();
  require(x.size() > 0 && n > 0, "no dimension may be 0");
  require(bias.size() == n || bias.size() == 1, "bias must be [out], or [1] for none");
  Product product{weight.as<char>(), weight.dim(1), k, n, call[SCALE].as<float>(), bias.size() == n ? bias.as<float>() : nullptr,
                  static_cast<int>(call[ACTIVATION].as<float>()[0])};
  with_packed(weight, [&](auto w) {
    require_packed<decltype(w)>(weight, n, k);
    with_type(x, [&](auto t) { multiply_rows<FloatRows<decltype(w)>>(x.as<decltype(t)>(), x.rows(), product, call[Y].as<decltype(t)>()); });
  });
}

template <typename W>
ASCEND_OPS_INLINE float number(W w) {
  return to_float(w);
}
ASCEND_OPS_INLINE float number(uint8_t w) { return static_cast<float>(w - 128); }

// y[i] = row ids[i] of the weight, in float32
template <typename W>
void copy_row(const Tensor &weight, int64_t id, float scale, int64_t k, float *y) {
  constexpr int kStep = kInputs<W>;
  const W *const block = weight.as<W>() + id / kLanes * weight.dim(1) * kLanes * kStep + id % kLanes * kStep;
  for (int64_t i = 0; i < k; ++i) y[i] = number(block[i / kStep * kLanes * kStep + i % kStep]) * scale;
}

void packed_rows(const Call &call) {
  enum { IDS, WEIGHT, SCALE, CHANNELS, Y };
  const Tensor ids = call[IDS], weight = call[WEIGHT];
  const int64_t n = call[SCALE].size(), k = call[CHANNELS].size();
  const int32_t *const id = ids.as<int32_t>();
  for (int64_t i = 0; i < ids.size(); ++i) require(id[i] >= 0 && id[i] < n, "ids must be rows of the weight, 0 to out - 1");
  with_packed(weight, [&](auto w) {
    require_packed<decltype(w)>(weight, n, k);
    parallel_ranges(ids.size(), std::max<int64_t>(1, kGrain / k), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) copy_row<decltype(w)>(weight, id[i], call[SCALE].as<float>()[id[i]], k, call[Y].as<float>() + i * k);
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(PackedLinear, ascend_ops::packed_linear)
ASCEND_OPS_KERNEL(PackedRows, ascend_ops::packed_rows)
