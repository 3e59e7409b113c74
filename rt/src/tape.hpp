// The ring between the serving thread and the flight recorder: what went in and what came out.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace neds {

static_assert(std::endian::native == std::endian::little, "tapes are little-endian");

using ByteSpan = std::span<const std::uint8_t>;

template <class T>
ByteSpan bytes_of(const T& value) noexcept {
  return {reinterpret_cast<const std::uint8_t*>(&value), sizeof(T)};
}

enum class TapeKind : std::uint8_t {
  start = 'S', frame = 'F', decode = 'D', nothing = 'N', event = 'E', hole = 'H', end = 'Z'
};

// Begins every record, in the ring and in the file: head and body follow.
struct TapeRecord {
  std::uint32_t body_size = 0;  // bytes of head and body
  std::uint16_t head_size = 0;
  TapeKind kind = TapeKind::start;
  std::uint8_t reserved = 0;
  std::int64_t ns = 0;  // of the monotonic clock
};
static_assert(sizeof(TapeRecord) == 16);

// What was left out where it stands, since the ring was full.
struct TapeHole {
  std::uint64_t records = 0, inputs = 0, bytes = 0;  // inputs: what decides later decodes
};

// Single producer (the serving thread), single consumer (the recorder). A record goes in whole or
// is counted and left out, at once either way; the next that goes in has a hole before it.
class TapeRing {
 public:
  // Frames with larger parts are refused by the assembler, whatever they hold: a clipped one is
  // refused for the same reason.
  static constexpr std::size_t kMaxHeader = 512, kMaxPayload = 12'000'000, kMaxEvent = 60'000;
  static constexpr std::size_t kLargest = sizeof(TapeRecord) + kMaxHeader + kMaxPayload + 2;

  explicit TapeRing(std::size_t capacity) : ring_(capacity) {  // zeroed, so its pages are there
    if (capacity < kSmallest) throw std::invalid_argument("a tape's ring holds 4096 bytes or more");
  }

  // The producer's side: none of these waits, allocates or throws.
  void frame(ByteSpan header, ByteSpan payload, std::int64_t recv_ns) noexcept {
    add(TapeKind::frame, recv_ns, clip(header, kMaxHeader + 1), clip(payload, kMaxPayload + 1));
  }
  void decode(ByteSpan stamps, ByteSpan message, std::int64_t ns) noexcept {
    add(TapeKind::decode, ns, stamps, message);
  }
  void nothing(int reason, std::int64_t now_ns) noexcept {
    const auto code = static_cast<std::uint8_t>(reason);
    add(TapeKind::nothing, now_ns, {}, bytes_of(code));
  }
  void event(std::string_view kind, ByteSpan data, std::int64_t ns) noexcept {
    const ByteSpan name{reinterpret_cast<const std::uint8_t*>(kind.data()), kind.size()};
    add(TapeKind::event, ns, clip(name, 255), clip(data, kMaxEvent));
  }
  std::uint64_t lost() const noexcept { return lost_.load(std::memory_order_relaxed); }

  // The consumer's side.
  void begin() noexcept { recording_.store(true, std::memory_order_relaxed); }
  void end() noexcept { recording_.store(false, std::memory_order_relaxed); }
  std::uint64_t drained() const noexcept { return drained_.load(std::memory_order_relaxed); }
  std::uint64_t written() const noexcept { return written_.load(std::memory_order_acquire); }
  void release(std::uint64_t until) noexcept { drained_.store(until, std::memory_order_release); }
  TapeRecord record_at(std::uint64_t at) const noexcept {
    TapeRecord record;
    const auto [first, second] = parts(at, at + sizeof record);
    auto* to = reinterpret_cast<std::uint8_t*>(&record);
    std::memcpy(to, first.data(), first.size());
    if (!second.empty()) std::memcpy(to + first.size(), second.data(), second.size());
    return record;
  }
  // The bytes [from, until), which may lie around the end of the ring.
  std::array<ByteSpan, 2> parts(std::uint64_t from, std::uint64_t until) const noexcept {
    const std::size_t at = from % ring_.size(), n = until - from;
    const std::size_t first = std::min(n, ring_.size() - at);
    return {ByteSpan{ring_.data() + at, first}, ByteSpan{ring_.data(), n - first}};
  }
  // What is missing at the end; to be asked for when the producer has stopped.
  TapeHole missing() const noexcept { return missing_; }

 private:
  static constexpr std::size_t kSmallest = 4096;

  static ByteSpan clip(ByteSpan bytes, std::size_t most) noexcept {
    return bytes.first(std::min(bytes.size(), most));
  }

  void add(TapeKind kind, std::int64_t ns, ByteSpan head, ByteSpan body) noexcept {
    if (!recording_.load(std::memory_order_relaxed)) return;
    const std::size_t size = sizeof(TapeRecord) + head.size() + body.size();
    const std::size_t hole = missing_.records > 0 ? sizeof(TapeRecord) + sizeof(TapeHole) : 0;
    std::uint64_t at = written_.load(std::memory_order_relaxed);
    if (hole + size > ring_.size() - (at - drained_.load(std::memory_order_acquire))) {
      ++missing_.records;
      missing_.inputs += kind != TapeKind::decode;
      missing_.bytes += size;
      lost_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    if (hole > 0) {
      at = put(at, TapeKind::hole, ns, {}, bytes_of(missing_));
      missing_ = {};
    }
    written_.store(put(at, kind, ns, head, body), std::memory_order_release);
  }

  std::uint64_t put(std::uint64_t at, TapeKind kind, std::int64_t ns, ByteSpan head,
                    ByteSpan body) noexcept {
    const TapeRecord record{static_cast<std::uint32_t>(head.size() + body.size()),
                            static_cast<std::uint16_t>(head.size()), kind, 0, ns};
    for (const ByteSpan part : {bytes_of(record), head, body}) {
      const std::size_t to = at % ring_.size();
      const std::size_t first = std::min(part.size(), ring_.size() - to);
      if (first > 0) std::memcpy(ring_.data() + to, part.data(), first);
      if (first < part.size()) std::memcpy(ring_.data(), part.data() + first, part.size() - first);
      at += part.size();
    }
    return at;
  }

  std::vector<std::uint8_t> ring_;
  TapeHole missing_;  // the producer's
  std::atomic<bool> recording_{false};
  std::atomic<std::uint64_t> lost_{0};
  // Each on a cache line of its own: the two sides do not slow each other.
  alignas(64) std::atomic<std::uint64_t> written_{0};
  alignas(64) std::atomic<std::uint64_t> drained_{0};
};

}  // namespace neds
