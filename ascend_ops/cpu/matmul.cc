// y = x W^T + bias, and the same for rows grouped by expert; with all gradients. x and y have T, weights and their gradients are float32.
//
// Many rows: oneDNN. Few rows (decoding): dot products that read the weight as it is, once for each four rows. float16 and bfloat16 see a weight
// rounded to T, as if it were stored so; where oneDNN has no kernel for T (float16 on most processors), it multiplies values widened to float32.
#include <algorithm>
#include <vector>

#include "kernel.h"
#include "onednn.h"
#include "parallel.h"
#include "vector.h"

namespace ascend_ops {
namespace {

using onednn::kFloat;

// A float as T holds it.
ASCEND_OPS_INLINE Vec rounded(Vec v, float) { return v; }
ASCEND_OPS_INLINE Vec rounded(Vec v, Half) { return widen_half(narrow_half(v)); }
ASCEND_OPS_INLINE Vec rounded(Vec v, Bfloat16) {
  const UintVec bits = bit_cast<UintVec>(v);
  const UintVec even = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;  // as narrow_bfloat16
  return bit_cast<Vec>(select(bit_cast<IntVec>(v != v), bits, even));
}

// to[i] = f(from[i])
template <typename From, typename To, typename F>
void map(const From *from, To *to, int64_t size, const F &f) {
  parallel_ranges((size + kLanes - 1) / kLanes, kGrain / kLanes, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin * kLanes; i < end * kLanes; i += kLanes) store_upto(to + i, f(load_upto(from + i, size - i)), size - i);
  });
}
template <typename From, typename To>
void convert(const From *from, To *to, int64_t size) {
  map(from, to, size, [](Vec v) { return v; });
}

// A tensor as the product reads it: itself, or a copy of another type.
struct Operand {
  Workspace copy;
  const void *data;

  template <typename T>
  static Operand values(const T *x, int64_t size, bool widen) {
    if (!widen) return Operand(x);
    Operand made(size * sizeof(float));
    convert(x, made.copy.as<float>(), size);
    return made;
  }
  template <typename T>
  static Operand weight(const float *w, int64_t size, bool widen, T t) {
    if (sizeof(T) == sizeof(float)) return Operand(w);
    Operand made(size * (widen ? sizeof(float) : sizeof(T)));
    if (widen) map(w, made.copy.as<float>(), size, [t](Vec v) { return rounded(v, t); });
    else convert(w, made.copy.as<T>(), size);
    return made;
  }

  const void *at(int64_t i, onednn::Element type) const { return static_cast<const char *>(data) + i * (type == kFloat ? 4 : 2); }

 private:
  explicit Operand(const void *given) : data(given) {}
  explicit Operand(size_t bytes) : copy(bytes), data(copy.as<void>()) {}
};

// c = a b (+ bias) stored as T, through float32 where oneDNN has no product of T.
template <typename T>
void multiply_to(onednn::Product product, const Operand &a, const Operand &b, T *c, const float *bias = nullptr) {
  product.out = onednn::element(T{});
  if (product.in == product.out) return onednn::multiply(product, a.data, b.data, c, bias);
  product.out = kFloat;
  const Workspace wide(product.m * product.n * sizeof(float));
  onednn::multiply(product, a.data, b.data, wide.as<float>(), bias);
  convert(wide.as<float>(), c, product.m * product.n);
}

// ---- few rows

#if defined(__AVX512F__)
constexpr int kTile = 4;  // kTile x kTile sums stand in registers
#else
constexpr int kTile = 2;
#endif

// y[m, n] for kRows rows of x and kColumns of the weight; their dot products run side by side.
template <int kRows, int kColumns, typename T>
ASCEND_OPS_INLINE void dot_tile(const float *x, const float *w, const float *bias, int64_t k, T *y, int64_t stride) {
  Vec sums[kRows][kColumns] = {};
  auto add = [&](int64_t i, auto read) __attribute__((always_inline)) {
    Vec weight[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) weight[c] = rounded(read(w + c * k + i), T{});
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec v = read(x + r * k + i);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sums[r][c] += v * weight[c];
    }
  };
  const int64_t whole = k / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) add(i, [](const float *p) __attribute__((always_inline)) { return load(p); });
  if (whole < k) add(whole, [&](const float *p) __attribute__((always_inline)) { return load(p, k - whole); });
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    float line[kLanes] = {};
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) line[c] = sum(sums[r][c]) + (bias ? bias[c] : 0.0f);
    store(y + r * stride, load(line), kColumns);
  }
}

