// The hot path under sanitizers, without Python: clocks, frames, steps, swaps, health, raster, tape.
// Usage: sanitized_serving SEED ROUNDS; prints what was reached, exits 1 when a result is not what it must be.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "clock_map.hpp"
#include "pipeline.hpp"
#include "tape_writer.hpp"
#include "wild_frames.hpp"

using namespace neds;
using namespace wild;

namespace {

constexpr std::size_t kUnits = 5, kHidden = 3, kOutputs = 5;
std::int64_t messages = 0, rewritten = 0, swaps = 0, failovers = 0, records = 0, holes = 0, shown = 0, written = 0;

[[noreturn]] void fail(const char* why) {
  std::puts(why);
  std::exit(1);
}

// Reads all counts that it is given, writes all outputs that are read, and fails now and then.
class Engine : public Stepper {
 public:
  explicit Engine(int failures) : failures_(failures) {}

  void reset() override { bins_ = 0; }
  void skip(std::int64_t n_bins) override { bins_ += n_bins; }
  const float* step(const std::uint16_t* counts, bool present) override {
    if (chance(failures_)) throw std::runtime_error("a step");
    ++bins_;
    float sum = 0;
    for (std::size_t u = 0; present && u < kUnits; ++u) sum += counts[u];
    for (float& output : outputs_) output = chance(3) ? NAN : sum;
    for (float& value : state_) value = chance(3) ? 1e30f : sum;
    return outputs_.data();
  }
  const float* state() const override { return chance(100) ? nullptr : state_.data(); }

 private:
  int failures_;
  std::int64_t bins_ = 0;
  std::array<float, kOutputs> outputs_{};
  std::array<float, kHidden> state_{};
};

HealthSpec spec() {
  const auto made = [](std::size_t n, double low, double high) {
    std::vector<float> values(n);
    for (float& v : values) v = static_cast<float>(std::uniform_real_distribution(low, high)(rng));
    return values;
  };
  HealthSpec s;
  s.rate = made(kUnits, 0.01, 3), s.rate_sd = made(kUnits, 0.01, 1);
  s.gain = made(kUnits, -1, 1), s.gain_sd = made(kUnits, 0.01, 1);
  s.quiet = made(kUnits, -5, 50), s.ceiling = made(kUnits, 0, 9);
  s.weight = made(kUnits * kHidden, -2, 2), s.bias = made(kUnits, -2, 2);
  s.smooth_bins = 20, s.burst_bins = 2;
  return s;
}

// One model with all that belongs to it.
struct Served {
  explicit Served(History& history, int failures)
      : encoder({{"v", ModalityKind::continuous, 2, {}, {0.5f, 1}},
                 {"h", ModalityKind::circular, 2, {}, {}},
                 {"c", ModalityKind::categorical, 1, {"x"}, {}}},
                "model", 2 * (kMaxNameBytes + 1)),
        engine(failures), spare(0), health(spec(), kHidden, chance(500)),
        standby(history, spare, counts.data(), kOutputs), own(history, engine, more.data(), kOutputs),
        model{&engine, &encoder, pick(1, 9), &standby, &health}, candidate(model, own) {}

