// The activations of ascend_ops.table.ACTIVATION_CODES as act(v) = v * gate(v), and their slopes, in float32.
#ifndef PANGU_ACTIVATION_H
#define PANGU_ACTIVATION_H

#include "vector_math.h"

namespace pangu {
constexpr uint32_t GELU = 0, GELU_ERF = 1, FAST_GELU = 2, SILU = 3;

constexpr float GELU_SLOPE = 1.5957691216057308f;  // 2 sqrt(2 / pi): tanh(a) = 2 sigmoid(2 a) - 1
constexpr float GELU_CUBIC = 0.044715f;
constexpr float FAST_GELU_SLOPE = 1.702f;
constexpr float SQRT_HALF = 0.7071067811865476f;
constexpr float INV_SQRT_2PI = 0.3989422804014327f;

class Activation {
  public:
    __aicore__ inline void Init(uint32_t code) { code_ = code; }

    // gate = sigmoid(p(v)), or the normal distribution function for gelu_erf; `scratch` is lost
    __aicore__ inline void Gate(const LocalTensor<float> &gate, const LocalTensor<float> &v, const LocalTensor<float> &scratch, uint32_t n) {
        if (code_ == GELU_ERF) {
            NormalCdf(gate, v, scratch, n);
            return;
        }
        NegativeExponent(gate, v, n);
        ordered::Exp(gate, gate, n);
        ordered::Adds(gate, gate, 1.0f, n);
        ordered::Fill(scratch, 1.0f, n);
        ordered::Div(gate, scratch, gate, n);
    }

    // gate becomes act'(v); `v` and `scratch` are lost.  s + s (1 - s) v p'(v), or Phi(v) + v phi(v)
    __aicore__ inline void Slope(const LocalTensor<float> &gate, const LocalTensor<float> &v, const LocalTensor<float> &scratch, uint32_t n) {
        if (code_ == GELU_ERF) {
            NormalDensity(scratch, v, INV_SQRT_2PI, n);
            ordered::Mul(scratch, scratch, v, n);
            ordered::Add(gate, gate, scratch, n);
            return;
        }
        ScaledExponentSlope(scratch, v, n);
        ordered::Mul(scratch, scratch, gate, n);
        ordered::Mul(v, scratch, gate, n);
        ordered::Sub(scratch, scratch, v, n);
        ordered::Add(gate, gate, scratch, n);
    }

  private:
    // d = -p(v)
    __aicore__ inline void NegativeExponent(const LocalTensor<float> &d, const LocalTensor<float> &v, uint32_t n) {
        if (code_ == GELU) {
            ordered::Mul(d, v, v, n);
            ordered::Muls(d, d, -GELU_SLOPE * GELU_CUBIC, n);
            ordered::Adds(d, d, -GELU_SLOPE, n);
            ordered::Mul(d, d, v, n);
        } else {
            ordered::Muls(d, v, code_ == FAST_GELU ? -FAST_GELU_SLOPE : -1.0f, n);
        }
    }

    // d = v p'(v)
    __aicore__ inline void ScaledExponentSlope(const LocalTensor<float> &d, const LocalTensor<float> &v, uint32_t n) {
        if (code_ == GELU) {
            ordered::Mul(d, v, v, n);
            ordered::Muls(d, d, 3.0f * GELU_SLOPE * GELU_CUBIC, n);
            ordered::Adds(d, d, GELU_SLOPE, n);
            ordered::Mul(d, d, v, n);
        } else {
            ordered::Muls(d, v, code_ == FAST_GELU ? FAST_GELU_SLOPE : 1.0f, n);
        }
    }

    // d = factor exp(-v v / 2)
    __aicore__ inline void NormalDensity(const LocalTensor<float> &d, const LocalTensor<float> &v, float factor, uint32_t n) {
        ordered::Mul(d, v, v, n);
        ordered::Muls(d, d, -0.5f, n);
        ordered::Exp(d, d, n);
        ordered::Muls(d, d, factor, n);
    }

    // Abramowitz and Stegun 7.1.26: erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x x), t = 1 / (1 + p x), error below 1.5e-7 for x >= 0.
    // With x = |v| / sqrt(2): Phi(v) = 1/2 + sign(v) erf(x) / 2, so the error of the gate stays below 1e-7 beside float32 rounding.
    __aicore__ inline void NormalCdf(const LocalTensor<float> &d, const LocalTensor<float> &v, const LocalTensor<float> &t, uint32_t n) {
        ordered::Abs(t, v, n);
        ordered::Muls(t, t, 0.3275911f * SQRT_HALF, n);
        ordered::Adds(t, t, 1.0f, n);
        ordered::Fill(d, 1.0f, n);
        ordered::Div(t, d, t, n);
        Polynomial(d, t, n);
        NormalDensity(t, v, 1.0f, n);
        ordered::Mul(d, d, t, n);
        ordered::Muls(d, d, -0.5f, n);
        ordered::Adds(d, d, 0.5f, n);
        // sign(v) = v / (|v| + tiny): 0 at 0, exact where float32 drops the tiny part (ascend910 has no Maxs)
        ordered::Abs(t, v, n);
        ordered::Adds(t, t, 1e-30f, n);
        ordered::Div(t, v, t, n);
        ordered::Mul(d, d, t, n);
        ordered::Adds(d, d, 0.5f, n);
    }

    // d = a1 t + ... + a5 t^5
    __aicore__ inline void Polynomial(const LocalTensor<float> &d, const LocalTensor<float> &t, uint32_t n) {
        ordered::Muls(d, t, 1.061405429f, n);
        HornerStep(d, t, -1.453152027f, n);
        HornerStep(d, t, 1.421413741f, n);
        HornerStep(d, t, -0.284496736f, n);
        HornerStep(d, t, 0.254829592f, n);
    }

    // d = (d + a) t
    __aicore__ inline void HornerStep(const LocalTensor<float> &d, const LocalTensor<float> &t, float a, uint32_t n) {
        ordered::Adds(d, d, a, n);
        ordered::Mul(d, d, t, n);
    }

    uint32_t code_ = GELU;
};
}  // namespace pangu
#endif
