// y = sum_i act(scale_i * (x + bias) + shift_i), and the same of a gate times (up + up_bias); with all gradients.
//
// Parameters are per channel or one for all. When all are for all, the tensor is walked in rows of a fixed width, else in rows of its channels:
// one loop serves both, and partial sums of the parameters' gradients are as wide as a row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "activations.h"
#include "kernel.h"
#include "parallel.h"
#include "row.h"
#include "vector.h"

namespace ascend_ops {
namespace {

constexpr int64_t kFlatWidth = 512;  // of a row when no parameter is per channel

struct Parameter {
  const float *data;
  bool per_channel;
  ASCEND_OPS_INLINE Vec at(int64_t channel, int64_t valid) const {
    return !per_channel ? splat(*data) : valid == kLanes ? load(data + channel) : load(data + channel, valid);
  }
};

// Parameters of one call and how its tensor is walked.
struct Walk {
  int64_t size, channels, terms;
  const float *scale, *shift;
  bool series_per_channel, wide;
  Parameter bias, up_bias;
  bool plain() const { return terms == 1 && !series_per_channel; }  // one scale and shift: constants of the inner loop
  int64_t width() const { return wide ? channels : kFlatWidth; }
  int64_t rows() const { return (size + width() - 1) / width(); }
  int64_t series_width() const { return series_per_channel ? channels : 1; }
  Parameter scale_of(int64_t i) const { return {scale + i * series_width(), series_per_channel}; }
  Parameter shift_of(int64_t i) const { return {shift + i * series_width(), series_per_channel}; }
};

Walk make_walk(const Tensor &x, const Tensor &bias, const Tensor *up_bias, const Tensor &scale, const Tensor &shift) {
  const int64_t channels = x.last();
  require(x.size() > 0 && scale.size() > 0, "no dimension may be 0");
  auto parameter = [&](const Tensor &t) {
    require(t.size() == 1 || t.size() == channels, "a bias must have one value, or one for each channel");
    return Parameter{t.as<float>(), t.size() > 1};
  };
  require(scale.rank == 2 && shift.rank == 2 && scale.dim(0) == shift.dim(0) && scale.dim(1) == shift.dim(1), "scale and shift must be [terms, channels] or [terms, 1]");
  require(scale.last() == 1 || scale.last() == channels, "scale and shift must have one value a term, or one for each channel");
  Walk walk{x.size(), channels, scale.dim(0), scale.as<float>(), shift.as<float>(), scale.last() > 1, false, parameter(bias), {}};
  if (up_bias) walk.up_bias = parameter(*up_bias);
  walk.wide = walk.series_per_channel || walk.bias.per_channel || walk.up_bias.per_channel;
  return walk;
}

// f(offset, channel, valid lanes) over rows [begin, end)
template <typename F>
ASCEND_OPS_INLINE void walk_vectors(const Walk &walk, int64_t begin, int64_t end, const F &f) {
  const int64_t width = walk.width();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * width, stop = std::min(start + width, walk.size);
    for (int64_t i = start; i < stop; i += kLanes) f(i, i - start, std::min<int64_t>(kLanes, stop - i));
  }
}

template <bool kPlain>
struct Series {
  explicit Series(const Walk &walk) : walk_(walk), first_scale_(splat(walk.scale[0])), first_shift_(splat(walk.shift[0])) {}
  ASCEND_OPS_INLINE int64_t terms() const { return kPlain ? 1 : walk_.terms; }
  ASCEND_OPS_INLINE Vec scale(int64_t k, int64_t channel, int64_t valid) const { return kPlain ? first_scale_ : walk_.scale_of(k).at(channel, valid); }
  ASCEND_OPS_INLINE Vec shift(int64_t k, int64_t channel, int64_t valid) const { return kPlain ? first_shift_ : walk_.shift_of(k).at(channel, valid); }