template <int kColumns, typename T>
void dot_columns(const float *x, int64_t m, const float *w, const float *bias, int64_t k, T *y, int64_t stride) {
  int64_t r = 0;
  for (; r + kTile <= m; r += kTile) dot_tile<kTile, kColumns>(x + r * k, w, bias, k, y + r * stride, stride);
  if (r + 2 <= m) dot_tile<2, kColumns>(x + r * k, w, bias, k, y + r * stride, stride), r += 2;
  if (r < m) dot_tile<1, kColumns>(x + r * k, w, bias, k, y + r * stride, stride);
}

// Columns [begin, end) of y [m, n] = x [m, k] W^T.
template <typename T>
void dot_range(const float *x, int64_t m, const float *w, const float *bias, int64_t k, T *y, int64_t n, int64_t begin, int64_t end) {
  int64_t c = begin;
  auto at = [&](int64_t column) { return bias ? bias + column : nullptr; };
  for (; c + kTile <= end; c += kTile) dot_columns<kTile>(x, m, w + c * k, at(c), k, y + c, n);
  for (; c < end; ++c) dot_columns<1>(x, m, w + c * k, at(c), k, y + c, n);
}

// Rows up to which dot products beat oneDNN: for float32 its kernels of 13 to 60 rows share work badly between threads, for the others the weight
// is rounded on the way. Measured: 2 cores of Zen 5, weights of 512 x 2048 and 1024 x 4096.
template <typename T>
constexpr int64_t kFewRows = sizeof(T) == sizeof(float) ? 48 : 4;

// ---- linear

template <typename T>
void linear_forward(const T *x, int64_t m, const float *w, const float *bias, int64_t k, T *y, int64_t n) {
  if (m <= kFewRows<T>) {
    const Operand wide = Operand::values(x, m * k, sizeof(T) != sizeof(float));
    const float *const rows = static_cast<const float *>(wide.data);
    return parallel_ranges((n + kTile - 1) / kTile, std::max<int64_t>(1, kGrain / (kTile * k)), [&](int64_t, int64_t begin, int64_t end) {
      dot_range(rows, m, w, bias, k, y, n, begin * kTile, std::min(end * kTile, n));
    });
  }
  const bool widen = !onednn::multiplies(onednn::element(T{}));
  const auto in = widen ? kFloat : onednn::element(T{});
  multiply_to({m, n, k, in, in, false, true}, Operand::values(x, m * k, widen), Operand::weight(w, n * k, widen, T{}), y, bias);
}

// dW [n, k] = dy^T x over m rows in float32. The rows past `whole` are added by a second product.
void weight_gradient(const Operand &dy, const Operand &x, int64_t m, int64_t whole, int64_t k, int64_t n, onednn::Element in, float *dw) {
  if (whole) onednn::multiply({n, k, whole, in, kFloat, true}, dy.data, x.data, dw);
  if (whole < m) onednn::multiply({n, k, m - whole, in, kFloat, true, false, whole > 0}, dy.at(whole * n, in), x.at(whole * k, in), dw);
}

// dx = dy W for `padded` rows, and dW for the m first of them, `whole` of these at once.
template <typename T>
void linear_backward(const T *dy, const T *x, int64_t m, int64_t padded, int64_t whole, const float *w, int64_t k, int64_t n, T *dx, float *dw) {
  const bool widen = !onednn::multiplies(onednn::element(T{}));
  const auto in = widen ? kFloat : onednn::element(T{});
  const Operand rows = Operand::values(dy, padded * n, widen);
  multiply_to({padded, k, n, in, in}, rows, Operand::weight(w, n * k, widen, T{}), dx);
  weight_gradient(rows, Operand::values(x, m * k, widen), m, whole, k, n, in, dw);
}

// sums[c] = sum over rows of dy [m, n]; blocks of rows are summed in registers first, which also keeps the rounding small.
template <typename T>
void column_sums(const T *dy, int64_t m, int64_t n, float *sums) {
  constexpr int64_t kBlock = 32;
  std::fill(sums, sums + n, 0.0f);
  parallel_ranges((n + kLanes - 1) / kLanes, std::max<int64_t>(1, kGrain / (kLanes * m)), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < m; row += kBlock) {
      const int64_t stop = std::min(m, row + kBlock);
      for (int64_t c = begin * kLanes; c < std::min(end * kLanes, n); c += kLanes) {
        Vec total{};
        for (int64_t r = row; r < stop; ++r) total += load_upto(dy + r * n + c, n - c);
        store_upto(sums + c, load_upto(sums + c, n - c) + total, n - c);
      }
    }
  });
}

