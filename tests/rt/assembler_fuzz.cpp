// Throws frames at the assembler that look right and are not, under the sanitizers.
// Usage: assembler_fuzz SEED FRAMES; prints the counters, exits 1 when bins are missing or out of order.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "assembler.hpp"
#include "decode.hpp"

using namespace neds;

namespace {

std::mt19937_64 rng;

std::int64_t pick(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}
std::int64_t plus(std::int64_t a, std::int64_t b) {  // wraps, as a careless sender's would
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
}
bool chance(int per_mille) { return pick(1, 1000) <= per_mille; }

// Values at the edges of what is allowed, and beyond.
std::int64_t wild() {
  constexpr std::int64_t edges[] = {INT64_MIN, INT64_MAX, kMaxSample, -kMaxSample, kMaxSample + 1,
                                    -1, 0, 1, 600, 1'000'000, std::int64_t{1} << 31};
  return plus(edges[pick(0, std::size(edges) - 1)], pick(-1, 1));
}

struct Source {
  std::string name;
  std::int64_t n_units, session = 0, seq = 0, watermark = 0;
};

std::vector<std::uint8_t> header(const Source& s, std::int64_t t0, std::int64_t watermark,
                                 std::int64_t n) {
  std::vector<std::uint8_t> bytes(512);
  Writer out(bytes.data(), bytes.size());
  out.array(chance(2) ? 10 : 11);
  out.text("spikes");
  out.int64(chance(2) ? wild() : 1);
  out.text(chance(2) ? "nobody" : s.name);
  out.text("s" + std::to_string(s.session));
  out.int64(chance(1) ? wild() : s.seq);
  out.int64(t0);
  out.int64(watermark);
  out.float64(chance(2) ? static_cast<double>(wild()) : 30'000.0);
  out.int64(0);
  out.int64(0);
  out.int64(chance(2) ? wild() : n);
  bytes.resize(out.used());
  for (int i = 0; chance(20) && i < 3; ++i) bytes[pick(0, bytes.size() - 1)] ^= pick(1, 255);
  if (chance(5)) bytes.resize(pick(0, bytes.size()));
  return bytes;
}

std::vector<std::uint8_t> payload(const Source& s, std::int64_t t0, std::int64_t watermark,
                                  std::int64_t n) {
  std::vector<std::uint8_t> bytes(n * kSpikeBytes);
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t sample = chance(30) ? wild() : plus(t0, pick(-200, 2000));
    if (chance(600) && watermark > t0) sample = plus(t0, pick(0, 1500));
    const auto unit = static_cast<std::uint32_t>(chance(30) ? wild() : pick(0, s.n_units - 1));
    std::memcpy(&bytes[i * kSpikeBytes], &sample, 8);
    std::memcpy(&bytes[i * kSpikeBytes + 8], &unit, 4);
  }
  if (chance(5)) bytes.resize(bytes.size() / 2 + 1);
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const std::int64_t frames = argc > 2 ? std::atoll(argv[2]) : 10'000;
  std::vector<Source> sources = {{"a", 3}, {"b", 2}};
  Assembler live(0.02, {{"a", {4, 0, 2}}, {"b", {1, 3}}}, 5, 16, {100'000'000, 0.5});
  std::int64_t now_ns = 0, quiet = 0;  // frames for which only one source is heard
  std::int64_t last = INT64_MIN, epoch = 0, whole = 0, steps = 0;
  for (std::int64_t i = 0; i < frames; ++i) {
    // Mostly the one that is behind, so that bins close.
    const int behind = sources[0].watermark > sources[1].watermark;
    if (quiet == 0 && chance(5)) quiet = pick(1, 60);
    quiet -= quiet > 0;
    Source& s = sources[quiet > 0 ? 0 : chance(800) ? behind : 1 - behind];
    now_ns += pick(0, 20'000'000);
    if (chance(2) || s.watermark < -kMaxSample || s.watermark > kMaxSample) {
      for (Source& each : sources) {
        if (&each == &s || chance(700)) ++each.session, each.seq = 0, each.watermark = 0;
      }
    }
    const std::int64_t jump = chance(900) ? 0 : pick(-900, 40'000);
    const std::int64_t t0 = chance(999) ? plus(s.watermark, jump) : wild();
    const std::int64_t watermark = chance(999) ? plus(t0, pick(0, 1500)) : wild();
    const std::int64_t n = pick(0, 20);
    const auto head = header(s, t0, watermark, n);
    const auto body = payload(s, t0, watermark, n);
    const std::int64_t before = live.counters()[kFrames];
    std::int64_t ready = live.push(head.data(), head.size(), body.data(), body.size(), now_ns);
    if (live.missing().size() > 1) return std::puts("every stream is missing"), 1;
    if (live.counters()[kFrames] > before || chance(200)) ++s.seq, s.watermark = watermark;
    if (live.epoch() != epoch) epoch = live.epoch(), last = INT64_MIN;
    if (chance(50)) continue;  // a consumer that is late
    while (const std::int64_t got = live.pop()) {
      ++steps;
      if ((last != INT64_MIN && live.bin() != last + 1) || got > 1) {
        return std::puts("bins do not ascend"), 1;
      }
      last = live.bin() + (got < 0 ? -got : 1) - 1;
      ready -= got < 0 ? -got : 1;
      whole += got == 1;
    }
    if (ready != 0 || live.available() != 0) return std::puts("bins missing"), 1;
  }
  for (int k = 0; k < kCounters; ++k) {
    std::printf("%s %" PRId64 "\n", kCounterNames[k], live.counters()[k]);
  }
  std::printf("whole %" PRId64 " steps %" PRId64 "\n", whole, steps);
  return whole > 0 ? 0 : 1;
}
