// Frames of probes with clocks of their own -> frames in the first probe's sample clock.
//
// What the clocks are is found elsewhere (neds_rt/clocks.py); this applies it, spike by spike,
// before anything is binned. Two rules keep every spike, however the clocks are corrected:
// - what was below a watermark stays below it, what was not stays at or past it;
// - where two frames touch, their images touch; where they leave a gap, so do their images.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "stream.hpp"

namespace neds {

// A line from one probe's samples to the reference's.
struct ClockLine {
  std::int64_t from = 0;  // a sample of the probe,
  double to = 0;          // where it lies in the reference,
  double rate = 1;        // and samples of the reference to a sample of the probe

  std::int64_t operator()(std::int64_t sample) const noexcept {
    const double image = std::floor(to + static_cast<double>(sample - from) * rate + 0.5);
    const auto limit = static_cast<double>(kMaxSample);
    return static_cast<std::int64_t>(std::min(std::max(image, -limit), limit));
  }
};

enum class Mapped { as_it_is, held, rewritten };

class ClockMap {
 public:
  // When a stream's samples up to `watermark` were here: evidence of its clock.
  struct Pair {
    std::int64_t stream = 0, session = 0, watermark = 0, recv_ns = 0;
  };

  // The first of `streams` is the reference.
  explicit ClockMap(const std::vector<std::string>& streams)
      : payload_(new std::uint8_t[kPayloadBytes]) {
    if (streams.empty()) throw std::invalid_argument("a clock map needs a stream");
    for (const std::string& name : streams) probes_.push_back({.name = name});
    pairs_.resize(kPairs);
  }

  // Takes a frame that was received at `recv_ns`. `held`: its clock is not known yet, and nothing
  // may be decoded from it. `rewritten`: header() and payload() are the frame to go on with.
  // What cannot be parsed is left as it is, for the assembler to refuse.
  Mapped take(std::span<const std::uint8_t> header, std::span<const std::uint8_t> payload,
              std::int64_t recv_ns) noexcept {
    SpikeHeader h;
    if (parse_header(header.data(), header.size(), h) != HeaderVerdict::ok ||
        payload.size() != static_cast<std::size_t>(h.n_spikes) * kSpikeBytes) {
      return Mapped::as_it_is;
    }
    const auto probe = std::find_if(probes_.begin(), probes_.end(),
                                    [&](const Probe& p) { return p.name == h.stream; });
    if (probe == probes_.end()) return Mapped::as_it_is;
    if (probe->sessions == 0 || probe->session.view() != h.session) {
      probe->restart(h.session);
      if (probe == probes_.begin()) {
        for (Probe& other : probes_) other.known = other.started = false;
      }
    } else if (h.seq <= probe->seq) {
      return Mapped::as_it_is;  // a duplicate, which the assembler counts
    }
    probe->seq = h.seq;
    probe->fs = h.fs;
    if (h.watermark > probe->newest) {
      probe->newest = h.watermark;
      note({probe - probes_.begin(), probe->sessions, h.watermark, recv_ns});
    }
    if (probe == probes_.begin()) return Mapped::as_it_is;
    if (!probe->known || probes_.front().sessions == 0) {
      ++held_;
      return Mapped::held;
    }
    rewrite(*probe, h, payload.data());
    return Mapped::rewritten;
  }

  std::span<const std::uint8_t> header() const noexcept { return {header_.data(), header_size_}; }
  std::span<const std::uint8_t> payload() const noexcept { return {payload_.get(), payload_size_}; }
  std::int64_t held() const noexcept { return held_; }
  double fs(std::size_t stream) const { return probes_.at(stream).fs; }

  // The clock of a stream in its `session`-th session, against the reference in its
  // `reference`-th; of other ones it says nothing.
  void know(std::size_t stream, std::int64_t session, std::int64_t reference,
            const ClockLine& line) {
    Probe& probe = probes_.at(stream);
    if (session != probe.sessions || reference != probes_.front().sessions) return;
    probe.line = line;
    probe.known = true;
  }

