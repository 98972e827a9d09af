// LayerNorm and RMSNorm over the last axis, plain and of total = x + residual; with all gradients.
//
// The variance is taken in a second pass over the row, which is in cache by then: E[x^2] - E[x]^2 loses all digits of a large mean.
// The statistics of a sum are those of the sum as it was rounded to T, so backward passes need only the rounded one.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernel.h"
#include "parallel.h"
#include "row.h"
#include "vector.h"

namespace ascend_ops {
namespace {

// Rows of a tensor, and the ranges of them that threads take.
struct Rows {
  int64_t count, width;
  explicit Rows(const Tensor &x) : count(x.rows()), width(x.last()) { require(x.size() > 0, "no dimension may be 0"); }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / width); }
};

void require_same(const Tensor &a, const Tensor &b, const char *rule) {
  require(a.rank == b.rank && std::equal(a.shape, a.shape + a.rank, b.shape) && !std::strcmp(a.dtype, b.dtype), rule);
}

// sum (x - center)^2
template <typename T>
ASCEND_OPS_INLINE float squares(const T *x, int64_t n, float center) {
  Total total;
  each_vector(n, [&](int64_t i, auto lanes, int slot) __attribute__((always_inline)) {
    const Vec v = keep(load(x + i, lanes) - center, lanes);
    total.add(slot, v * v);
  });
  return total.value();
}

template <typename T>
ASCEND_OPS_INLINE float average(const T *x, int64_t n) {
  Total total;
  each_vector(n, [&](int64_t i, auto lanes, int slot) __attribute__((always_inline)) { total.add(slot, load(x + i, lanes)); });
  return total.value() / n;
}

template <typename T>
ASCEND_OPS_INLINE void add_rows(const T *x, const T *residual, int64_t n, T *total) {
  each_vector(n, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) { store(total + i, load(x + i, lanes) + load(residual + i, lanes), lanes); });
}

// What a forward pass writes: mean in LayerNorm alone, total in the forms with a residual alone.
template <typename T>
struct Outputs {
  T *y, *total;
  float *mean, *rstd;
};

template <bool kLayer, typename T>
void forward(const Rows &rows, const T *x, const T *residual, const float *weight, const float *bias, float eps, Outputs<T> out) {
  const int64_t n = rows.width;
  parallel_ranges(rows.count, rows.grain(), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *source = x + row * n;
      if (residual) {
        add_rows(source, residual + row * n, n, out.total + row * n);
        source = out.total + row * n;
      }
      T *y = out.y + row * n;
      const float mean = kLayer ? average(source, n) : 0.0f;
      const float rstd = 1.0f / std::sqrt(squares(source, n, mean) / n + eps);
      each_vector(n, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
        Vec v = (load(source + i, lanes) - mean) * rstd * load(weight + i, lanes);
        if (kLayer) v += load(bias + i, lanes);
        store(y + i, v, lanes);
      });
      if (kLayer) out.mean[row] = mean;
      out.rstd[row] = rstd;
    }
  });
}

// What a backward pass reads; dtotal is the gradient that arrives at the sum itself.
template <typename T>
struct Saved {
  const T *dy, *dtotal, *x;
  const float *weight, *mean, *rstd;
};

// With h = (x - mean) rstd and g = dy weight:  dx = rstd (g - mean(g) - h mean(g h)), without mean(g) for RMSNorm.
// Sources: Ba et al. 2016, eq. 3; Zhang and Sennrich 2019, eq. 4; differentiated.
template <bool kLayer, typename T>
ASCEND_OPS_INLINE void backward_row(const Saved<T> &in, int64_t row, int64_t n, T *dx, ColumnSums &dweight, ColumnSums &dbias) {
  const T *dy = in.dy + row * n, *x = in.x + row * n, *dtotal = in.dtotal ? in.dtotal + row * n : nullptr;
  const float mean = kLayer ? in.mean[row] : 0.0f, rstd = in.rstd[row];
  Total along, across;
  each_vector(n, [&](int64_t i, auto lanes, int slot) __attribute__((always_inline)) {
    const Vec g = load(dy + i, lanes) * load(in.weight + i, lanes);
    across.add(slot, g * (load(x + i, lanes) - mean));
    if (kLayer) along.add(slot, g);
  });
  const float mean_g = along.value() / n, mean_gh = across.value() * rstd / n;
  each_vector(n, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
    const Vec dout = load(dy + i, lanes), h = (load(x + i, lanes) - mean) * rstd;
    Vec gradient = rstd * (dout * load(in.weight + i, lanes) - mean_g - h * mean_gh);
    if (dtotal) gradient += load(dtotal + i, lanes);
    store(dx + row * n + i, gradient, lanes);
    dweight.add(i, dout * h);
    if (kLayer) dbias.add(i, dout);
  });
}

