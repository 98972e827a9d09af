// y = activation(x W^T + bias) with weights that were packed once, several such products of one x, phi(x G^T) * (x U^T), and rows of the same
// weights as an embedding.
//
// A packed weight of [out, in] is [blocks of 16 outputs][lines][16 outputs][inputs of a line]. A line is 64 bytes, which hold 1 (float32), 2 (bfloat16)
// or 4 (uint8) consecutive inputs of 16 outputs; what the last block and line lack is 0. A product walks the lines of a block in order and keeps the
// sums of several rows and blocks in registers, so that there are no horizontal sums. The terms of a sum are added in the order of the inputs in every
// tile: the bits of a row of y depend on its row of x alone.
//
// For a weight of uint8 (int8 plus 128) x is rounded to int8, too, with a scale for each kChunk<uint8_t> lines of a row: the sums of such a group are
// exact integers, the same on every processor.
#include <algorithm>
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

// Part: a vector of the processor's own width; of wider ones the compiler keeps sums in memory. A tile of up to kTileRows rows has kTileBlocks blocks,
// or kTallBlocks with more than kLowRows rows: then its sums fill most registers, and few rows still read several blocks side by side.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kTileRows = 8, kLowRows = 6, kTileBlocks = 4, kTallBlocks = 3;  // 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kTileRows = 6, kLowRows = 6, kTileBlocks = 1, kTallBlocks = 1;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kWidth = 4, kTileRows = 6, kLowRows = 6, kTileBlocks = 1, kTallBlocks = 1;  // 24 of 32
#else
constexpr int kWidth = 4, kTileRows = 2, kLowRows = 2, kTileBlocks = 1, kTallBlocks = 1;  // 8 of 16
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

constexpr int64_t kLine = 64;  // bytes
template <typename W>
constexpr int64_t kInputs = 4 / sizeof(W);  // of a line

// Tile after tile reads this many lines of a block before the next ones: those of four blocks stay in the second cache.
template <typename W>
constexpr int64_t kChunk = 512;
template <>
constexpr int64_t kChunk<uint8_t> = 32;
template <typename W>
constexpr int64_t kChunkInputs = kChunk<W> * kInputs<W>;

// Words of 4 bytes that a row of x has for a chunk: float32 inputs; or four int8 inputs a line, an offset and a scale.
template <typename W>
constexpr int64_t kWords = kChunkInputs<W>;
template <>
constexpr int64_t kWords<uint8_t> = kChunk<uint8_t> + 2;

// ---- tiles: sums [kRows][kBlocks * 16] += x W^T for the lines of a chunk. The words of x are [kWords][kRows].

// f(row, block, part) for all parts of a tile
template <int kRows, int kBlocks, typename F>
ASCEND_OPS_INLINE void each_part(const F &f) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) f(r, b, p);
}

// Input i of a line for kWidth outputs.
ASCEND_OPS_INLINE Part weights(UintPart words, int, float) { return bit_cast<Part>(words); }
ASCEND_OPS_INLINE Part weights(UintPart words, int i, Bfloat16) { return bit_cast<Part>(i ? words & 0xffff0000u : words << 16); }

template <typename W, int kRows, int kBlocks>
struct Tile {
  static void multiply(const void *rows, const char *w, int64_t block_bytes, int64_t lines, float *sums) {
    const float *const x = static_cast<const float *>(rows);
    Part s[kRows][kBlocks][kParts];
    each_part<kRows, kBlocks>([&](int r, int b, int p) __attribute__((always_inline)) {
      s[r][b][p] = load_part<Part>(sums + (r * kBlocks + b) * kLanes + p * kWidth);
    });
    for (int64_t line = 0; line < lines; ++line) {
      UintPart words[kBlocks][kParts];
      each_part<1, kBlocks>([&](int, int b, int p) __attribute__((always_inline)) {
        words[b][p] = load_part<UintPart>(w + b * block_bytes + line * kLine + p * 4 * kWidth);
      });
#pragma GCC unroll 2
      for (int i = 0; i < kInputs<W>; ++i) {
        Part wide[kBlocks][kParts];
        each_part<1, kBlocks>([&](int, int b, int p) __attribute__((always_inline)) { wide[b][p] = weights(words[b][p], i, W{}); });
        const float *const input = x + (line * kInputs<W> + i) * kRows;
        each_part<kRows, kBlocks>([&](int r, int b, int p) __attribute__((always_inline)) { s[r][b][p] += (Part{} + input[r]) * wide[b][p]; });
      }
    }
    each_part<kRows, kBlocks>([&](int r, int b, int p) __attribute__((always_inline)) {
      std::memcpy(sums + (r * kBlocks + b) * kLanes + p * kWidth, &s[r][b][p], sizeof(Part));
    });
  }
};

