// What one warp does by itself: products of weight rows with a vector, sums, norms.
#pragma once

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

inline constexpr int tile_rows = 4;  // weight rows that a warp multiplies at once

// Rows `first` .. of a matrix (n, ld) times the vector x (floats, in shared memory);
// f(row of the matrix, sum, copy, copies) for each product. Rows beyond n are dropped.
template <class Weight, class F>
NEDS_DEVICE void multiply(const Weight* matrix, int ld, int first, int n, const float* x, int lane,
                          const F& f) {
  const Weight* weight[tile_rows];
  NEDS_UNROLL
  for (int j = 0; j < tile_rows; ++j)
    weight[j] = matrix + static_cast<std::size_t>(first + j < n ? first + j : n - 1) * ld;
  float sums[tile_rows] = {};
  NEDS_UNROLL_TWICE
  for (int k = lane * 4; k < ld; k += lanes * 4) {
    const vec4 v = load4(x + k);
    NEDS_UNROLL
    for (int j = 0; j < tile_rows; ++j) sums[j] = dot4(load4(weight[j] + k), v, sums[j]);
  }
  sum_and_spread<tile_rows>(sums, lane, [&](int j, float sum, int copy, int copies) {
    if (first + j < n) f(first + j, sum, copy, copies);
  });
}

// y = (x - mean) / sqrt(variance + 1e-5) * weight + bias over n values of one row.
NEDS_DEVICE void layer_norm(const float* x, const float* weight, const float* bias, int n, int lane,
                            float* y) {
  float sum = 0;
  for (int i = lane; i < n; i += lanes) sum += x[i];
  const float mean = warp_sum(sum) / static_cast<float>(n);
  float square = 0;
  for (int i = lane; i < n; i += lanes) square += (x[i] - mean) * (x[i] - mean);
  const float scale = inverse_root(warp_sum(square) / static_cast<float>(n) + 1e-5f);
  for (int i = lane; i < n; i += lanes) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

}  // namespace neds::gpu