  // Takes the oldest pair not taken yet; false for none. The oldest give way when nobody takes any.
  bool next(Pair& pair) noexcept {
    if (noted_ - taken_ > kPairs) taken_ = noted_ - kPairs;
    if (taken_ == noted_) return false;
    pair = pairs_[taken_++ % kPairs];
    return true;
  }

 private:
  static constexpr std::size_t kPayloadBytes = kMaxSpikesPerFrame * kSpikeBytes;
  static constexpr std::uint64_t kPairs = 4096;

  struct Probe {
    std::string name;
    SessionName session{};
    std::int64_t sessions = 0, seq = 0;  // sessions so far, frame number of the last frame
    std::int64_t newest = INT64_MIN;     // watermark in its own clock
    double fs = 0;
    bool known = false, started = false;  // started: `edge` is the image of the watermark `border`
    ClockLine line{};
    std::int64_t border = 0, edge = 0;

    void restart(std::string_view name_of_session) noexcept {
      session.set(name_of_session);
      ++sessions;
      newest = INT64_MIN;
      known = started = false;
    }
  };

  void note(const Pair& pair) noexcept { pairs_[noted_++ % kPairs] = pair; }

  void rewrite(Probe& p, const SpikeHeader& h, const std::uint8_t* payload) noexcept {
    if (!p.started) {
      p.started = true;
      p.border = h.t0_sample;
      p.edge = p.line(h.t0_sample);
    }
    const std::int64_t floor_from = p.border, floor = p.edge;  // of the frame before
    const std::int64_t t0 = h.t0_sample == floor_from ? floor
                            : h.t0_sample > floor_from ? std::max(p.line(h.t0_sample), floor + 1)
                                                       : std::min(p.line(h.t0_sample), floor - 1);
    std::int64_t end = floor;
    if (h.watermark > floor_from) end = std::max({p.line(h.watermark), floor + 1, t0});
    for (std::int64_t i = 0; i < h.n_spikes; ++i) {
      std::int64_t sample = 0;
      std::uint32_t unit = 0;
      read_spike(payload, static_cast<std::size_t>(i), sample, unit);
      std::int64_t image = p.line(std::min(std::max(sample, -kMaxSample), kMaxSample));
      if (sample < floor_from) {
        image = std::min(image, floor - 1);
      } else if (sample < h.watermark) {
        image = std::min(std::max(image, floor), end - 1);
      } else {
        image = std::max(image, end);
      }
      write_spike(payload_.get(), static_cast<std::size_t>(i), image, unit);
    }
    p.border = std::max(floor_from, h.watermark);
    p.edge = end;
    payload_size_ = static_cast<std::size_t>(h.n_spikes) * kSpikeBytes;
    header_size_ = write_header(h, t0, end, probes_.front().fs);
  }

  std::size_t write_header(const SpikeHeader& h, std::int64_t t0, std::int64_t watermark,
                           double fs) noexcept {
    Writer out(header_.data(), header_.size());
    out.array(kHeaderFields);
    out.text("spikes"), out.int64(kWireVersion), out.text(h.stream), out.text(h.session);
    out.int64(h.seq), out.int64(t0), out.int64(watermark), out.float64(fs);
    out.int64(h.sent_mono_ns), out.int64(h.sent_real_ns), out.int64(h.n_spikes);
    return out.used();
  }

  std::vector<Probe> probes_;
  std::vector<Pair> pairs_;
  std::uint64_t noted_ = 0, taken_ = 0;
  std::int64_t held_ = 0;
  std::array<std::uint8_t, kMaxHeaderBytes> header_{};
  std::unique_ptr<std::uint8_t[]> payload_;  // not touched before it is needed
  std::size_t header_size_ = 0, payload_size_ = 0;
};

}  // namespace neds
