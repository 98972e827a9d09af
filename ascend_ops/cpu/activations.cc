// y = sum_i act(scale_i * (x + bias) + shift_i), and the same of a gate times (up + up_bias); with all gradients.
//
// Parameters are per channel or one for all. When all are for all, the tensor is walked as rows of one vector, else as rows of its channels:
// one loop serves both, and partial sums of the parameters' gradients are as wide as a row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernel.h"
#include "parallel.h"
#include "vector.h"

namespace ascend_ops {
namespace {

struct Activated {
  Vec value, slope;
};

// Source: Hendrycks and Gimpel 2016; the tanh form written as u * sigmoid(2 sqrt(2/pi) (u + 0.044715 u^3)).
struct GeluTanh {
  static ASCEND_OPS_INLINE Activated at(Vec u) {
    constexpr float k = 1.5957691216057308f, c = 0.044715f;
    const Vec s = sigmoid(k * u * (1.0f + c * u * u));
    return {u * s, s + u * s * (1.0f - s) * k * (1.0f + 3.0f * c * u * u)};
  }
};

// u * Phi(u), Phi by erfc(z) = (polynomial in 1 / (1 + 0.3275911 z)) * exp(-z^2) to 1.5e-7. Source: Abramowitz and Stegun 7.1.26.
struct GeluErf {
  static ASCEND_OPS_INLINE Activated at(Vec u) {
    const Vec z = abs(u) * 0.7071067811865476f, t = 1.0f / (1.0f + 0.3275911f * z), bell = exp(-z * z);
    const Vec p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const Vec tail = 0.5f * p * bell;
    const Vec phi = select(bit_cast<IntVec>(u < 0.0f), tail, 1.0f - tail);
    return {u * phi, phi + u * bell * 0.3989422804014327f};
  }
};

template <int kThousandths>
struct SigmoidGate {  // u * sigmoid(a u)
  static ASCEND_OPS_INLINE Activated at(Vec u) {
    constexpr float a = kThousandths / 1000.0f;
    const Vec s = sigmoid(a * u);
    return {u * s, s + a * u * s * (1.0f - s)};
  }
};

template <typename F>
void with_activation(const Call &call, int attribute, F f) {
  switch (static_cast<int>(call[attribute].as<float>()[0])) {
    case 0: return f(GeluTanh{});
    case 1: return f(GeluErf{});
    case 2: return f(SigmoidGate<1702>{});
    case 3: return f(SigmoidGate<1000>{});
  }
  throw std::invalid_argument("no such activation");
}

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
  int64_t width() const { return wide ? channels : kLanes; }
  int64_t rows() const { return (size + width() - 1) / width(); }
  int64_t series_width() const { return series_per_channel ? channels : 1; }
  Parameter scale_of(int64_t i) const { return {scale + i * series_width(), series_per_channel}; }
  Parameter shift_of(int64_t i) const { return {shift + i * series_width(), series_per_channel}; }
};

Walk make_walk(const Tensor &x, const Tensor &bias, const Tensor *up_bias, const Tensor &scale, const Tensor &shift) {
  const int64_t channels = x.last();
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

template <typename T>
ASCEND_OPS_INLINE Vec load_some(const T *p, int64_t valid) {
  return __builtin_expect(valid == kLanes, 1) ? load(p) : load(p, valid);
}
template <typename T>
ASCEND_OPS_INLINE void store_some(T *p, Vec v, int64_t valid) {
  if (__builtin_expect(valid == kLanes, 1)) store(p, v);
  else store(p, v, valid);
}

constexpr int64_t kGrain = 1 << 14;  // elements that are worth a thread

// f(offset, channel, valid lanes) over rows [begin, end)
template <typename F>
ASCEND_OPS_INLINE void each_vector(const Walk &walk, int64_t begin, int64_t end, const F &f) {
  const int64_t width = walk.width();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * width, stop = std::min(start + width, walk.size);
    for (int64_t i = start; i < stop; i += kLanes) f(i, i - start, std::min<int64_t>(kLanes, stop - i));
  }
}

template <bool kGated, typename T, typename Activation>
void forward(const Walk &walk, const T *x, const T *up, T *y) {
  parallel_ranges(walk.rows(), std::max<int64_t>(1, kGrain / walk.width()), [&](int64_t, int64_t begin, int64_t end) {
    each_vector(walk, begin, end, [&](int64_t i, int64_t channel, int64_t valid) __attribute__((always_inline)) {
      const Vec v = load_some(x + i, valid) + walk.bias.at(channel, valid);
      Vec total{};
      for (int64_t k = 0; k < walk.terms; ++k) total += Activation::at(walk.scale_of(k).at(channel, valid) * v + walk.shift_of(k).at(channel, valid)).value;
      if (kGated) total *= load_some(up + i, valid) + walk.up_bias.at(channel, valid);
      store_some(y + i, total, valid);
    });
  });
}

// Sums over rows, one line of `width` for each: bias, up_bias (gated), then scale and shift of each term. Kept in float32 for a few hundred
// rows, then added up in float64.
class Sums {
 public:
  Sums(int64_t lines, int64_t width) : width_((width + kLanes - 1) / kLanes * kLanes), part_(lines * width_), total_(lines * width_) {}
  ASCEND_OPS_INLINE void add(int64_t line, int64_t channel, Vec v) {
    float *p = part_.data() + line * width_ + channel;
    store(p, load(p) + v);
  }
  void flush() {
    for (size_t i = 0; i < part_.size(); ++i) total_[i] += part_[i], part_[i] = 0.0f;
  }
  const double *line(int64_t i) const { return total_.data() + i * width_; }