void linear(const Call &call) {
  enum { X, WEIGHT, BIAS, Y };
  const Tensor x = call[X], weight = call[WEIGHT], bias = call[BIAS];
  require(weight.rank == 2 && x.last() == weight.dim(1), "x must be [..., in] and weight [out, in]");
  require(x.size() > 0 && weight.size() > 0, "no dimension may be 0");
  const int64_t n = weight.dim(0);
  require(bias.size() == n || bias.size() == 1, "bias must be [out], or [1] for none");
  // [1] beside several outputs is no bias; beside one output it is one, of 0 if none was meant.
  const float *const values = bias.size() == n ? bias.as<float>() : nullptr;
  with_type(x, [&](auto t) {
    using T = decltype(t);
    linear_forward(x.as<T>(), x.rows(), weight.as<float>(), values, x.last(), call[Y].as<T>(), n);
  });
}

void linear_grad(const Call &call) {
  enum { DY, X, WEIGHT, BIAS, DX, DWEIGHT, DBIAS };
  const Tensor dy = call[DY], x = call[X], weight = call[WEIGHT], bias = call[BIAS];
  require(weight.rank == 2 && x.last() == weight.dim(1), "x must be [..., in] and weight [out, in]");
  require(x.size() > 0 && weight.size() > 0, "no dimension may be 0");
  const int64_t m = x.rows(), n = weight.dim(0);
  require(dy.rows() == m && dy.last() == n, "dy must be [..., out]");
  require(bias.size() == n || bias.size() == 1, "bias must be [out], or [1] for none");
  with_type(x, [&](auto t) {
    using T = decltype(t);
    linear_backward(dy.as<T>(), x.as<T>(), m, m, m, weight.as<float>(), x.last(), n, call[DX].as<T>(), call[DWEIGHT].as<float>());
    if (bias.size() == n) column_sums(dy.as<T>(), m, n, call[DBIAS].as<float>());
    else *call[DBIAS].as<float>() = 0.0f;
  });
}

// ---- grouped

struct Groups {
  int64_t rows, in, out, experts;
  const int32_t *counts;
  const float *biases;  // [experts, out], or null

  Groups(const Tensor &x, const Tensor &weight, const Tensor &number, const Tensor &bias)
      : rows(x.dim(0)), in(weight.dim(2)), out(weight.dim(1)), experts(weight.dim(0)), counts(number.as<int32_t>()),
        biases(bias.size() == experts * out ? bias.as<float>() : nullptr) {
    require(biases || bias.size() == 1, "bias must be [experts, out], or [1] for none");
    require(x.rank == 2 && weight.rank == 3 && x.dim(1) == in, "x must be [rows, in] and weight [experts, out, in]");
    require(number.size() == experts, "counts must have one value for each expert");
    int64_t total = 0;
    for (int64_t e = 0; e < experts; ++e) {
      require(counts[e] >= 0, "counts must not be negative");
      total += counts[e];
    }
    require(total == rows, "counts must add up to the rows of x");
  }
  // f(expert, first row, rows) for experts that have rows
  template <typename F>
  void each(const F &f) const {
    for (int64_t e = 0, row = 0; e < experts; row += counts[e++])
      if (counts[e]) f(e, row, int64_t{counts[e]});
  }
  const float *bias(int64_t e) const { return biases ? biases + e * out : nullptr; }
  // Numbers of rows change at every step, and each would need a plan of oneDNN's: a product takes a multiple of kStep.
  static int64_t padded(int64_t count) { return (count + kStep - 1) / kStep * kStep; }
  // f(from, to) for an expert's rows and room up to `padded`: in place, where the product runs past them into rows that their own expert, a later
  // one, writes again; in copies where the tensor ends before. The shape, and with it every bit, follows from the expert's own rows alone.
  template <typename T, typename F>
  void with_room(int64_t row, int64_t count, const T *from, int64_t width, T *to, int64_t to_width, const F &f) const {
    const int64_t room = padded(count);
    from += row * width, to += row * to_width;
    if (row + room <= rows) return f(from, to);
    const Workspace source(room * width * sizeof(T)), target(room * to_width * sizeof(T));
    std::copy_n(from, count * width, source.as<T>());
    std::fill_n(source.as<T>() + count * width, (room - count) * width, T{});
    f(source.as<T>(), target.as<T>());
    std::copy_n(target.as<T>(), count * to_width, to);
  }
  // A weight's gradient cannot: it is summed over the rows up to a multiple of kStep, then over the rest.
  static int64_t whole(int64_t count) { return count / kStep * kStep; }
  static constexpr int64_t kStep = 32;
};

