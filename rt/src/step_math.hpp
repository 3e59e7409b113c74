// Vectors of floats and the functions of the step on them, for step_kernels.cpp alone.
//
// Everything has internal linkage and nothing of the standard library is used: this header is
// compiled for several instruction sets, and a function shared between them would be linked once,
// perhaps in the version that this CPU cannot run.
#pragma once

#include <cstddef>
#include <cstdint>

namespace neds {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(lanes * sizeof(float))));
typedef std::int32_t vint __attribute__((vector_size(lanes * sizeof(std::int32_t))));

#define NEDS_ALWAYS __attribute__((always_inline))
#define NEDS_INLINE inline NEDS_ALWAYS

NEDS_INLINE vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

NEDS_INLINE void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof v); }

// The order of the operands is that of the machine's instruction: of a NaN in b, b is the result.
NEDS_INLINE vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }
NEDS_INLINE vfloat smaller(vfloat a, vfloat b) { return a < b ? a : b; }

template <int N>
struct Wide {
  typedef float type __attribute__((vector_size(N * sizeof(float))));
};

// Sum, or maximum, over N lanes, by halving.
template <bool MAXIMUM, int N = lanes>
NEDS_INLINE float reduce(typename Wide<N>::type v) {
  if constexpr (N == 2) {
    if constexpr (MAXIMUM) return v[0] > v[1] ? v[0] : v[1];
    return v[0] + v[1];
  } else {
    typename Wide<N / 2>::type half[2];
    __builtin_memcpy(half, &v, sizeof half);
    if constexpr (MAXIMUM)
      return reduce<MAXIMUM, N / 2>(half[0] > half[1] ? half[0] : half[1]);
    else
      return reduce<MAXIMUM, N / 2>(half[0] + half[1]);
  }
}

// e^x to 1.2e-7 relative for x in [-87, 88]; NaN stays NaN.
NEDS_INLINE vfloat exponential(vfloat x) {
  // Adding 1.5 * 2^23 rounds x / ln 2 to an integer n that the low bits of the sum then hold.
  const vfloat shifted = x * 1.44269504088896341f + 12582912.0f;
  const vint n = (vint)shifted - 0x4B400000;
  const vfloat whole = shifted - 12582912.0f;
  vfloat r = x - whole * 0.693359375f;  // ln 2 in two parts, the first exact in 10 bits
  r = r + whole * 2.12194440e-4f;
  vfloat p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (vfloat)((n + 127) << 23);
}

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), written with a logistic function: no cancellation.
NEDS_INLINE vfloat gelu(vfloat x) {
  const vfloat u = x * (1.5957691216057308f + 0.07135481282553506f * (x * x));
  const vfloat low = vfloat{} - 87.0f, high = vfloat{} + 88.0f;
  return x / (1.0f + exponential(larger(low, smaller(high, -u))));
}

// 1 / (1 + e^-x).
NEDS_INLINE vfloat logistic(vfloat x) {
  const vfloat low = vfloat{} - 87.0f, high = vfloat{} + 87.0f;
  return 1.0f / (1.0f + exponential(larger(low, smaller(high, -x))));
}

// To 1e-7 absolute.
NEDS_INLINE vfloat hyperbolic_tangent(vfloat x) { return 2.0f * logistic(2.0f * x) - 1.0f; }

// y = (x - mean) / sqrt(variance + 1e-5) * weight + bias over n values; the rest of y is untouched.
NEDS_INLINE void layer_norm(const float* x, const float* weight, const float* bias, int n, float* y) {
  const int whole = n - n % lanes;
  vfloat sums = {};
  for (int i = 0; i < whole; i += lanes) sums += load(x + i);
  float sum = reduce<false>(sums);
  for (int i = whole; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);

  vfloat squares = {};
  for (int i = 0; i < whole; i += lanes) {
    const vfloat centred = load(x + i) - mean;
    squares += centred * centred;
  }
  float square = reduce<false>(squares);
  for (int i = whole; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + 1e-5f);

  for (int i = 0; i < whole; i += lanes)
    store(y + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
  for (int i = whole; i < n; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// Turn n scores (whole vectors, some minus infinity) into e^(score - largest); returns their sum.
NEDS_INLINE float soften(float* scores, std::size_t n) {
  vfloat largest = load(scores);
  for (std::size_t i = lanes; i < n; i += lanes) largest = larger(load(scores + i), largest);
  const float top = reduce<true>(largest);
  vfloat sums = {};
  for (std::size_t i = 0; i < n; i += lanes) {
    const vfloat x = load(scores + i) - top;
    // Weights below e^-80 count as none: an invalid slot gives exactly 0, and nothing denormal.
    const vfloat low = vfloat{} - 80.0f;
    const vfloat weight = x < low ? vfloat{} : exponential(larger(low, x));
    store(scores + i, weight);
    sums += weight;
  }
  return reduce<false>(sums);
}

}  // namespace
}  // namespace neds
