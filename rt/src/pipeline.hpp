// From frame to decode message in one call: assemble, step, encode, for whichever engine steps.
#pragma once

#include <algorithm>

#include "assembler.hpp"
#include "decode.hpp"
#include "raster.hpp"

namespace neds {

// What the pipeline asks of an engine. Any of these may throw; the pipeline is then to be dropped.
class Stepper {
 public:
  Stepper() = default;
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;
  virtual ~Stepper() = default;

  virtual void reset() = 0;
  // Advances by one bin, lost for present == false; returns as many floats as the encoder takes.
  virtual const float* step(const std::uint16_t* counts, bool present) = 0;
  virtual void skip(std::int64_t n_bins) = 0;
};

// Says why a decode is or is not valid, from the bins that a window of the model can see.
class Validity {
 public:
  explicit Validity(std::int64_t window) : window_(window) { reset(); }

  std::int64_t window() const noexcept { return window_; }
  void reset() noexcept {
    since_start_ = 0;
    since_lost_ = window_;
  }
  // Moves on by `n_bins` bins and returns the reason code of the last of them.
  Reason advance(bool present, std::int64_t n_bins) noexcept {
    since_start_ = std::min(since_start_ + n_bins, window_);
    since_lost_ = present ? std::min(since_lost_ + n_bins, window_) : 0;
    if (since_lost_ < window_) return kGap;
    return since_start_ < window_ ? kWarmingUp : kOk;
  }

 private:
  std::int64_t window_;
  std::int64_t since_start_ = 0, since_lost_ = 0;  // bins, both no further than the window
};

// The stamps of the last `capacity` bins, in ns of the monotonic clock.
class LatencyRing {
 public:
  static constexpr std::size_t kStamps = 5;  // received, assembled, stepped, encoded, sent
  using Row = std::array<std::int64_t, kStamps>;

  explicit LatencyRing(std::size_t capacity) : rows_(capacity) {
    if (capacity == 0) throw std::invalid_argument("a ring holds one bin or more");
  }
  void add(const Row& row) noexcept { rows_[recorded_++ % rows_.size()] = row; }
  std::uint64_t recorded() const noexcept { return recorded_; }
  std::span<Row> rows() noexcept { return rows_; }

 private:
  std::vector<Row> rows_;
  std::uint64_t recorded_ = 0;
};

// One server's way from frames to messages. Borrows its parts, which must outlive it.
//
//   for (size = feed(frame); size > 0; size = next()) send the first `size` bytes of the encoder;
class Pipeline {
 public:
  Pipeline(Assembler& assembler, DecodeEncoder& encoder, Stepper& stepper, LatencyRing& latency,
           std::int64_t window)
      : assembler_(assembler), encoder_(encoder), stepper_(stepper), latency_(latency),
        validity_(window) {}

  // From now on viewers can see the bins that were sent, and the last message's reason, in `raster`.
  void watch(Raster& raster) noexcept { raster_ = &raster; }

  // Takes one frame, received at `recv_ns`; returns the size of the first message, 0 for none.
  std::size_t feed(std::span<const std::uint8_t> header, std::span<const std::uint8_t> payload,
                   std::int64_t recv_ns) {
    row_[0] = recv_ns;
    assembler_.push(header.data(), header.size(), payload.data(), payload.size());
    return next();
  }

  // Stamps that the last message has been sent; next() does so by itself.
  void sent() noexcept {
    if (!unsent_) return;
    row_[4] = last_sent_ns_ = monotonic_ns();
    latency_.add(row_);
    if (raster_ != nullptr) raster_->add(bin_, assembler_.counts(), encoder_.reason());
    unsent_ = false;
  }

  // To be called when the last message has been sent: returns the size of the next, 0 for none.
  // Lost bins give messages up to the length of the window, the rest of a long gap is stepped over.
  std::size_t next() {
    sent();
    if (lost_ > 0) return decode_lost();
    if (skipped_ > 0) {
      stepper_.skip(skipped_);
      validity_.advance(false, skipped_);
      skipped_ = 0;
    }
    if (assembler_.available() == 0) return 0;
    if (assembler_.epoch() != epoch_) restart();
    const std::int64_t n = assembler_.pop();
    if (n == 1) return decode(assembler_.bin(), true);
    lost_ = std::min(-n, validity_.window());
    skipped_ = -n - lost_;
    lost_bin_ = assembler_.bin();
    return decode_lost();
  }

  // Writes a message that belongs to no bin and has no values, as of `now_ns`; returns its size.
  std::size_t nothing(Reason reason, std::int64_t now_ns) noexcept {
    double lag = assembler_.spike_lag_s();
    if (lag >= 0) lag += static_cast<double>(now_ns - last_sent_ns_) * 1e-9;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return encoded(encoder_.encode(seq_, -1, nan, lag, now_ns, reason, nullptr));
  }

  // From the last frame received to the last message encoded.
  std::int64_t service_ns() const noexcept { return row_[3] - row_[0]; }
  std::span<std::int64_t> reasons() noexcept { return reasons_; }      // messages, by reason

 private:
  // The bins from here on belong to another session than those before.
  void restart() {
    epoch_ = assembler_.epoch();
    stepper_.reset();
    validity_.reset();
    encoder_.set_session(assembler_.session());
  }

  std::size_t decode_lost() {
    --lost_;
    return decode(lost_bin_++, false);
  }

  std::size_t decode(std::int64_t bin, bool present) {
    bin_ = bin;
    row_[1] = monotonic_ns();
    const float* outputs = stepper_.step(assembler_.counts().data(), present);
    row_[2] = monotonic_ns();
    const std::size_t size =
        encoder_.encode(seq_, bin, assembler_.end_s(bin), assembler_.spike_lag_s(), row_[0],
                        validity_.advance(present, 1), outputs);
    row_[3] = encoder_.pub_ns();
    unsent_ = true;
    return encoded(size);
  }

  std::size_t encoded(std::size_t size) noexcept {
    ++reasons_[encoder_.reason()];
    if (raster_ != nullptr) raster_->said(encoder_.reason(), encoder_.pub_ns());
    ++seq_;
    return size;
  }

  Assembler& assembler_;
  DecodeEncoder& encoder_;
  Stepper& stepper_;
  LatencyRing& latency_;
  Raster* raster_ = nullptr;
  Validity validity_;
  LatencyRing::Row row_{};
  std::array<std::int64_t, kReasons> reasons_{};
  std::int64_t epoch_ = -1, seq_ = 0, last_sent_ns_ = 0, bin_ = -1;
  std::int64_t lost_ = 0, skipped_ = 0, lost_bin_ = 0;  // lost bins still to publish, to skip
  bool unsent_ = false;
};

}  // namespace neds