void write_sums(const std::vector<ColumnSums> &parts, int64_t n, float *out) {
  for (int64_t i = 0; i < n; ++i) {
    double total = 0.0;
    for (const ColumnSums &part : parts) total += part.at(i);
    out[i] = static_cast<float>(total);
  }
}

template <bool kLayer, typename T>
void backward(const Rows &rows, const Saved<T> &in, T *dx, float *dweight, float *dbias) {
  const int64_t ranges = num_ranges(rows.count, rows.grain());
  std::vector<ColumnSums> weight_sums(ranges, ColumnSums(rows.width)), bias_sums(ranges, ColumnSums(kLayer ? rows.width : 0));
  parallel_ranges(rows.count, rows.grain(), [&](int64_t range, int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t stop = std::min(begin + ColumnSums::kRowsInFloat32, end);
      for (; begin < stop; ++begin) backward_row<kLayer>(in, begin, rows.width, dx, weight_sums[range], bias_sums[range]);
      weight_sums[range].flush();
      bias_sums[range].flush();
    }
  });
  write_sums(weight_sums, rows.width, dweight);
  if (kLayer) write_sums(bias_sums, rows.width, dbias);
}

// One function for all four forward kernels: their inputs x, [residual], weight, [bias], eps; outputs y, [total], [mean], rstd.
template <bool kLayer, bool kAdd>
void norm(const Call &call) {
  enum { X, RESIDUAL, WEIGHT = 1 + kAdd, BIAS, EPS = WEIGHT + 1 + kLayer, Y, TOTAL, MEAN = Y + 1 + kAdd, RSTD = MEAN + kLayer };
  const Tensor x = call[X], residual = call[kAdd ? RESIDUAL : X], weight = call[WEIGHT], bias = call[kLayer ? BIAS : WEIGHT];
  const Tensor y = call[Y], total = call[kAdd ? TOTAL : Y], mean = call[MEAN], rstd = call[RSTD], eps = call[EPS];
  const Rows rows(x);
  require(weight.size() == rows.width && bias.size() == rows.width, "weight and bias must have one value for each channel");
  require_same(x, residual, "residual must have the shape and dtype of x");
  with_type(x, [&](auto t) {
    using T = decltype(t);
    const Outputs<T> out{y.as<T>(), total.as<T>(), mean.as<float>(), rstd.as<float>()};
    forward<kLayer, T>(rows, x.as<T>(), kAdd ? residual.as<T>() : nullptr, weight.as<float>(), bias.as<float>(), *eps.as<float>(), out);
  });
}

// Inputs dy, [dtotal], x or total, weight, [mean], rstd; outputs dx, dweight, [dbias].
template <bool kLayer, bool kAdd>
void norm_grad(const Call &call) {
  enum { DY, DTOTAL, X = 1 + kAdd, WEIGHT, MEAN, RSTD = MEAN + kLayer, DX, DWEIGHT, DBIAS };
  const Tensor dy = call[DY], dtotal = call[kAdd ? DTOTAL : DY], x = call[X], weight = call[WEIGHT], mean = call[MEAN], rstd = call[RSTD];
  const Tensor dx = call[DX], dweight = call[DWEIGHT], dbias = call[kLayer ? DBIAS : DWEIGHT];
  const Rows rows(x);
  require(weight.size() == rows.width, "weight must have one value for each channel");
  require_same(x, dy, "dy must have the shape and dtype of x");
  require_same(x, dtotal, "dtotal must have the shape and dtype of total");
  require(mean.size() == rows.count && rstd.size() == rows.count, "mean and rstd must have one value for each row");
  with_type(x, [&](auto t) {
    using T = decltype(t);
    const Saved<T> in{dy.as<T>(), kAdd ? dtotal.as<T>() : nullptr, x.as<T>(), weight.as<float>(), mean.as<float>(), rstd.as<float>()};
    backward<kLayer>(rows, in, dx.as<T>(), dweight.as<float>(), dbias.as<float>());
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(LayerNorm, (ascend_ops::norm<true, false>))
ASCEND_OPS_KERNEL(AddLayerNorm, (ascend_ops::norm<true, true>))
ASCEND_OPS_KERNEL(LayerNormGrad, (ascend_ops::norm_grad<true, false>))
ASCEND_OPS_KERNEL(AddLayerNormGrad, (ascend_ops::norm_grad<true, true>))
ASCEND_OPS_KERNEL(RmsNorm, (ascend_ops::norm<false, false>))
ASCEND_OPS_KERNEL(AddRmsNorm, (ascend_ops::norm<false, true>))
ASCEND_OPS_KERNEL(RmsNormGrad, (ascend_ops::norm_grad<false, false>))
ASCEND_OPS_KERNEL(AddRmsNormGrad, (ascend_ops::norm_grad<false, true>))
