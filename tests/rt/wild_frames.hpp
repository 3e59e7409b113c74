// Frames that look right and are not, for the programs that run under sanitizers.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "msgpack.hpp"
#include "wire.hpp"

namespace wild {

using namespace neds;


inline std::mt19937_64 rng;

inline std::int64_t pick(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}
inline std::int64_t plus(std::int64_t a, std::int64_t b) {  // wraps, as a careless sender's would
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
}
inline bool chance(int per_mille) { return pick(1, 1000) <= per_mille; }

// Values at the edges of what is allowed, and beyond.
inline std::int64_t edgy() {
  constexpr std::int64_t edges[] = {INT64_MIN, INT64_MAX, kMaxSample, -kMaxSample, kMaxSample + 1,
                                    -1, 0, 1, 600, 1'000'000, std::int64_t{1} << 31};
  return plus(edges[pick(0, std::size(edges) - 1)], pick(-1, 1));
}

struct Source {
  std::string name;
  std::int64_t n_units, session = 0, seq = 0, watermark = 0;
};

inline std::vector<std::uint8_t> header(const Source& s, std::int64_t t0, std::int64_t watermark,
                                 std::int64_t n) {
  std::vector<std::uint8_t> bytes(512);
  Writer out(bytes.data(), bytes.size());
  out.array(chance(2) ? 10 : 11);
  out.text("spikes");
  out.int64(chance(2) ? edgy() : 1);
  out.text(chance(2) ? "nobody" : s.name);
  out.text("s" + std::to_string(s.session));
  out.int64(chance(1) ? edgy() : s.seq);
  out.int64(t0);
  out.int64(watermark);
  out.float64(chance(2) ? static_cast<double>(edgy()) : 30'000.0);
  out.int64(0);
  out.int64(0);
  out.int64(chance(2) ? edgy() : n);
  bytes.resize(out.used());
  for (int i = 0; chance(20) && i < 3; ++i) bytes[pick(0, bytes.size() - 1)] ^= pick(1, 255);
  if (chance(5)) bytes.resize(pick(0, bytes.size()));
  return bytes;
}

inline std::vector<std::uint8_t> payload(const Source& s, std::int64_t t0, std::int64_t watermark,
                                  std::int64_t n) {
  std::vector<std::uint8_t> bytes(n * kSpikeBytes);
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t sample = chance(30) ? edgy() : plus(t0, pick(-200, 2000));
    if (chance(600) && watermark > t0) sample = plus(t0, pick(0, 1500));
    const auto unit = static_cast<std::uint32_t>(chance(30) ? edgy() : pick(0, s.n_units - 1));
    std::memcpy(&bytes[i * kSpikeBytes], &sample, 8);
    std::memcpy(&bytes[i * kSpikeBytes + 8], &unit, 4);
  }
  if (chance(5)) bytes.resize(bytes.size() / 2 + 1);
  return bytes;
}

}  // namespace wild
