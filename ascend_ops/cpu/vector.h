// Sixteen floats at a time, as GCC's vector extension: the compiler maps them to AVX-512, AVX2, SSE or NEON. All arithmetic is float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define ASCEND_OPS_INLINE inline __attribute__((always_inline))

namespace ascend_ops {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64), aligned(64)));
typedef int32_t IntVec __attribute__((vector_size(64), aligned(64)));
typedef uint32_t UintVec __attribute__((vector_size(64), aligned(64)));
typedef uint16_t ShortVec __attribute__((vector_size(32), aligned(32)));

ASCEND_OPS_INLINE Vec splat(float value) { return Vec{} + value; }

template <typename To, typename From>
ASCEND_OPS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// mask lanes are -1 or 0
template <typename V>
ASCEND_OPS_INLINE V select(IntVec mask, V yes, V no) {
  return mask ? yes : no;
}
// The larger (smaller) of both; b where either is NaN.
ASCEND_OPS_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#else
  return select(bit_cast<IntVec>(a > b), a, b);
#endif
}
ASCEND_OPS_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_min_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#else
  return select(bit_cast<IntVec>(a < b), a, b);
#endif
}
ASCEND_OPS_INLINE Vec abs(Vec a) { return bit_cast<Vec>(bit_cast<UintVec>(a) & 0x7fffffffu); }

// ---- float16 and bfloat16
ASCEND_OPS_INLINE Vec widen_half(ShortVec half) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_cvtph_ps(bit_cast<__m256i>(half)));
#else
  const UintVec h = __builtin_convertvector(half, UintVec);
  const UintVec magnitude = (h & 0x7fffu) << 13;
  const Vec scaled = bit_cast<Vec>(magnitude) * 0x1p112f;  // the exponent's bias; right for subnormal values too
  const IntVec special = bit_cast<IntVec>(magnitude >= 0x0f800000u);
  const UintVec bits = select(special, magnitude | 0x7f800000u, bit_cast<UintVec>(scaled));
  return bit_cast<Vec>(bits | (h & 0x8000u) << 16);
#endif
}

ASCEND_OPS_INLINE ShortVec narrow_half(Vec x) {
#if defined(__AVX512F__)
  return bit_cast<ShortVec>(_mm512_cvtps_ph(bit_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const UintVec bits = bit_cast<UintVec>(x), magnitude = bits & 0x7fffffffu;
  const UintVec normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1u)) >> 13;  // rebias, round to even
  const UintVec small = bit_cast<UintVec>(bit_cast<Vec>(magnitude) + 0.5f) - 0x3f000000u;  // the addition rounds subnormal results
  UintVec half = select(bit_cast<IntVec>(magnitude < 0x38800000u), small, normal);
  half = select(bit_cast<IntVec>(magnitude >= 0x477ff000u), UintVec{} + 0x7c00u, half);
  half = select(bit_cast<IntVec>(magnitude > 0x7f800000u), UintVec{} + 0x7e00u, half);
  return __builtin_convertvector(half | (bits >> 16 & 0x8000u), ShortVec);
#endif
}

ASCEND_OPS_INLINE Vec widen_bfloat16(ShortVec b) { return bit_cast<Vec>(__builtin_convertvector(b, UintVec) << 16); }

ASCEND_OPS_INLINE ShortVec narrow_bfloat16(Vec x) {
  const UintVec bits = bit_cast<UintVec>(x);
  const UintVec rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // to nearest, ties to even
  const UintVec quiet_nan = bits >> 16 | 0x40u;
  return __builtin_convertvector(select(bit_cast<IntVec>((bits & 0x7fffffffu) > 0x7f800000u), quiet_nan, rounded), ShortVec);
}

// ---- memory
ASCEND_OPS_INLINE Vec load(const float *p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
ASCEND_OPS_INLINE void store(float *p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

ASCEND_OPS_INLINE ShortVec load_bits(const void *p) {
  ShortVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
ASCEND_OPS_INLINE void store_bits(void *p, ShortVec v) { std::memcpy(p, &v, sizeof(v)); }

ASCEND_OPS_INLINE Vec load(const Half *p) { return widen_half(load_bits(p)); }
ASCEND_OPS_INLINE Vec load(const Bfloat16 *p) { return widen_bfloat16(load_bits(p)); }
ASCEND_OPS_INLINE void store(Half *p, Vec v) { store_bits(p, narrow_half(v)); }
ASCEND_OPS_INLINE void store(Bfloat16 *p, Vec v) { store_bits(p, narrow_bfloat16(v)); }

// The first n of sixteen elements; the others are read as `rest` and not written.
template <typename T>
ASCEND_OPS_INLINE Vec load(const T *p, int64_t n, float rest = 0.0f) {
  T buffer[kLanes];
  store(buffer, splat(rest));
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}
template <typename T>
ASCEND_OPS_INLINE void store(T *p, Vec v, int64_t n) {
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(T));
}

// The same where n is sixteen or more nearly always.
template <typename T>
ASCEND_OPS_INLINE Vec load_upto(const T *p, int64_t n) {
  return __builtin_expect(n >= kLanes, 1) ? load(p) : load(p, n);
}
template <typename T>
ASCEND_OPS_INLINE void store_upto(T *p, Vec v, int64_t n) {
  if (__builtin_expect(n >= kLanes, 1)) store(p, v);
  else store(p, v, n);
}

template <typename T>
ASCEND_OPS_INLINE float to_float(T x) {
  return load(&x, 1)[0];
}
ASCEND_OPS_INLINE float to_float(float x) { return x; }

// ---- reductions, in an order that never changes
ASCEND_OPS_INLINE float sum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
ASCEND_OPS_INLINE float max(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  float m = lanes[0];
  for (int i = 1; i < kLanes; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

// ---- functions. NaN stays NaN in all of them.

// 1 / x, to 2 units in the last place.
ASCEND_OPS_INLINE Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  const Vec guess = bit_cast<Vec>(_mm512_rcp14_ps(bit_cast<__m512>(x)));
  const Vec better = guess * (2.0f - x * guess);  // Newton's step; NaN where x is 0 or infinite, and there the guess is exact
  return select(bit_cast<IntVec>(better == better), better, guess);
#else
  return 1.0f / x;
#endif
}

// e^x to 2 units in the last place; 0 and infinity beyond the range of float32.
// Source: Cephes expf (Moshier): range reduction by ln 2 in two parts, polynomial of degree 5.
ASCEND_OPS_INLINE Vec exp(Vec x) {
  x = min(splat(89.0f), max(splat(-104.0f), x));  // NaN passes: the bound comes first
  Vec n;
#if defined(__AVX512F__)
  n = bit_cast<Vec>(_mm512_roundscale_ps(bit_cast<__m512>(x * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  n = (x * 1.44269504088896341f + magic) - magic;
#endif
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
#if defined(__AVX512F__)
  return bit_cast<Vec>(_mm512_scalef_ps(bit_cast<__m512>(p), bit_cast<__m512>(n)));
#else
  // 2^n in two factors: n reaches -150 and 128, which one exponent cannot hold. An integer made of NaN is wiped out by p, which is NaN too.
  const IntVec whole = __builtin_convertvector(select(bit_cast<IntVec>(n == n), n, Vec{}), IntVec), half = whole >> 1;
  return p * bit_cast<Vec>((half + 127) << 23) * bit_cast<Vec>((whole - half + 127) << 23);
#endif
}

ASCEND_OPS_INLINE Vec sigmoid(Vec x) { return reciprocal(1.0f + exp(-x)); }

}  // namespace ascend_ops