#if defined(__AVX512VNNI__)
// sums + w0 x0 + w1 x1 + w2 x2 + w3 x3 of the bytes of each word, w without and x with a sign
ASCEND_OPS_INLINE IntPart add_products(IntPart sums, UintPart w, IntPart x) {
  return bit_cast<IntPart>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sums), bit_cast<__m512i>(w), bit_cast<__m512i>(x)));
}
#else
// a0 b0 + a1 b1 of the halves of each word
ASCEND_OPS_INLINE IntPart pair_products(ShortPart a, ShortPart b) {
#if defined(__AVX512BW__)
  return bit_cast<IntPart>(_mm512_madd_epi16(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<IntPart>(_mm256_madd_epi16(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return bit_cast<IntPart>(_mm_madd_epi16(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  const IntPart u = bit_cast<IntPart>(a), v = bit_cast<IntPart>(b);
  return (u << 16 >> 16) * (v << 16 >> 16) + (u >> 16) * (v >> 16);
#endif
}
ASCEND_OPS_INLINE IntPart add_products(IntPart sums, UintPart w, IntPart x) {
  const ShortPart bytes = bit_cast<ShortPart>(x);
  return sums + pair_products(bit_cast<ShortPart>(w & 0x00ff00ffu), bytes << 8 >> 8) + pair_products(bit_cast<ShortPart>(w >> 8 & 0x00ff00ffu), bytes >> 8);
}
#endif

template <int kRows, int kBlocks>
struct Tile<uint8_t, kRows, kBlocks> {
  static void multiply(const void *rows, const char *w, int64_t block_bytes, int64_t lines, float *sums) {
    const int32_t *const x = static_cast<const int32_t *>(rows), *const offsets = x + kChunk<uint8_t> * kRows;
    IntPart s[kRows][kBlocks][kParts];
    // The offset takes away the 128 that each byte of the weight has too much.
    each_part<kRows, kBlocks>([&](int r, int b, int p) __attribute__((always_inline)) { s[r][b][p] = IntPart{} + offsets[r]; });
    for (int64_t line = 0; line < lines; ++line) {
      UintPart words[kBlocks][kParts];
      each_part<1, kBlocks>([&](int, int b, int p) __attribute__((always_inline)) {
        words[b][p] = load_part<UintPart>(w + b * block_bytes + line * kLine + p * 4 * kWidth);
      });
      each_part<kRows, kBlocks>([&](int r, int b, int p) __attribute__((always_inline)) {
        s[r][b][p] = add_products(s[r][b][p], words[b][p], IntPart{} + x[line * kRows + r]);
      });
    }
    each_part<kRows, kBlocks>([&](int r, int b, int p) __attribute__((always_inline)) {
      float scale, *const at = sums + (r * kBlocks + b) * kLanes + p * kWidth;
      std::memcpy(&scale, offsets + kRows + r, sizeof(scale));
      const Part total = load_part<Part>(at) + scale * __builtin_convertvector(s[r][b][p], Part);
      std::memcpy(at, &total, sizeof(total));
    });
  }
};

template <typename W, int kRows, int kBlocks>
void multiply_tile(const void *x, const char *w, int64_t block_bytes, int64_t lines, float *sums) {
  constexpr bool kPossible = kRows <= kTileRows && (kBlocks == 1 || (kBlocks == kTileBlocks ? kRows <= kLowRows : kRows >= kLowRows));
  if constexpr (kPossible) Tile<W, kRows, kBlocks>::multiply(x, w, block_bytes, lines, sums);
}

template <typename W, int kBlocks>
void multiply(int64_t rows, const void *x, const char *w, int64_t block_bytes, int64_t lines, float *sums) {
  switch (rows) {
    case 1: return multiply_tile<W, 1, kBlocks>(x, w, block_bytes, lines, sums);
    case 2: return multiply_tile<W, 2, kBlocks>(x, w, block_bytes, lines, sums);
    case 3: return multiply_tile<W, 3, kBlocks>(x, w, block_bytes, lines, sums);
    case 4: return multiply_tile<W, 4, kBlocks>(x, w, block_bytes, lines, sums);
    case 5: return multiply_tile<W, 5, kBlocks>(x, w, block_bytes, lines, sums);
    case 6: return multiply_tile<W, 6, kBlocks>(x, w, block_bytes, lines, sums);
    case 7: return multiply_tile<W, 7, kBlocks>(x, w, block_bytes, lines, sums);
    case 8: return multiply_tile<W, 8, kBlocks>(x, w, block_bytes, lines, sums);
  }
}

// ---- x as tiles read it

// Column r of words [kWords][height] from up to kChunkInputs values of a row.
template <typename T, typename W>
void write_words(const T *x, int64_t size, int32_t *words, int64_t r, int64_t height, W) {
  const int64_t inputs = (size + kInputs<W> - 1) / kInputs<W> * kInputs<W>;
  for (int64_t i = 0; i < inputs; i += kLanes) {
    int32_t values[kLanes];
    const Vec v = load_upto(x + i, size - i);
    std::memcpy(values, &v, sizeof(v));
    for (int64_t j = 0; j < std::min<int64_t>(kLanes, inputs - i); ++j) words[(i + j) * height + r] = values[j];
  }
}

// The same as multiples of the largest magnitude over 127, rounded to nearest, ties to even. With NaN or infinity among the values the scale is NaN.
template <typename T>
void write_words(const T *x, int64_t size, int32_t *words_of_rows, int64_t r, int64_t height, uint8_t) {
  Vec largest{}, poison{};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec v = load_upto(x + i, size - i);
    largest = max(largest, abs(v)), poison += v - v;
  }
  const float top = max(largest);
  const bool usable = sum(poison) == 0.0f, zero = top < 1e-35f;  // below, 127 / top is infinite
  const float inverse = usable && !zero ? 127.0f / top : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < kChunkInputs<uint8_t>; i += kLanes) {
    Vec scaled = (i < size ? load_upto(x + i, size - i) : Vec{}) * inverse;
    asm("" : "+m"(scaled));  // keeps the product from being fused with the sum: every processor rounds the same number
    const Vec whole = (scaled + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    int8_t bytes[kLanes];
    int32_t words[kLanes / 4];
    for (int j = 0; j < kLanes; ++j) bytes[j] = usable ? static_cast<int8_t>(whole[j]) : 0, total += bytes[j];
    std::memcpy(words, bytes, sizeof(words));
    for (int j = 0; j < kLanes / 4; ++j) words_of_rows[(i / 4 + j) * height + r] = words[j];
  }
  words_of_rows[kChunk<uint8_t> * height + r] = -128 * total;
  const float scale = usable ? (zero ? 0.0f : top / 127.0f) : __builtin_nanf("");
  std::memcpy(words_of_rows + (kChunk<uint8_t> + 1) * height + r, &scale, sizeof(scale));
}

// The rows of x in tiles of nearly equal height.
template <typename W>
class Rows {
 public:
  template <typename T>
  Rows(const T *x, int64_t m, int64_t k)
      : rows_(m), tiles_((m + kTileRows - 1) / kTileRows), chunks_((k + kChunkInputs<W> - 1) / kChunkInputs<W>), words_(m * chunks_ * kWords<W> * 4) {
    parallel_ranges(tiles_, std::max<int64_t>(1, kGrain / (k * kTileRows)), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        for (int64_t row = first(tile); row < first(tile + 1); ++row)
          for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
            const int64_t at = chunk * kChunkInputs<W>;
            write_words(x + row * k + at, std::min(kChunkInputs<W>, k - at), words(tile, chunk), row - first(tile), height(tile), W{});
          }
    });
  }

  bool tall() const { return (rows_ + tiles_ - 1) / tiles_ > kLowRows; }

  // sums [rows][kBlocks * 16] = x W^T for kBlocks blocks of `lines` lines from w
  template <int kBlocks>
  void multiply_blocks(const char *w, int64_t lines, float *sums) const {
    std::fill_n(sums, rows_ * kBlocks * kLanes, 0.0f);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk)
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        const int64_t line = chunk * kChunk<W>;
        multiply<W, kBlocks>(height(tile), words(tile, chunk), w + line * kLine, lines * kLine, std::min(kChunk<W>, lines - line),
                             sums + first(tile) * kBlocks * kLanes);
      }
  }

 private:
  int64_t first(int64_t tile) const { return rows_ * tile / tiles_; }
  int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
  int32_t *words(int64_t tile, int64_t chunk) const { return words_.as<int32_t>() + (first(tile) * chunks_ + chunk * height(tile)) * kWords<W>; }

  int64_t rows_, tiles_, chunks_;
  Workspace words_;
};

// ---- products

struct Identity {
  static ASCEND_OPS_INLINE Activated at(Vec u) { return {u, Vec{}}; }
};

// Calls f(Activation{}); -1 is none.
template <typename F>
void with_activation_or_none(int code, F f) {
  if (code < 0) return f(Identity{});
  with_activation(code, f);
}

// Outputs from the block `first_block` of a weight on. The bias may be null.
struct Outputs {
  int64_t first_block, n;
  const float *scale, *bias;
  void *y;
};

// phi(gate) * up with phi(u) = sum_i act(scale_i u + shift_i): what PackedGlu makes of two weights of the same size.
struct Gate {
  const float *up_scale, *series_scale, *series_shift;
  int64_t terms, width;  // width: 1, or that of a row
};

// What a product is made of beside x: one weight or, behind one another, several of the same inputs.
struct Product {
  const char *weight;
  int64_t lines, k;
  const Outputs *outputs;
  int num_outputs;
  const Gate *gate;  // null without one; else there is one output
  int activation;    // -1 for none
};

inline int64_t blocks_of(int64_t n) { return (n + kLanes - 1) / kLanes; }

// Writes a block of y from its sums, which are `stride` apart from row to row; those of `up` are for a gate.
template <typename T, typename Activation>
void finish(const Product &product, int64_t rows, int64_t block, const float *sums, const float *up, int64_t stride) {
  const Outputs *out = product.outputs;
  while (out + 1 < product.outputs + product.num_outputs && block >= out[1].first_block) ++out;
  const int64_t column = (block - out->first_block) * kLanes, valid = out->n - column;
  const Vec scale = load_upto(out->scale + column, valid), bias = out->bias ? load_upto(out->bias + column, valid) : Vec{};
  T *const y = static_cast<T *>(out->y);
  const Gate *const gate = product.gate;
  for (int64_t r = 0; r < rows; ++r) {
    const Vec u = load(sums + r * stride) * scale + bias;
    Vec value{};
    if (gate) {
      for (int64_t i = 0; i < gate->terms; ++i) {
        const float *const a = gate->series_scale + i * gate->width, *const b = gate->series_shift + i * gate->width;
        value += gate->width == 1 ? Activation::at(*a * u + *b).value : Activation::at(load_upto(a + column, valid) * u + load_upto(b + column, valid)).value;
      }
      value *= load(up + r * stride) * load_upto(gate->up_scale + column, valid);
    } else {
      value = Activation::at(u).value;
    }
    store_upto(y + r * out->n + column, value, valid);
  }
}

template <typename W, typename T>
void multiply_rows(const T *rows, int64_t m, const Product &product) {
  const Rows<W> x(rows, m, product.k);
  void (*finish_block)(const Product &, int64_t, int64_t, const float *, const float *, int64_t) = nullptr;
  with_activation_or_none(product.activation, [&](auto a) { finish_block = finish<T, decltype(a)>; });
  const Outputs &last = product.outputs[product.num_outputs - 1];
  const int64_t blocks = last.first_block + blocks_of(last.n), weights = product.gate ? 2 : 1;
  parallel_ranges(blocks, std::max<int64_t>(1, kGrain / (kLanes * product.k * weights)), [&](int64_t, int64_t begin, int64_t end) {
    const int64_t of_weight = m * kTileBlocks * kLanes;
    const Workspace sums(weights * of_weight * sizeof(float));
    float *const first = sums.as<float>();
    int64_t block = begin;
    auto columns = [&](auto count) {
      for (; block + count <= end; block += count) {
        for (int64_t i = 0; i < weights; ++i)
          x.template multiply_blocks<count>(product.weight + (i * blocks + block) * product.lines * kLine, product.lines, first + i * of_weight);
        for (int64_t b = 0; b < count; ++b) finish_block(product, m, block + b, first + b * kLanes, first + of_weight + b * kLanes, count * kLanes);
      }
    };
    if (x.tall()) columns(std::integral_constant<int, kTallBlocks>{});
    else columns(std::integral_constant<int, kTileBlocks>{});
    columns(std::integral_constant<int, 1>{});
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
void require_packed(const Tensor &weight, int64_t blocks, int64_t k) {
  require(weight.rank == 4 && weight.dim(2) == kLanes && weight.dim(3) == kInputs<W> && weight.dim(0) == blocks &&
              weight.dim(1) == (k + kInputs<W> - 1) / kInputs<W>,
          "weight must be packed from [out, in], with a scale for each of out and in channels of x");
}

// The product of x with `blocks` blocks of a weight.
void multiply(const Tensor &x, const Tensor &weight, int64_t blocks, const Product &product) {
  with_packed(weight, [&](auto w) {
    require_packed<decltype(w)>(weight, blocks, product.k);
    with_type(x, [&](auto t) { multiply_rows<decltype(w)>(x.as<decltype(t)>(), x.rows(), product); });
  });
}

// Null for the [1] that stands for none.
const float *optional(const Tensor &values, int64_t n, const char *rule) {
  require(values.size() == n || values.size() == 1, rule);
  return values.size() == n ? values.as<float>() : nullptr;
}

void packed_linear(const Call &call) {
  enum { X, WEIGHT, SCALE, BIAS, ACTIVATION, Y };
  const Tensor x = call[X], weight = call[WEIGHT];
  const int64_t n = call[SCALE].size();
  require(x.size() > 0 && n > 0, "no dimension may be 0");
  const float *const bias = optional(call[BIAS], n, "bias must be [out], or [1] for none");
  const Outputs outputs{0, n, call[SCALE].as<float>(), bias, call[Y].data};
  const Product product{weight.as<char>(), weight.dim(1), x.last(), &outputs, 1, nullptr, static_cast<int>(*call[ACTIVATION].as<float>())};
  multiply(x, weight, blocks_of(n), product);
}

// Several products of the same x. Only the lengths of `sizes` are used.
template <int kOutputs>
void packed_linears(const Call &call) {
  enum { X, WEIGHT, SCALE, BIAS, SIZES, Y = SIZES + kOutputs };
  const Tensor x = call[X], weight = call[WEIGHT], scale = call[SCALE];
  const float *const scales = scale.as<float>(), *const bias = optional(call[BIAS], scale.size(), "bias must be [out], or [1] for none");
  Outputs outputs[kOutputs];
  int64_t block = 0, n = 0;
  for (int i = 0; i < kOutputs; ++i) {
    const int64_t size = call[SIZES + i].size();
    require(x.size() > 0 && size > 0, "no dimension may be 0");
    outputs[i] = {block, size, scales + n, bias ? bias + n : nullptr, call[Y + i].data};
    block += blocks_of(size), n += size;
  }
  require(scale.size() == n, "scale must have one value for each of all outputs");
  multiply(x, weight, block, {weight.as<char>(), weight.dim(1), x.last(), outputs, kOutputs, nullptr, -1});
}

void packed_glu(const Call &call) {
  enum { X, WEIGHT, SCALE, SERIES_SCALE, SERIES_SHIFT, ACTIVATION, Y };
  const Tensor x = call[X], weight = call[WEIGHT], scale = call[SCALE], series = call[SERIES_SCALE], shift = call[SERIES_SHIFT];
  require(x.size() > 0 && scale.rank == 2 && scale.dim(0) == 2 && scale.last() > 0, "scale must be [2, out], those of the gate and of its factor");
  require(series.rank == 2 && series.size() > 0 && shift.rank == 2 && series.dim(0) == shift.dim(0) && series.dim(1) == shift.dim(1),
          "series_scale and series_shift must be [terms, out] or [terms, 1]");
  const int64_t n = scale.last();
  require(series.last() == n || series.last() == 1, "series_scale and series_shift must have one value a term, or one for each output");
  const Outputs outputs{0, n, scale.as<float>(), nullptr, call[Y].data};
  const Gate gate{scale.as<float>() + n, series.as<float>(), shift.as<float>(), series.dim(0), series.last()};
  const Product product{weight.as<char>(), weight.dim(1), x.last(), &outputs, 1, &gate, static_cast<int>(*call[ACTIVATION].as<float>())};
  multiply(x, weight, 2 * blocks_of(n), product);
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
    require_packed<decltype(w)>(weight, blocks_of(n), k);
    parallel_ranges(ids.size(), std::max<int64_t>(1, kGrain / k), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) copy_row<decltype(w)>(weight, id[i], call[SCALE].as<float>()[id[i]], k, call[Y].as<float>() + i * k);
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(PackedLinear, ascend_ops::packed_linear)
ASCEND_OPS_KERNEL(PackedLinear2, (ascend_ops::packed_linears<2>))
ASCEND_OPS_KERNEL(PackedLinear3, (ascend_ops::packed_linears<3>))
ASCEND_OPS_KERNEL(PackedGlu, ascend_ops::packed_glu)
ASCEND_OPS_KERNEL(PackedRows, ascend_ops::packed_rows)
