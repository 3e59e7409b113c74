// The header of a spike frame: parsed from untrusted bytes, nothing believed before it is checked.
#pragma once

#include <cstdint>
#include <string_view>

#include "core.hpp"
#include "msgpack.hpp"

namespace neds {

constexpr std::int64_t kWireVersion = 1;
constexpr std::int64_t kMaxSpikesPerFrame = 1'000'000;
constexpr std::size_t kMaxHeaderBytes = 512;
constexpr std::size_t kMaxNameBytes = 64;
constexpr std::size_t kHeaderFields = 11;
constexpr std::size_t kSpikeBytes = 12;  // <i8 sample, <u4 unit, packed

struct SpikeHeader {
  std::string_view stream;
  std::string_view session;
  std::int64_t seq = 0;
  std::int64_t t0_sample = 0;
  std::int64_t watermark = 0;
  double fs = 0;
  std::int64_t sent_mono_ns = 0;
  std::int64_t sent_real_ns = 0;
  std::int64_t n_spikes = 0;
};

enum class HeaderVerdict { ok, header, version, range };

// `header`: not the MessagePack array it should be; `version`: another wire version; `range`: well
// formed, with a value no source may send. The views in `out` point into `data`.
inline HeaderVerdict parse_header(const std::uint8_t* data, std::size_t size, SpikeHeader& out) {
  if (size > kMaxHeaderBytes) return HeaderVerdict::header;
  Reader in(data, size);
  std::uint64_t n = 0;
  std::string_view tag;
  std::int64_t version = 0;
  if (!in.array(n) || n < 2 || !in.text(tag) || tag != "spikes" || !in.integer(version)) {
    return HeaderVerdict::header;
  }
  if (version != kWireVersion) return HeaderVerdict::version;
  if (n != kHeaderFields || !in.text(out.stream) || !in.text(out.session) || !in.integer(out.seq) ||
      !in.integer(out.t0_sample) || !in.integer(out.watermark) || !in.number(out.fs) ||
      !in.integer(out.sent_mono_ns) || !in.integer(out.sent_real_ns) || !in.integer(out.n_spikes) ||
      !in.finished()) {
    return HeaderVerdict::header;
  }
  const bool sane = out.stream.size() <= kMaxNameBytes && out.session.size() <= kMaxNameBytes &&
                    out.seq >= 0 && out.t0_sample >= -kMaxSample && out.watermark <= kMaxSample &&
                    out.t0_sample <= out.watermark && out.n_spikes >= 0 &&
                    out.n_spikes <= kMaxSpikesPerFrame && out.fs > 0 && std::isfinite(out.fs);
  return sane ? HeaderVerdict::ok : HeaderVerdict::range;
}

// Reads record `i` of a payload, whatever the machine's byte order and the buffer's alignment.
inline void read_spike(const std::uint8_t* payload, std::size_t i, std::int64_t& sample,
                       std::uint32_t& unit) noexcept {
  const std::uint8_t* at = payload + i * kSpikeBytes;
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(&sample, at, 8);
    std::memcpy(&unit, at + 8, 4);
  } else {
    std::uint64_t bits = 0;
    for (int k = 7; k >= 0; --k) bits = (bits << 8) | at[k];
    sample = static_cast<std::int64_t>(bits);
    unit = at[8] | at[9] << 8 | at[10] << 16 | static_cast<std::uint32_t>(at[11]) << 24;
  }
}

// Writes record `i` of a payload; the counterpart of read_spike.
inline void write_spike(std::uint8_t* payload, std::size_t i, std::int64_t sample,
                        std::uint32_t unit) noexcept {
  std::uint8_t* at = payload + i * kSpikeBytes;
  const auto bits = static_cast<std::uint64_t>(sample);
  for (int k = 0; k < 8; ++k) at[k] = static_cast<std::uint8_t>(bits >> (8 * k));
  for (int k = 0; k < 4; ++k) at[8 + k] = static_cast<std::uint8_t>(unit >> (8 * k));
}

}  // namespace neds
