// What device code uses of CUDA, and the same for a plain C++ compiler.
//
// The phases of the step (phases.hpp) are compiled twice: by nvcc for the GPU, and by the host's
// compiler for a test in which every CUDA warp is one thread of one lane, every barrier is a
// std::barrier, and a race detector can watch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define NEDS_DEVICE __device__ __forceinline__
#define NEDS_UNROLL _Pragma("unroll")
#define NEDS_UNROLL_TWICE _Pragma("unroll 2")
#define NEDS_UNROLL_FOUR _Pragma("unroll 4")
#define NEDS_ROLLED _Pragma("unroll 1")  // code is fetched once a step: the less, the better
#else
#include <bit>
#include <cstring>
#define NEDS_DEVICE inline
#define NEDS_UNROLL
#define NEDS_UNROLL_TWICE
#define NEDS_UNROLL_FOUR
#define NEDS_ROLLED
#endif

namespace neds::gpu {

#ifdef __CUDACC__
inline constexpr int lanes = 32;
using vec4 = float4;

NEDS_DEVICE vec4 make_vec4(float a, float b, float c, float d) { return make_float4(a, b, c, d); }
NEDS_DEVICE float exchange(float value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
NEDS_DEVICE float exponential(float x) { return expf(x); }
NEDS_DEVICE float power_of_two(float x) { return exp2f(x); }
NEDS_DEVICE float inverse_root(float x) { return rsqrtf(x); }
NEDS_DEVICE std::uint32_t bits_of(float x) { return __float_as_uint(x); }
#else
inline constexpr int lanes = 1;
struct alignas(16) vec4 {
  float x, y, z, w;
};

NEDS_DEVICE vec4 make_vec4(float a, float b, float c, float d) { return {a, b, c, d}; }
NEDS_DEVICE float exchange(float value, int) { return value; }
NEDS_DEVICE float exponential(float x) { return std::exp(x); }
NEDS_DEVICE float power_of_two(float x) { return std::exp2(x); }
NEDS_DEVICE float inverse_root(float x) { return 1.0f / std::sqrt(x); }
NEDS_DEVICE std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
#endif

NEDS_DEVICE vec4 load4(const float* p) { return *reinterpret_cast<const vec4*>(p); }
NEDS_DEVICE float dot4(vec4 a, vec4 b, float sum) {
  sum += a.x * b.x;
  sum += a.y * b.y;
  sum += a.z * b.z;
  return sum + a.w * b.w;
}

// Weights as they are stored; arithmetic is in float whatever they are.
struct Bf16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

NEDS_DEVICE vec4 load4(const Bf16* p) {
  struct alignas(8) Pair {
    std::uint32_t low, high;
  };
  const Pair raw = *reinterpret_cast<const Pair*>(p);
  const std::uint32_t bits[4] = {raw.low << 16, raw.low & 0xFFFF0000u, raw.high << 16,
                                 raw.high & 0xFFFF0000u};
#ifdef __CUDACC__
  return make_float4(__uint_as_float(bits[0]), __uint_as_float(bits[1]), __uint_as_float(bits[2]),
                     __uint_as_float(bits[3]));
#else
  vec4 v;
  std::memcpy(&v, bits, sizeof v);
  return v;
#endif
}

#ifdef __CUDACC__
NEDS_DEVICE vec4 load4(const Half* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
  const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
  return make_float4(a.x, a.y, b.x, b.y);
}
#else
inline float half_to_float(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const float size = exponent ? std::ldexp(1024.0f + static_cast<float>(fraction), exponent - 25)
                              : std::ldexp(static_cast<float>(fraction), -24);
  return bits & 0x8000 ? -size : size;
}
inline vec4 load4(const Half* p) {
  return {half_to_float(p[0].bits), half_to_float(p[1].bits), half_to_float(p[2].bits),
          half_to_float(p[3].bits)};
}
#endif

}  // namespace neds::gpu
