// Writes decode messages: one MessagePack map a message, into a buffer taken once.
#pragma once

#include <array>
#include <chrono>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "msgpack.hpp"
#include "reasons.hpp"
#include "wire.hpp"

#if !defined(_WIN32)
#include <ctime>
#endif

namespace neds {

// CLOCK_MONOTONIC, which is what Python's time.monotonic_ns() reads on Linux.
inline std::int64_t monotonic_ns() noexcept {
#if !defined(_WIN32) && !defined(__APPLE__)
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
#else
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
#endif
}

enum class ModalityKind { continuous, circular, categorical };

struct Modality {
  std::string name;
  ModalityKind kind = ModalityKind::continuous;
  std::size_t n_outputs = 0;
  std::vector<std::string> classes;
  std::vector<float> sd;
};

class DecodeEncoder {
 public:
  DecodeEncoder(std::vector<Modality> modalities, std::string model, std::size_t max_session_bytes)
      : modalities_(std::move(modalities)), model_(std::move(model)) {
    // The names of missing streams are no longer than those of sessions, but have a head each.
    std::size_t size = 320 + 3 * max_session_bytes + model_.size();
    for (const Modality& m : modalities_) {
      const bool circular = m.kind == ModalityKind::circular;
      const bool categorical = m.kind == ModalityKind::categorical;
      if (m.n_outputs == 0 || (circular && m.n_outputs != 2) ||
          (categorical && m.classes.size() != m.n_outputs) ||
          (m.kind == ModalityKind::continuous && !m.sd.empty() && m.sd.size() != m.n_outputs)) {
        throw std::invalid_argument("modality " + m.name + ": sizes do not fit its kind");
      }
      size += 64 + m.name.size() + 5 * (m.n_outputs + m.sd.size());
      for (const std::string& label : m.classes) size += label.size();
      n_outputs_ += m.n_outputs;
    }
    buffer_.resize(size);
    session_.reserve(max_session_bytes);
  }

  std::size_t n_outputs() const noexcept { return n_outputs_; }
  std::vector<std::uint8_t>& buffer() noexcept { return buffer_; }
  std::int64_t pub_ns() const noexcept { return pub_ns_; }
  int reason() const noexcept { return reason_; }

  void set_session(std::string_view name) {
    if (name.size() > session_.capacity()) throw std::invalid_argument("session name too long");
    session_.assign(name);
  }

  // No message says "ok" that was written later than this after its frame came; 0 for any time.
  void set_deadline(std::int64_t ns) noexcept { deadline_ns_ = ns; }
  // Of the messages to come: names to tell, which must outlive them, and the drift; NaN: no such.
  void set_missing(std::span<const std::string_view> names) noexcept { missing_ = names; }
  void set_drift(double drift) noexcept { drift_ = drift; }

  // Writes one message and returns its size. `outputs` holds n_outputs() floats, or is null where
  // there are none to give: then every value is NaN and every label empty. `spike_lag_s` is the age
  // of the newest spike when the frame arrived, negative for none.
  std::size_t encode(std::int64_t seq, std::int64_t bin, double t_s, double spike_lag_s,
                     std::int64_t recv_ns, Reason reason, const float* outputs) noexcept {
    if (reason == kOk && !finite(outputs)) reason = kNotFinite;
    const std::size_t size = write(seq, bin, t_s, spike_lag_s, recv_ns, reason, outputs);
    if (reason != kOk || deadline_ns_ == 0 || pub_ns_ - recv_ns <= deadline_ns_) return size;
    return write(seq, bin, t_s, spike_lag_s, recv_ns, kDeadlineMissed, outputs);
  }

