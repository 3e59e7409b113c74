// Throws frames at the assembler that look right and are not, under the sanitizers.
// Usage: assembler_fuzz SEED FRAMES; prints the counters, exits 1 when bins are missing or out of order.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>

#include "assembler.hpp"
#include "decode.hpp"
#include "wild_frames.hpp"

using namespace neds;
using namespace wild;

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
    const std::int64_t t0 = chance(999) ? plus(s.watermark, jump) : edgy();
    const std::int64_t watermark = chance(999) ? plus(t0, pick(0, 1500)) : edgy();
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
