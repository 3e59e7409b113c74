// From frame to decode message in one call: assemble, step, encode, for whichever engine steps.
#pragma once

#include <algorithm>

#include "assembler.hpp"
#include "decode.hpp"
#include "engine_slot.hpp"
#include "tape.hpp"
#include "validity.hpp"

namespace neds {

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
      : Pipeline(assembler, Model{&stepper, &encoder, window, nullptr}, latency) {}
  Pipeline(Assembler& assembler, const Model& model, LatencyRing& latency)
      : assembler_(assembler), slot_(model), latency_(latency), validity_(model.window) {}

  // What comes later than `late_s` after its time, or with more bins waiting behind it, is late.
  void set_patience(double late_s, std::int64_t backlog) noexcept {
    late_s_ = late_s;
    backlog_ = backlog;
  }

  // Swap and fail-over; what belongs to which thread is said there.
  EngineSlot& slot() noexcept { return slot_; }

  // Takes one frame, received at `recv_ns`; returns the size of the first message, 0 for none.
  std::size_t feed(std::span<const std::uint8_t> header, std::span<const std::uint8_t> payload,
                   std::int64_t recv_ns) {
    row_[0] = recv_ns;
    if (tape_ != nullptr) tape_->frame(header, payload, recv_ns);
    assembler_.push(header.data(), header.size(), payload.data(), payload.size(),
                    recv_ns);
    return next();
  }

  // Stamps that the last message has been sent; next() does so by itself.
  void sent() noexcept {
    if (!unsent_) return;
    row_[4] = last_sent_ns_ = monotonic_ns();
    latency_.add(row_);
    if (tape_ != nullptr) tape_message(bytes_of(row_));
    unsent_ = false;
  }

  // To be called when the last message has been sent: returns the size of the next, 0 for none.
  // Lost bins give messages up to the length of the window, the rest of a long gap is stepped over.
  std::size_t next() {
    sent();
    if (lost_ > 0) return decode_lost();
    if (skipped_ > 0) {
      slot_.skip(skipped_);
      validity_.advance({.lost = true}, skipped_);
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
    slot_.encoder().set_missing({});
    size_ = slot_.encoder().encode(seq_, -1, nan, lag, now_ns, reason, nullptr);
    if (tape_ != nullptr) {
      tape_->nothing(reason, now_ns);
      tape_message({});
    }
    return encoded(size_);
  }

  // From now on everything that goes in and comes out is put on `tape`, which must outlive this.
  void record(TapeRing* tape) noexcept { tape_ = tape; }

  // Messages so far.
  std::int64_t seq() const noexcept { return seq_; }
  // From the last frame received to the last message encoded.
  std::int64_t service_ns() const noexcept { return row_[3] - row_[0]; }
  std::span<std::int64_t> reasons() noexcept { return reasons_; }      // messages, by reason

 private:
  // The bins from here on belong to another session than those before.
  void restart() {
    epoch_ = assembler_.epoch();
    slot_.reset();
    validity_.reset();
  }

  std::size_t decode_lost() {
    --lost_;
    return decode(lost_bin_++, false);
  }

  std::size_t decode(std::int64_t bin, bool present) {
    row_[1] = monotonic_ns();
    if (slot_.adopt()) change_model();
    const float* outputs = slot_.step(assembler_.counts().data(), present);
    row_[2] = monotonic_ns();
    if (slot_.failed_over() && tape_ != nullptr) tape_->event("failed over", {}, row_[2]);
    slot_.judge(row_[2] - row_[1]);
    const BinFacts facts{!present, !assembler_.missing().empty(), assembler_.clock_jumped()};
    Reason seen = validity_.advance(facts, 1);
    const bool late = assembler_.available() > backlog_ || assembler_.late_s() > late_s_;
    if (seen == kOk && late) seen = kDeadlineMissed;
    DecodeEncoder& encoder = slot_.encoder();
    encoder.set_session(assembler_.session());  // a stream that joins late may bring another name
    encoder.set_missing(assembler_.missing());
    size_ =
        encoder.encode(seq_, bin, assembler_.end_s(bin), assembler_.spike_lag_s(), row_[0],
                       slot_.failed_over() ? kFailedOver : seen, outputs);
    row_[3] = encoder.pub_ns();
    unsent_ = true;
    return encoded(size_);
  }

  void change_model() {
    if (tape_ != nullptr) tape_->event("model swapped", {}, row_[1]);
    validity_.set_window(slot_.window());
  }

  std::size_t encoded(std::size_t size) noexcept {
    ++reasons_[slot_.encoder().reason()];
    ++seq_;
    return size;
  }

  // After it was sent, so that no message waits for its recording.
  void tape_message(ByteSpan stamps) noexcept {
    tape_->decode(stamps, {slot_.encoder().buffer().data(), size_},
                  slot_.encoder().pub_ns());
  }

  Assembler& assembler_;
  EngineSlot slot_;
  LatencyRing& latency_;
  Validity validity_;
  LatencyRing::Row row_{};
  std::array<std::int64_t, kReasons> reasons_{};
  std::int64_t epoch_ = -1, seq_ = 0, last_sent_ns_ = 0;
  double late_s_ = std::numeric_limits<double>::infinity();
  std::int64_t backlog_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t lost_ = 0, skipped_ = 0, lost_bin_ = 0;  // lost bins still to publish, to skip
  bool unsent_ = false;
  std::size_t size_ = 0;  // of the last message
  TapeRing* tape_ = nullptr;
};

}  // namespace neds
