// One probe's stream: its place in the sample clock and a bounded queue of its open bins.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "clock_watch.hpp"
#include "core.hpp"
#include "wire.hpp"

namespace neds {

// A session name kept without allocating.
class SessionName {
 public:
  std::string_view view() const noexcept { return {bytes_.data(), size_}; }
  void set(std::string_view name) noexcept {
    size_ = std::min(name.size(), bytes_.size());
    std::copy_n(name.data(), size_, bytes_.data());
  }

 private:
  std::array<char, kMaxNameBytes> bytes_{};
  std::size_t size_ = 0;
};

// Open bins of one stream, oldest first. Bins appear in rising order; a bin that is missing from the
// queue, or flagged, is lost. Only the last unbroken run of bins is ever written to, because spikes
// below the watermark are dropped and a gap starts a new run. Memory is taken once, here.
class BinQueue {
 public:
  BinQueue(std::size_t capacity, std::size_t n_units)
      : capacity_(capacity), n_units_(n_units), slots_(capacity), counts_(capacity * n_units) {}

  // Slots left free once the last run is cut off at `bin`.
  std::int64_t room_from(std::int64_t bin) const noexcept {
    const std::uint64_t end = bin < run_end() ? index_of(std::max(bin, run_bin_)) : end_;
    return static_cast<std::int64_t>(capacity_ - (end - head_));
  }
  bool empty() const noexcept { return head_ == end_; }
  std::int64_t run_begin() const noexcept { return run_bin_; }
  std::int64_t run_end() const noexcept {
    return run_bin_ + static_cast<std::int64_t>(end_ - run_index_);
  }
  std::int64_t front() const noexcept { return slots_[head_ % capacity_].bin; }
  bool front_lost() const noexcept { return slots_[head_ % capacity_].lost; }
  std::int64_t front_newest() const noexcept { return slots_[head_ % capacity_].newest; }
  const std::uint16_t* front_counts() const noexcept {
    return &counts_[(head_ % capacity_) * n_units_];
  }
  void pop_front() noexcept { ++head_; }

  void start(std::int64_t bin) noexcept {
    head_ = end_;
    start_run(bin);
  }
  void start_run(std::int64_t bin) noexcept {
    run_bin_ = bin;
    run_index_ = end_;
  }
  // Drops the bins of the last run from `bin` on; `bin` must not have been popped.
  void truncate(std::int64_t bin) noexcept {
    if (bin < run_end()) end_ = index_of(std::max(bin, run_bin_));
  }
  void flag_lost(std::int64_t from, std::int64_t to) noexcept {
    for (std::int64_t bin = std::max(from, run_bin_); bin < to; ++bin) slot(bin).lost = true;
  }
  // Opens empty bins up to and with `bin`; the caller has checked that there is room.
  void open_through(std::int64_t bin) noexcept {
    while (run_end() <= bin) {
      const std::size_t place = end_ % capacity_;
      slots_[place] = {run_end(), kNoSpike, false};
      std::fill_n(&counts_[place * n_units_], n_units_, std::uint16_t{0});
      ++end_;
    }
  }
  // Counts one spike in an open bin of the last run; true when the count was already at its limit.
  bool add(std::int64_t bin, std::uint32_t unit, std::int64_t sample) noexcept {
    Slot& at = slot(bin);
    at.newest = std::max(at.newest, sample);
    return add_saturating(counts_[(index_of(bin) % capacity_) * n_units_ + unit]);
  }

  static constexpr std::int64_t kNoSpike = INT64_MIN;

 private:
  struct Slot {
    std::int64_t bin = 0;
    std::int64_t newest = kNoSpike;  // newest sample counted
    bool lost = false;
  };

  std::uint64_t index_of(std::int64_t bin) const noexcept {
    return run_index_ + static_cast<std::uint64_t>(bin - run_bin_);
  }
  Slot& slot(std::int64_t bin) noexcept { return slots_[index_of(bin) % capacity_]; }

  std::size_t capacity_, n_units_;
  std::vector<Slot> slots_;
  std::vector<std::uint16_t> counts_;
  std::uint64_t head_ = 0, end_ = 0, run_index_ = 0;  // slot of index i is i % capacity
  std::int64_t run_bin_ = 0;                          // bin at run_index_
};

// What the assembler knows of one stream.
struct Stream {
  Stream(std::string stream_name, std::vector<std::int32_t> model_rows, std::size_t open_bins)
      : name(std::move(stream_name)), rows(std::move(model_rows)), queue(open_bins, rows.size()) {}

  std::string name;
  std::vector<std::int32_t> rows;  // model row of each of the stream's units
  BinQueue queue;
  bool started = false;      // has bins of its own; false again when another stream restarts
  bool has_session = false;  // has been heard of
  bool has_ended_session = false;
  bool missing = false;  // bins close without it
  SessionName session, ended_session;
  BinGrid grid;
  std::int64_t seq = 0;
  std::int64_t watermark = 0;
  std::int64_t closed_end = 0;  // bins below are closed: the bin that holds the watermark
  std::int64_t first_bin = 0;   // first bin after the start that can be whole
  std::int64_t reach = 0;       // how far past a watermark spikes of this session have come
  std::int64_t newest = BinQueue::kNoSpike;  // newest sample in the bins handed out
  static constexpr std::int64_t kNever = INT64_MIN / 2;  // far enough for differences to fit
  std::int64_t heard_ns = kNever;  // when its watermark last moved on
  ClockWatch clock;
};

}  // namespace neds
