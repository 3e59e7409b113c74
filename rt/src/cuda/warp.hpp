// What one warp does by itself: products of weight rows with token rows, sums, norms.
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

// How many weight rows a warp multiplies at once with ROWS token rows, and the values that gives,
// as a power of two.
template <int ROWS>
struct Tile {
  static constexpr int rows = ROWS == 1 ? 4 : ROWS <= 2 ? 4 : ROWS <= 5 ? 3 : 2;
  static constexpr int values = ROWS == 1 ? 4 : ROWS == 2 ? 8 : 16;
  static_assert(rows * ROWS <= values);
};

// Rows `first` .. of a matrix (n, ld) times ROWS vectors (stride ld_x, floats, in shared memory);
// f(row of the matrix, token row, sum, copy, copies) for each product. `n_rows` <= ROWS is the
// number of vectors there are; the others repeat the last and are dropped, as rows beyond n are.
template <int ROWS, class Weight, class F>
NEDS_DEVICE void multiply(const Weight* matrix, int ld, int first, int n, const float* x, int ld_x,
                          int n_rows, int lane, const F& f) {
  constexpr int tile = Tile<ROWS>::rows, values = Tile<ROWS>::values;
  const Weight* weight[tile];
  const float* vector[ROWS];
  NEDS_UNROLL
  for (int j = 0; j < tile; ++j)
    weight[j] = matrix + static_cast<std::size_t>(first + j < n ? first + j : n - 1) * ld;
  NEDS_UNROLL
  for (int r = 0; r < ROWS; ++r) vector[r] = x + (r < n_rows ? r : n_rows - 1) * ld_x;
  float sums[values] = {};
  NEDS_UNROLL_TWICE
  for (int k = lane * 4; k < ld; k += lanes * 4) {
    vec4 w[tile];
    NEDS_UNROLL
    for (int j = 0; j < tile; ++j) w[j] = load4(weight[j] + k);
    NEDS_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const vec4 v = load4(vector[r] + k);
      NEDS_UNROLL
      for (int j = 0; j < tile; ++j) sums[j * ROWS + r] = dot4(w[j], v, sums[j * ROWS + r]);
    }
  }
  sum_and_spread<values>(sums, lane, [&](int i, float sum, int copy, int copies) {
    const int j = i / ROWS, r = i % ROWS;
    if (j < tile && first + j < n && r < n_rows) f(first + j, r, sum, copy, copies);
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