// Experts with few rows, after the others and all at once: one task is a strip of one expert's columns.
template <typename T>
void few_rows_forward(const Groups &g, const T *x, const float *w, T *y) {
  const int64_t strip = std::max<int64_t>(kTile, kGrain / g.in / kTile * kTile), strips = (g.out + strip - 1) / strip;
  struct Task {
    int64_t expert, row, count;
  };
  std::vector<Task> tasks;
  g.each([&](int64_t e, int64_t row, int64_t count) {
    if (count <= kFewRows<T>) tasks.push_back({e, row, count});
  });
  if (tasks.empty()) return;
  const Operand wide = Operand::values(x, g.rows * g.in, sizeof(T) != sizeof(float));
  const float *const rows = static_cast<const float *>(wide.data);
  parallel_tasks(static_cast<int64_t>(tasks.size()) * strips, [&](int64_t i) {
    const Task &task = tasks[i / strips];
    const int64_t begin = i % strips * strip;
    dot_range(rows + task.row * g.in, task.count, w + task.expert * g.out * g.in, g.bias(task.expert), g.in, y + task.row * g.out, g.out, begin,
              std::min(begin + strip, g.out));
  });
}

void grouped_matmul(const Call &call) {
  enum { X, WEIGHT, COUNTS, BIAS, Y };
  const Groups g(call[X], call[WEIGHT], call[COUNTS], call[BIAS]);
  const float *const w = call[WEIGHT].as<float>();
  with_type(call[X], [&](auto t) {
    using T = decltype(t);
    const T *const x = call[X].as<T>();
    T *const y = call[Y].as<T>();
    g.each([&](int64_t e, int64_t row, int64_t count) {
      if (count <= kFewRows<T>) return;
      g.with_room(row, count, x, g.in, y, g.out, [&](const T *from, T *to) {
        linear_forward(from, g.padded(count), w + e * g.out * g.in, g.bias(e), g.in, to, g.out);
      });
    });
    few_rows_forward(g, x, w, y);
  });
}

void grouped_matmul_grad(const Call &call) {
  enum { DY, X, WEIGHT, COUNTS, BIAS, DX, DWEIGHT, DBIAS };
  const Groups g(call[X], call[WEIGHT], call[COUNTS], call[BIAS]);
  require(call[DY].rank == 2 && call[DY].dim(0) == g.rows && call[DY].dim(1) == g.out, "dy must be [rows, out]");
  const float *const w = call[WEIGHT].as<float>();
  float *const dw = call[DWEIGHT].as<float>(), *const dbias = call[DBIAS].as<float>();
  const int64_t size = g.out * g.in;
  std::fill_n(dbias, call[DBIAS].size(), 0.0f);
  parallel_tasks(g.experts, [&](int64_t e) {
    if (g.counts[e] == 0) std::fill(dw + e * size, dw + (e + 1) * size, 0.0f);
  });
  with_type(call[X], [&](auto t) {
    using T = decltype(t);
    const T *const dy = call[DY].as<T>(), *const x = call[X].as<T>();
    g.each([&](int64_t e, int64_t row, int64_t count) {
      g.with_room(row, count, dy, g.out, call[DX].as<T>(), g.in, [&](const T *from, T *to) {
        linear_backward(from, x + row * g.in, count, g.padded(count), g.whole(count), w + e * size, g.in, g.out, to, dw + e * size);
      });
      if (g.biases) column_sums(dy + row * g.out, count, g.out, dbias + e * g.out);
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(Linear, ascend_ops::linear)
ASCEND_OPS_KERNEL(LinearGrad, ascend_ops::linear_grad)
ASCEND_OPS_KERNEL(GroupedMatmul, ascend_ops::grouped_matmul)
ASCEND_OPS_KERNEL(GroupedMatmulGrad, ascend_ops::grouped_matmul_grad)