 private:
  std::size_t write(std::int64_t seq, std::int64_t bin, double t_s, double spike_lag_s,
                    std::int64_t recv_ns, Reason reason, const float* outputs) noexcept {
    reason_ = reason;
    const bool watched = !std::isnan(drift_);
    Writer out(buffer_.data(), buffer_.size());
    out.map(14 + std::size_t{watched} + std::size_t{!missing_.empty()});
    out.text("v"), out.int64(kWireVersion);
    out.text("kind"), out.text("decode");
    out.text("seq"), out.int64(seq);
    out.text("session"), out.text(session_);
    out.text("bin"), out.int64(bin);
    out.text("t_s"), out.float64(t_s);
    out.text("spike_age_us");
    const std::size_t age_place = out.float64(-1);
    out.text("service_us");
    const std::size_t service_place = out.float64(0);
    out.text("recv_ns"), out.int64(recv_ns);
    out.text("pub_ns");
    const std::size_t pub_place = out.int64(0);
    out.text("model"), out.text(model_);
    out.text("valid"), out.boolean(reason_ == kOk);
    out.text("reason"), out.text(kReasonTable[reason_].name);
    if (watched) out.text("drift"), out.float64(drift_);
    if (!missing_.empty()) {
      out.text("missing"), out.array(missing_.size());
      for (const std::string_view name : missing_) out.text(name);
    }
    out.text("values"), out.map(modalities_.size());
    for (const Modality& m : modalities_) {
      write(out, m, outputs);
      if (outputs != nullptr) outputs += m.n_outputs;
    }
    // The stamps come last, so that they include the writing of everything above.
    pub_ns_ = monotonic_ns();
    const double service_us = static_cast<double>(pub_ns_ - recv_ns) * 1e-3;
    out.patch(service_place, std::bit_cast<std::uint64_t>(service_us));
    out.patch(pub_place, static_cast<std::uint64_t>(pub_ns_));
    if (spike_lag_s >= 0) {
      out.patch(age_place, std::bit_cast<std::uint64_t>(spike_lag_s * 1e6 + service_us));
    }
    return out.overflowed() ? 0 : out.used();
  }

  bool finite(const float* outputs) const noexcept {
    if (outputs == nullptr) return false;
    for (std::size_t i = 0; i < n_outputs_; ++i) {
      if (!std::isfinite(outputs[i])) return false;
    }
    return true;
  }

  static void floats(Writer& out, std::size_t n, const float* values) noexcept {
    out.array(n);
    for (std::size_t i = 0; i < n; ++i) {
      out.float32(values == nullptr ? std::numeric_limits<float>::quiet_NaN() : values[i]);
    }
  }

  static void write(Writer& out, const Modality& m, const float* values) noexcept {
    out.text(m.name);
    out.map(2);
    switch (m.kind) {
      case ModalityKind::continuous:
        out.text("mean"), floats(out, m.n_outputs, values);
        out.text("sd"), floats(out, m.sd.size(), m.sd.data());
        return;
      case ModalityKind::circular: {  // outputs are (cos, sin)
        const float nan = std::numeric_limits<float>::quiet_NaN();
        out.text("angle"), out.float32(values == nullptr ? nan : std::atan2(values[1], values[0]));
        out.text("r"), out.float32(values == nullptr ? nan : std::hypot(values[0], values[1]));
        return;
      }
      case ModalityKind::categorical: {
        std::size_t best = 0;
        for (std::size_t i = 1; values != nullptr && i < m.n_outputs; ++i) {
          if (values[i] > values[best]) best = i;
        }
        out.text("p"), floats(out, m.n_outputs, values);
        out.text("label"), out.text(values == nullptr ? "" : m.classes[best]);
        return;
      }
    }
  }

  std::vector<Modality> modalities_;
  std::string model_, session_;
  std::size_t n_outputs_ = 0;
  std::vector<std::uint8_t> buffer_;
  std::span<const std::string_view> missing_;
  double drift_ = std::numeric_limits<double>::quiet_NaN();
  std::int64_t pub_ns_ = 0, deadline_ns_ = 0;
  int reason_ = kOk;
};

}  // namespace neds
