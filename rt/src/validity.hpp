// Says why a decode is or is not valid, from what the model's window can see.
#pragma once

#include <algorithm>
#include <cstdint>

#include "reasons.hpp"

namespace neds {

// What is known of a bin when it closes.
struct BinFacts {
  bool lost = false;     // some of its spikes are unknown
  bool partial = false;  // closed without a stream
  bool jumped = false;   // a clock has jumped
};

class Validity {
 public:
  explicit Validity(std::int64_t window) : window_(window) { reset(); }

  std::int64_t window() const noexcept { return window_; }
  // From the next bin on, a window is as long as another model's.
  void set_window(std::int64_t window) noexcept { window_ = window; }
  void reset() noexcept {
    since_start_ = 0;
    since_whole_ = since_jump_ = kLongAgo;
  }

  // Moves on by `n_bins` bins of one kind and returns the reason code of the last of them. `health`
  // is what the bins' contents say, and counts only where nothing else speaks against the bin.
  Reason advance(const BinFacts& bin, std::int64_t n_bins, Reason health = kOk) noexcept {
    move(since_start_, false, n_bins);
    move(since_whole_, bin.lost || bin.partial, n_bins);
    move(since_jump_, bin.jumped, n_bins);
    if (bin.partial) return kStreamMissing;
    if (since_jump_ < window_) return kClockJump;
    if (since_whole_ < window_) return kGap;
    return since_start_ < window_ ? kWarmingUp : health;
  }

 private:
  static void move(std::int64_t& since, bool again, std::int64_t n_bins) noexcept {
    since = again ? 0 : std::min(since + n_bins, kLongAgo);
  }

  static constexpr std::int64_t kLongAgo = std::int64_t{1} << 53;  // more than a stream has

  std::int64_t window_;
  std::int64_t since_start_ = 0, since_whole_ = 0, since_jump_ = 0;  // bins
};

}  // namespace neds