  std::array<std::uint16_t, kUnits> counts{}, more{};
  DecodeEncoder encoder;
  Engine engine, spare;
  Health health;
  Follower standby, own;
  Model model;
  Candidate candidate;
};

// Whether the ring holds whole records one after another; lets some of them go.
void drain(TapeRing& ring) {
  std::uint64_t at = ring.drained();
  while (at < ring.written()) {
    const TapeRecord record = ring.record_at(at);
    const std::uint64_t next = at + sizeof record + record.body_size;
    if (next > ring.written() || record.head_size > record.body_size) fail("a record is cut");
    std::uint32_t crc = 0;
    for (const ByteSpan part : ring.parts(at, next)) crc = crc32(part, crc);
    records += crc != 0;
    holes += record.kind == TapeKind::hole;
    at = next;
    if (chance(50)) break;
  }
  ring.release(at);
}

void look(const Raster& raster) {
  std::vector<Raster::Bin> bins(raster.bins());
  std::vector<std::uint8_t> cells(raster.bins() * raster.rows());
  const std::size_t n = raster.copy(bins.data(), cells.data());
  shown += static_cast<std::int64_t>(n);
  if (raster.word().first >= kReasons) fail("a reason that is none");
}

class Round {
 public:
  Round() {
    pipeline_.slot().keep(history_);
    pipeline_.slot().limit(pick(0, 1) == 0 ? 1'000'000'000 : 1, pick(1, 300));
    pipeline_.watch(raster_);
    pipeline_.record(&tape_);
    pipeline_.set_patience(chance(500) ? 0.1 : 1e9, pick(1, 20));
    tape_.begin();
  }

  void run(std::int64_t frames) {
    for (std::int64_t i = 0; i < frames; ++i) {
      now_ns_ += pick(0, 20'000'000);
      send();
      if (chance(20)) sent(pipeline_.nothing(static_cast<Reason>(pick(0, kReasons - 1)), now_ns_));
      if (chance(50)) drain(tape_);
      if (chance(50)) look(raster_);
      if (chance(20)) swap();
      if (chance(50)) pipeline_.slot().follow();
      if (chance(10)) know();
    }
    failovers += pipeline_.slot().failovers();
    swaps += pipeline_.slot().swaps();
  }

 private:
  void send() {
    Source& s = sources_[pick(0, 1)];
    if (chance(5)) ++s.session, s.seq = 0, s.watermark = 0;
    const std::int64_t t0 = chance(997) ? plus(s.watermark, chance(950) ? 0 : pick(-900, 40'000)) : edgy();
    const std::int64_t watermark = chance(997) ? plus(t0, pick(0, 1500)) : edgy(), n = pick(0, 20);
    std::vector<std::uint8_t> head = header(s, t0, watermark, n), body = payload(s, t0, watermark, n);
    if (chance(2)) body.resize(static_cast<std::size_t>(pick(0, 9000)));
    ++s.seq, s.watermark = watermark;
    const Mapped mapped = clocks_.take(head, body, now_ns_);
    if (mapped == Mapped::held) return;
    std::span<const std::uint8_t> a = head, b = body;
    if (mapped == Mapped::rewritten) {
      a = clocks_.header(), b = clocks_.payload(), ++rewritten;
      SpikeHeader h;
      const HeaderVerdict verdict = parse_header(a.data(), a.size(), h);  // range: at its very ends
      if (verdict != HeaderVerdict::ok && verdict != HeaderVerdict::range) fail("a bad frame");
      if (b.size() != body.size()) fail("spikes lost by a clock");
    }
    std::size_t size = pipeline_.feed(a, b, now_ns_);
    for (int bins = 0; size > 0; ++bins) {
      sent(size);
      if (chance(20)) return;  // a server that stops between two messages of a frame goes on later
      size = pipeline_.next();
    }
  }

  void sent(std::size_t size) {
    std::vector<std::uint8_t>& buffer = pipeline_.slot().encoder().buffer();
    if (size == 0 || size > buffer.size()) fail("a message that does not fit");
    std::string_view key, kind;
    std::int64_t version = 0;
    if (buffer[0] >> 4 != 8 && buffer[0] != 0xde) fail("a message that is no map");
    const std::size_t head = buffer[0] == 0xde ? 3 : 1;  // more than 15 entries
    Reader rest(buffer.data() + head, size - head);
    if (!rest.text(key) || key != "v" || !rest.integer(version) || !rest.text(kind)) {
      fail("a message that cannot be read");
    }
    ++messages;
  }

  // Takes back what is on offer, then offers the model that does not serve.
  void swap() {
    EngineSlot& slot = pipeline_.slot();
    Served& other = served_[1 - serving_];
    if (offered_ && !slot.retract(other.candidate)) serving_ = 1 - serving_;
    offered_ = false;
    if (chance(300)) return;
    Served& next = served_[1 - serving_];
    next.own.restart();
    next.standby.restart();
    try {
      next.own.follow(1000);
    } catch (const std::runtime_error&) {
      return;
    }
    offered_ = true;
    slot.offer(next.candidate);
  }

  void know() {
    ClockMap::Pair pair;
    while (clocks_.next(pair)) {
      const auto rate = std::uniform_real_distribution(0.99, 1.01)(rng);
      const ClockLine line{chance(900) ? pair.watermark : edgy() % kMaxSample,
                           static_cast<double>(pick(-1'000'000, 1'000'000)), rate};
      clocks_.know(static_cast<std::size_t>(pick(0, 1)), pair.session, last_reference_, line);
      if (pair.stream == 0) last_reference_ = pair.session;
    }
  }

  std::vector<Source> sources_ = {{"a", 3}, {"b", 2}};
  std::int64_t now_ns_ = 1, last_reference_ = 1;
  std::size_t serving_ = 0;  // of `served_`
  bool offered_ = false;
  ClockMap clocks_{{"a", "b"}};
  Assembler live_{0.02, {{"a", {4, 0, 2}}, {"b", {1, 3}}}, kUnits, 16, {100'000'000, 0.5}};
  History history_{static_cast<std::size_t>(pick(8, 100)), kUnits};
  std::array<Served, 2> served_ = {Served(history_, 2), Served(history_, 2)};
  LatencyRing latency_{static_cast<std::size_t>(pick(1, 9))};
  Raster raster_{static_cast<std::size_t>(pick(1, 9)), kUnits, static_cast<std::size_t>(pick(1, kUnits))};
  TapeRing tape_{static_cast<std::size_t>(pick(4096, 20'000))};
  Pipeline pipeline_{live_, served_[0].model, latency_};
};

// A recorder whose ring is too small, and what is then in its file.
void write_tape() {
  std::FILE* const file = std::tmpfile();
  if (file == nullptr) fail("no place for a tape");
  const std::array<std::uint8_t, 32> digest{};
  TapeWriter writer(::dup(::fileno(file)), digest, {7, 1e-4, chance(500) ? 0 : 1e-3, 1},
                    static_cast<std::size_t>(pick(4096, 50'000)));
  std::thread thread([&] { writer.run(); });
  for (int i = 0; i < 500; ++i) {
    const std::vector<std::uint8_t> some(static_cast<std::size_t>(pick(0, 3000)), 9);
    writer.ring.frame(ByteSpan(some).first(std::min<std::size_t>(some.size(), 600)), some, i);
    writer.ring.event("told", some, i);
    if (chance(50)) std::this_thread::yield();
  }
  writer.request_stop();
  thread.join();
  TapeChunk chunk;
  std::rewind(file);
  std::uint64_t sequence = 0;
  bool ended = false;
  while (std::fread(&chunk, sizeof chunk, 1, file) == 1) {
    std::vector<std::uint8_t> body(chunk.body_size);
    const std::size_t n = std::fread(body.data(), 1, body.size(), file);
    const std::uint32_t crc = crc32(bytes_of(chunk).subspan(8));
    if (n != body.size() || crc != chunk.header_crc || crc32(body) != chunk.body_crc) fail("a chunk");
    if (chunk.sequence != sequence++) fail("chunks out of order");
    TapeRecord record;
    for (std::size_t at = 0; at < n; at += sizeof record + record.body_size) {
      std::memcpy(&record, body.data() + at, sizeof record);
      ended |= record.kind == TapeKind::end;
      ++written;
    }
  }
  std::fclose(file);
  if (!ended || writer.error != 0) fail("a tape without an end");
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const std::int64_t rounds = argc > 2 ? std::atoll(argv[2]) : 10;
  for (std::int64_t i = 0; i < rounds; ++i) {
    Round().run(2000);
    write_tape();
  }
  std::printf("messages %" PRId64 " rewritten %" PRId64 " swaps %" PRId64 " failovers %" PRId64
              " records %" PRId64 " holes %" PRId64 " shown %" PRId64 " written %" PRId64 "\n",
              messages, rewritten, swaps, failovers, records, holes, shown, written);
}
