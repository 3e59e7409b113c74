// The three ways in which weights are stored, and sums of products with them, for step_kernels.cpp
// alone: internal linkage only, see step_math.hpp.
//
// A panel holds `group` consecutive inputs of one output side by side, then those of the next
// output: [in / group][outputs of panel][group]. A pair of bf16 weights is then one 32-bit lane,
// whose halves are two floats, and a pair of int8 weights what the CPU's "multiply and add pairs"
// takes.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "step_math.hpp"
#include "step_plan.hpp"

namespace neds {
namespace {

template <int N>
struct Narrow {
  typedef std::int8_t bytes __attribute__((vector_size(N)));
  typedef std::int16_t shorts __attribute__((vector_size(2 * N)));
  typedef std::uint16_t halves __attribute__((vector_size(2 * N)));
};

typedef std::uint32_t vuint __attribute__((vector_size(lanes * sizeof(std::uint32_t))));

template <class V, class T>
NEDS_INLINE V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// sum + w[2i] * low half of pair + w[2i + 1] * high half, for every lane i.
NEDS_INLINE vint add_pair_products(vint sum, const std::int8_t* w, std::int32_t pair) {
#if defined(__AVX512BW__)
  const __m512i x = _mm512_cvtepi8_epi16(load_as<__m256i>(w));
  const __m512i y = _mm512_set1_epi32(pair);
#if defined(__AVX512VNNI__)
  return (vint)_mm512_dpwssd_epi32((__m512i)sum, x, y);
#else
  return sum + (vint)_mm512_madd_epi16(x, y);
#endif
#elif defined(__AVX2__)
  const __m256i x = _mm256_cvtepi8_epi16(load_as<__m128i>(w));
  return sum + (vint)_mm256_madd_epi16(x, _mm256_set1_epi32(pair));
#else
  using Pairs = Narrow<2 * lanes>;
  const vint both = (vint)__builtin_convertvector(load_as<Pairs::bytes>(w), Pairs::shorts);
  return sum + ((both << 16) >> 16) * ((pair << 16) >> 16) + (both >> 16) * (pair >> 16);
#endif
}

struct Float32 {
  static constexpr Precision precision = Precision::float32;
  typedef float Stored;
  typedef Float32 Ring;  // how keys and values are stored beside such weights

  static NEDS_INLINE float narrow(float x) { return x; }
  static NEDS_INLINE vfloat widen(const float* p) { return load(p); }
};

struct Bf16 {
  static constexpr Precision precision = Precision::bf16;
  typedef std::uint16_t Stored;
  typedef Bf16 Ring;

  static NEDS_INLINE std::uint16_t narrow(float x) { return to_bf16(x); }
  static NEDS_INLINE vfloat widen(const std::uint16_t* p) {
    return (vfloat)(__builtin_convertvector(load_as<Narrow<lanes>::halves>(p), vuint) << 16);
  }
};

struct Int8 {
  static constexpr Precision precision = Precision::int8;
  typedef std::int8_t Stored;
  typedef Bf16 Ring;