 private:
  const Walk &walk_;
  const Vec first_scale_, first_shift_;
};

template <bool kGated, bool kPlain, typename T, typename Activation>
void forward(const Walk &walk, const T *x, const T *up, T *y) {
  parallel_ranges(walk.rows(), std::max<int64_t>(1, kGrain / walk.width()), [&](int64_t, int64_t begin, int64_t end) {
    const Series<kPlain> series(walk);
    walk_vectors(walk, begin, end, [&](int64_t i, int64_t channel, int64_t valid) __attribute__((always_inline)) {
      const Vec v = load_upto(x + i, valid) + walk.bias.at(channel, valid);
      Vec total{};
      for (int64_t k = 0; k < series.terms(); ++k) total += Activation::at(series.scale(k, channel, valid) * v + series.shift(k, channel, valid)).value;
      if (kGated) total *= load_upto(up + i, valid) + walk.up_bias.at(channel, valid);
      store_upto(y + i, total, valid);
    });
  });
}

// Sums over rows, one line for each: bias, up_bias (gated), then scale and shift of each term.
using Sums = std::vector<ColumnSums>;

// The gradient of a parameter from the lines of all threads: per channel, or summed to one value.
void write_gradient(const std::vector<Sums> &sums, int64_t line, int64_t width, bool per_channel, float *out) {
  double all = 0.0;
  for (int64_t c = 0; c < width; ++c) {
    double total = 0.0;
    for (const Sums &part : sums) total += part[line].at(c);
    if (per_channel) out[c] = static_cast<float>(total);
    all += total;
  }
  if (!per_channel) *out = static_cast<float>(all);
}

template <bool kGated, bool kPlain, typename T, typename Activation>
void backward(const Walk &walk, const T *dy, const T *x, const T *up, T *dx, T *dup, float *dbias, float *dup_bias, float *dscale, float *dshift) {
  constexpr int64_t kFirstTerm = kGated ? 2 : 1;
  const int64_t lines = kFirstTerm + 2 * walk.terms, grain = std::max<int64_t>(1, kGrain / walk.width());
  std::vector<Sums> sums(num_ranges(walk.rows(), grain), Sums(lines, ColumnSums(walk.width())));
  parallel_ranges(walk.rows(), grain, [&](int64_t range, int64_t begin, int64_t end) {
    Sums &mine = sums[range];
    const Series<kPlain> series(walk);
    for (int64_t row = begin; row < end; row += ColumnSums::kRowsInFloat32) {
      walk_vectors(walk, row, std::min(row + ColumnSums::kRowsInFloat32, end), [&](int64_t i, int64_t channel, int64_t valid) __attribute__((always_inline)) {
        const Vec v = load_upto(x + i, valid) + walk.bias.at(channel, valid);
        Vec g = load_upto(dy + i, valid), total{}, slope{};
        const Vec gate_gradient = kGated ? g * (load_upto(up + i, valid) + walk.up_bias.at(channel, valid)) : g;
        for (int64_t k = 0; k < series.terms(); ++k) {
          const Vec scale = series.scale(k, channel, valid);
          const Activated a = Activation::at(scale * v + series.shift(k, channel, valid));
          if (kGated) total += a.value;
          slope += scale * a.slope;
          mine[kFirstTerm + 2 * k].add(channel, gate_gradient * a.slope * v);
          mine[kFirstTerm + 2 * k + 1].add(channel, gate_gradient * a.slope);
        }
        const Vec gradient = gate_gradient * slope;
        store_upto(dx + i, gradient, valid);
        mine[0].add(channel, gradient);
        if (kGated) {
          store_upto(dup + i, g * total, valid);
          mine[1].add(channel, g * total);
        }
      });
      for (ColumnSums &line : mine) line.flush();
    }
  });
  const int64_t width = walk.width();
  write_gradient(sums, 0, width, walk.bias.per_channel, dbias);
  if (kGated) write_gradient(sums, 1, width, walk.up_bias.per_channel, dup_bias);
  for (int64_t k = 0; k < walk.terms; ++k) {
    write_gradient(sums, kFirstTerm + 2 * k, width, walk.series_per_channel, dscale + k * walk.series_width());
    write_gradient(sums, kFirstTerm + 2 * k + 1, width, walk.series_per_channel, dshift + k * walk.series_width());
  }
}

// Calls f<T, Activation, kPlain>() as the call's tensor, attribute and walk say.
template <typename F>
void dispatch(const Call &call, int tensor, int attribute, const Walk &walk, F f) {
  with_type(call[tensor], [&](auto t) {
    with_activation(static_cast<int>(call[attribute].as<float>()[0]), [&](auto a) {
      if (walk.plain()) f(t, a, std::true_type{});
      else f(t, a, std::false_type{});
    });
  });
}

void series_activation(const Call &call) {
  enum { X, BIAS, SCALE, SHIFT, ACTIVATION, Y };
  const Walk walk = make_walk(call[X], call[BIAS], nullptr, call[SCALE], call[SHIFT]);
  dispatch(call, X, ACTIVATION, walk, [&](auto t, auto a, auto plain) {
    using T = decltype(t);
    forward<false, plain.value, T, decltype(a)>(walk, call[X].as<T>(), nullptr, call[Y].as<T>());
  });
}

void series_activation_grad(const Call &call) {
  enum { DY, X, BIAS, SCALE, SHIFT, ACTIVATION, DX, DBIAS, DSCALE, DSHIFT };
  const Walk walk = make_walk(call[X], call[BIAS], nullptr, call[SCALE], call[SHIFT]);
  dispatch(call, X, ACTIVATION, walk, [&](auto t, auto a, auto plain) {
    using T = decltype(t);
    backward<false, plain.value, T, decltype(a)>(walk, call[DY].as<T>(), call[X].as<T>(), nullptr, call[DX].as<T>(), nullptr, call[DBIAS].as<float>(),
                                                 nullptr, call[DSCALE].as<float>(), call[DSHIFT].as<float>());
  });
}

void series_glu(const Call &call) {
  enum { GATE, UP, GATE_BIAS, UP_BIAS, SCALE, SHIFT, ACTIVATION, Y };
  const Tensor up_bias = call[UP_BIAS];
  const Walk walk = make_walk(call[GATE], call[GATE_BIAS], &up_bias, call[SCALE], call[SHIFT]);
  require(call[UP].size() == walk.size, "gate and up must have the same shape");
  dispatch(call, GATE, ACTIVATION, walk, [&](auto t, auto a, auto plain) {
    using T = decltype(t);
    forward<true, plain.value, T, decltype(a)>(walk, call[GATE].as<T>(), call[UP].as<T>(), call[Y].as<T>());
  });
}

void series_glu_grad(const Call &call) {
  enum { DY, GATE, UP, GATE_BIAS, UP_BIAS, SCALE, SHIFT, ACTIVATION, DGATE, DUP, DGATE_BIAS, DUP_BIAS, DSCALE, DSHIFT };
  const Tensor up_bias = call[UP_BIAS];
  const Walk walk = make_walk(call[GATE], call[GATE_BIAS], &up_bias, call[SCALE], call[SHIFT]);
  dispatch(call, GATE, ACTIVATION, walk, [&](auto t, auto a, auto plain) {
    using T = decltype(t);
    backward<true, plain.value, T, decltype(a)>(walk, call[DY].as<T>(), call[GATE].as<T>(), call[UP].as<T>(), call[DGATE].as<T>(), call[DUP].as<T>(),
                                                call[DGATE_BIAS].as<float>(), call[DUP_BIAS].as<float>(), call[DSCALE].as<float>(),
                                                call[DSHIFT].as<float>());
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(SeriesActivation, ascend_ops::series_activation)
ASCEND_OPS_KERNEL(SeriesActivationGrad, ascend_ops::series_activation_grad)
ASCEND_OPS_KERNEL(SeriesGlu, ascend_ops::series_glu)
ASCEND_OPS_KERNEL(SeriesGluGrad, ascend_ops::series_glu_grad)
