// The activations, sixteen values at a time, each with its slope.
#pragma once

#include <stdexcept>

#include "vector.h"

namespace ascend_ops {

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

// Calls f(Activation{}) for a value of the attribute `activation` (ACTIVATION_CODES in table.py).
template <typename F>
void with_activation(int code, F f) {
  switch (code) {
    case 0: return f(GeluTanh{});
    case 1: return f(GeluErf{});
    case 2: return f(SigmoidGate<1702>{});
    case 3: return f(SigmoidGate<1000>{});
  }
  throw std::invalid_argument("no such activation");
}

}  // namespace ascend_ops