  static NEDS_INLINE vfloat widen(const std::int8_t* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (vfloat)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    // In two steps: GCC converts bytes to floats one by one.
    using N = Narrow<lanes>;
    const N::shorts shorts = __builtin_convertvector(load_as<N::bytes>(p), N::shorts);
    return __builtin_convertvector(__builtin_convertvector(shorts, vint), vfloat);
#endif
  }
};

template <class W>
constexpr int group = group_of(W::precision);

// Rows of activations as they are multiplied: floats, or for int8 weights 16-bit integers that
// `scale` turns back. 8 bits would be no faster, the weights' way from memory being what a step
// waits for, and cost accuracy; floats take twice as long.
template <class W>
struct Factor {
  const float* values;
};

template <>
struct Factor<Int8> {
  const std::int16_t* values;
  float scale;
};

template <class W>
NEDS_INLINE Factor<W> factor(const float* row, int, std::int16_t*) {
  return {row};
}

// `row` is padded with zeros to whole vectors. A value that is not finite makes the scale NaN.
template <>
NEDS_INLINE Factor<Int8> factor<Int8>(const float* row, int n, std::int16_t* to) {
  vfloat largest = {}, poison = {};
  for (int i = 0; i < n; i += lanes) {
    const vfloat x = load(row + i);
    poison += x * 0.0f;
    largest = larger(largest, larger(x, -x));
  }
  const float top = reduce<true>(largest);
  const float inverse = top > 1e-30f ? 32767.0f / top : 0.0f;
  using Shorts = Narrow<lanes>::shorts;
  for (int i = 0; i < n; i += lanes) {
    // Adding 1.5 * 2^23 rounds to an integer that the low bits of the sum then hold.
    const vint rounded = (vint)(load(row + i) * inverse + 12582912.0f) - 0x4B400000;
    const Shorts shorts = __builtin_convertvector(rounded, Shorts);
    __builtin_memcpy(to + i, &shorts, sizeof shorts);
  }
  return {to, top / 32767.0f + reduce<false>(poison)};
}

// Ask for what is read next but one. It costs nothing measurable where that is in the caches
// already, and saves up to a tenth of a step where it is not. What follows a matrix is the next one, so running past its end is right as well.
template <int BYTES>
NEDS_INLINE void fetch_ahead(const void* p) {
#pragma GCC unroll 4
  for (int line = 0; line < BYTES; line += 64)
    __builtin_prefetch(static_cast<const char*>(p) + 1024 + line);
}

// sums[v] += factor . panel over `depth`, without the factor's scale. One row leaves few
// independent sums, so `unroll` steps of the depth are kept apart to hide an addition's latency.
template <class W, int VECTORS>
NEDS_INLINE void multiply(const float* weight, int depth, Factor<Float32> row,
                          vfloat (&sums)[VECTORS]) {
  constexpr int unroll = 8 / VECTORS;
  const float* const input = row.values;
  vfloat part[unroll][VECTORS] = {};
  int k = 0;
  for (; k + unroll <= depth; k += unroll) {
#pragma GCC unroll 8
    for (int u = 0; u < unroll; ++u) {
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) part[u][v] += load(weight + v * lanes) * input[k + u];
      fetch_ahead<VECTORS * lanes * 4>(weight);
      weight += VECTORS * lanes;
    }
  }
  for (; k < depth; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) part[0][v] += load(weight + v * lanes) * input[k];
    weight += VECTORS * lanes;
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v)
#pragma GCC unroll 8
    for (int u = 0; u < unroll; ++u) sums[v] += part[u][v];
}

template <class W, int VECTORS>
NEDS_INLINE void multiply(const std::uint16_t* weight, int depth, Factor<Bf16> row,
                          vfloat (&sums)[VECTORS]) {
  constexpr int unroll = VECTORS < 4 ? 4 / VECTORS : 1;
  constexpr int step = 2 * unroll;
  const float* const input = row.values;
  vfloat part[step][VECTORS] = {};
  int k = 0;
  const auto add = [&](int u) NEDS_ALWAYS {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const vuint pair = load_as<vuint>(weight + v * 2 * lanes);
      part[2 * u][v] += (vfloat)(pair << 16) * input[k + 2 * u];
      part[2 * u + 1][v] += (vfloat)(pair & 0xFFFF0000u) * input[k + 2 * u + 1];
    }
    fetch_ahead<VECTORS * lanes * 4>(weight);
    weight += VECTORS * 2 * lanes;
  };
  for (; k + step <= depth; k += step) {
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) add(u);
  }
  for (; k < depth; k += 2) add(0);
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v)
#pragma GCC unroll 8
    for (int u = 0; u < step; ++u) sums[v] += part[u][v];
}

template <class W, int VECTORS>
NEDS_INLINE void multiply(const std::int8_t* weight, int depth, Factor<Int8> row,
                          vfloat (&sums)[VECTORS]) {
  constexpr int unroll = VECTORS < 4 ? 4 / VECTORS : 2;
  constexpr int longest = 512;  // 512 * 127 * 32767 is the most that 32 bits hold
  for (int begin = 0; begin < depth; begin += longest) {
    const int end = depth - begin < longest ? depth : begin + longest;
    vint part[unroll][VECTORS] = {};
    int k = begin;
    const auto add = [&](int u) NEDS_ALWAYS {
      std::int32_t pair;
      __builtin_memcpy(&pair, row.values + k + 2 * u, sizeof pair);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v)
        part[u][v] = add_pair_products(part[u][v], weight + v * 2 * lanes, pair);
      fetch_ahead<VECTORS * lanes * 2>(weight);
      weight += VECTORS * 2 * lanes;
    };
    for (; k + 2 * unroll <= end; k += 2 * unroll) {
#pragma GCC unroll 4
      for (int u = 0; u < unroll; ++u) add(u);
    }
    for (; k < end; k += 2) add(0);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      vint sum = part[0][v];
#pragma GCC unroll 4
      for (int u = 1; u < unroll; ++u) sum += part[u][v];
      sums[v] += __builtin_convertvector(sum, vfloat);
    }
  }
}

}  // namespace
}  // namespace neds
