// What one warp does by itself: products of weight rows with a vector, sums, norms.
#pragma once

#include "plan.hpp"
#include "shim.hpp"

namespace neds::gpu {

NEDS_DEVICE float warp_sum(float value) {
  NEDS_UNROLL
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += exchange(value, mask);
  return value;
}

NEDS_DEVICE float warp_max(float value) {
  NEDS_UNROLL
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = fmaxf(value, exchange(value, mask));
  return value;
}

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), written with a logistic function: no cancellation.
NEDS_DEVICE float gelu(float x) {
  const float u = x * (1.5957691216057308f + 0.07135481282553506f * (x * x));
  return x / (1.0f + exponential(-u));
}

NEDS_DEVICE float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Sum each of N values (a power of two up to the lanes) over the warp and call
// f(i, sum, copy, copies) for each i once per copy, where the copies are lanes that share the work
// of passing the sum on. Halving the values with each exchange takes N exchanges in place of 5 N.
template <int N, class F>
NEDS_DEVICE void sum_and_spread(float (&values)[N], int lane, const F& f) {
#ifdef __CUDACC__
  int index = 0, mask = lanes / 2;
  NEDS_UNROLL
  for (int n = N / 2; n > 0; n /= 2, mask /= 2) {
    const bool upper = (lane & mask) != 0;
    NEDS_UNROLL
    for (int i = 0; i < n; ++i) {
      const float given = upper ? values[i] : values[i + n];
      const float kept = upper ? values[i + n] : values[i];
      values[i] = kept + exchange(given, mask);
    }
    index += upper ? n : 0;
  }
  float sum = values[0];
  for (; mask > 0; mask /= 2) sum += exchange(sum, mask);
  constexpr int copies = lanes / N;
  f(index, sum, lane % copies, copies);
#else
  (void)lane;
  for (int i = 0; i < N; ++i) f(i, values[i], 0, 1);
#endif
}

// What a norm does to a vector: (x - mean) * scale * weight + bias; no norm at all if weight is null.
struct Norm {
  const float *weight, *bias;
  float mean, scale;
};

NEDS_DEVICE vec4 normed(vec4 v, const Norm& norm, int k) {
  const vec4 w = load4(norm.weight + k), b = load4(norm.bias + k);
  return make_vec4((v.x - norm.mean) * norm.scale * w.x + b.x, (v.y - norm.mean) * norm.scale * w.y + b.y,
                   (v.z - norm.mean) * norm.scale * w.z + b.z, (v.w - norm.mean) * norm.scale * w.w + b.w);
}

// Mean and scale of the n values at x, whose padding up to ld is zero. Sums and squares come from one
// pass: a residual stream's mean is small beside its spread, so that little is lost in the difference.
NEDS_DEVICE void measure(const float* x, int n, int ld, int lane, Norm& norm) {
  float sum = 0, square = 0;
  NEDS_UNROLL_TWICE
  for (int k = lane * 4; k < ld; k += lanes * 4) {
    const vec4 v = load4(x + k);
    sum += (v.x + v.y) + (v.z + v.w);
    square = dot4(v, v, square);
  }
  NEDS_UNROLL
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    sum += exchange(sum, mask);
    square += exchange(square, mask);
  }
  norm.mean = sum / static_cast<float>(n);
  norm.scale = inverse_root(fmaxf(square / static_cast<float>(n) - norm.mean * norm.mean, 0.0f) + 1e-5f);
}

// The bias that follows a row of `ld` weights.
template <class Weight>
NEDS_DEVICE float bias_of(const Weight* row, int ld) {
  return *reinterpret_cast<const float*>(row + ld);
}

// The rows from `weights`, each `ld` weights and a bias, times the vector x (floats, in shared memory)
// after its norm; f(j, product with bias, copy) for each row once per copy, where copies (lanes /
// tile_rows) are lanes that share what is to be done with it.
template <class Weight, class F>
NEDS_DEVICE void multiply(const Weight* weights, int ld, const float* x, const Norm& norm, int lane,
                          const F& f) {
  const int row = ld + bias_bytes / static_cast<int>(sizeof(Weight));
  float sums[tile_rows] = {};
  NEDS_UNROLL_TWICE
  for (int k = lane * 4; k < ld; k += lanes * 4) {
    vec4 v = load4(x + k);
    if (norm.weight) v = normed(v, norm, k);
    NEDS_UNROLL
    for (int j = 0; j < tile_rows; ++j) sums[j] = dot4(load4(weights + j * row + k), v, sums[j]);
  }
  sum_and_spread<tile_rows>(sums, lane, [&](int j, float sum, int copy, int) {
    f(j, sum + bias_of(weights + j * row, ld), copy);
  });
}

}  // namespace neds::gpu