 private:
  int64_t width_;
  std::vector<float> part_;
  std::vector<double> total_;
};

// The gradient of a parameter from the lines of all threads: per channel, or summed to one value.
void write_gradient(const std::vector<Sums> &sums, int64_t line, int64_t width, bool per_channel, float *out) {
  double all = 0.0;
  for (int64_t c = 0; c < width; ++c) {
    double total = 0.0;
    for (const Sums &part : sums) total += part.line(line)[c];
    if (per_channel) out[c] = static_cast<float>(total);
    all += total;
  }
  if (!per_channel) *out = static_cast<float>(all);
}

template <bool kGated, typename T, typename Activation>
void backward(const Walk &walk, const T *dy, const T *x, const T *up, T *dx, T *dup, float *dbias, float *dup_bias, float *dscale, float *dshift) {
  constexpr int64_t kFirstTerm = kGated ? 2 : 1;
  const int64_t lines = kFirstTerm + 2 * walk.terms, grain = std::max<int64_t>(1, kGrain / walk.width());
  constexpr int64_t kRowsInFloat32 = 512;
  std::vector<Sums> sums(num_ranges(walk.rows(), grain), Sums(lines, walk.width()));
  parallel_ranges(walk.rows(), grain, [&](int64_t range, int64_t begin, int64_t end) {
    Sums &mine = sums[range];
    for (int64_t row = begin; row < end; row += kRowsInFloat32, mine.flush()) {
      each_vector(walk, row, std::min(row + kRowsInFloat32, end), [&](int64_t i, int64_t channel, int64_t valid) __attribute__((always_inline)) {
        const Vec v = load_some(x + i, valid) + walk.bias.at(channel, valid);
        Vec g = load_some(dy + i, valid), total{}, slope{};
        const Vec gate_gradient = kGated ? g * (load_some(up + i, valid) + walk.up_bias.at(channel, valid)) : g;
        for (int64_t k = 0; k < walk.terms; ++k) {
          const Vec scale = walk.scale_of(k).at(channel, valid);
          const Activated a = Activation::at(scale * v + walk.shift_of(k).at(channel, valid));
          if (kGated) total += a.value;
          slope += scale * a.slope;
          mine.add(kFirstTerm + 2 * k, channel, gate_gradient * a.slope * v);
          mine.add(kFirstTerm + 2 * k + 1, channel, gate_gradient * a.slope);
        }
        const Vec gradient = gate_gradient * slope;
        store_some(dx + i, gradient, valid);
        mine.add(0, channel, gradient);
        if (kGated) {
          store_some(dup + i, g * total, valid);
          mine.add(1, channel, g * total);
        }
      });
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

void series_activation(const Call &call) {
  enum { X, BIAS, SCALE, SHIFT, ACTIVATION, Y };
  const Walk walk = make_walk(call[X], call[BIAS], nullptr, call[SCALE], call[SHIFT]);
  with_type(call[X], [&](auto t) {
    using T = decltype(t);
    with_activation(call, ACTIVATION, [&](auto a) { forward<false, T, decltype(a)>(walk, call[X].as<T>(), nullptr, call[Y].as<T>()); });
  });
}

void series_activation_grad(const Call &call) {
  enum { DY, X, BIAS, SCALE, SHIFT, ACTIVATION, DX, DBIAS, DSCALE, DSHIFT };
  const Walk walk = make_walk(call[X], call[BIAS], nullptr, call[SCALE], call[SHIFT]);
  with_type(call[X], [&](auto t) {
    using T = decltype(t);
    with_activation(call, ACTIVATION, [&](auto a) {
      backward<false, T, decltype(a)>(walk, call[DY].as<T>(), call[X].as<T>(), nullptr, call[DX].as<T>(), nullptr, call[DBIAS].as<float>(), nullptr,
                                      call[DSCALE].as<float>(), call[DSHIFT].as<float>());
    });
  });
}

void series_glu(const Call &call) {
  enum { GATE, UP, GATE_BIAS, UP_BIAS, SCALE, SHIFT, ACTIVATION, Y };
  const Tensor up_bias = call[UP_BIAS];
  const Walk walk = make_walk(call[GATE], call[GATE_BIAS], &up_bias, call[SCALE], call[SHIFT]);
  require(call[UP].size() == walk.size, "gate and up must have the same shape");
  with_type(call[GATE], [&](auto t) {
    using T = decltype(t);
    with_activation(call, ACTIVATION, [&](auto a) { forward<true, T, decltype(a)>(walk, call[GATE].as<T>(), call[UP].as<T>(), call[Y].as<T>()); });
  });
}

void series_glu_grad(const Call &call) {
  enum { DY, GATE, UP, GATE_BIAS, UP_BIAS, SCALE, SHIFT, ACTIVATION, DGATE, DUP, DGATE_BIAS, DUP_BIAS, DSCALE, DSHIFT };
  const Tensor up_bias = call[UP_BIAS];
  const Walk walk = make_walk(call[GATE], call[GATE_BIAS], &up_bias, call[SCALE], call[SHIFT]);
  with_type(call[GATE], [&](auto t) {
    using T = decltype(t);
    with_activation(call, ACTIVATION, [&](auto a) {
      backward<true, T, decltype(a)>(walk, call[DY].as<T>(), call[GATE].as<T>(), call[UP].as<T>(), call[DGATE].as<T>(), call[DUP].as<T>(),
                                     call[DGATE_BIAS].as<float>(), call[DUP_BIAS].as<float>(), call[DSCALE].as<float>(), call[DSHIFT].as<float>());
    });
  });
}

}  // namespace
}  // namespace ascend_ops

ASCEND_OPS_KERNEL(SeriesActivation, ascend_ops::series_activation)
ASCEND_OPS_KERNEL(SeriesActivationGrad, ascend_ops::series_activation_grad)
ASCEND_OPS_KERNEL(SeriesGlu, ascend_ops::series_glu)
ASCEND_OPS_KERNEL(SeriesGluGrad, ascend_ops::series_glu_grad)
