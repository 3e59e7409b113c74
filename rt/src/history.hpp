// The last bins as they were stepped, and what brings another engine to the present by them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "stepper.hpp"

namespace neds {

// A ring of the last calls of an engine: bins with their counts, lost bins, skips and resets. One
// thread writes and never waits; others read what it has not overwritten since. All memory is taken
// here.
class History {
 public:
  enum class Kind : std::uint8_t { bin, lost, skip, reset };
  struct Entry {
    Kind kind = Kind::reset;
    std::int64_t n_bins = 0;    // of a skip
    std::int64_t position = 0;  // bins from the last reset to this entry
  };

  History(std::size_t capacity, std::size_t n_units)
      : capacity_(capacity), n_units_(n_units), words_((n_units + kPerWord - 1) / kPerWord),
        slots_(capacity), rows_(capacity * words_) {
    if (capacity < kLeast) throw std::invalid_argument("a history holds 8 entries or more");
  }

  std::size_t capacity() const noexcept { return capacity_; }
  std::size_t n_units() const noexcept { return n_units_; }

  // The writer's: null counts for a lost bin.
  void add(const std::uint16_t* counts) noexcept {
    write(counts == nullptr ? Kind::lost : Kind::bin, 1, counts);
  }
  void skip(std::int64_t n_bins) noexcept { write(Kind::skip, n_bins, nullptr); }
  void reset() noexcept {
    position_ = 0;
    last_reset_.store(end_.load(std::memory_order_relaxed), std::memory_order_release);
    write(Kind::reset, 0, nullptr);
  }

  // Entries so far; the next one gets this index.
  std::uint64_t end() const noexcept { return end_.load(std::memory_order_acquire); }

  // Where to begin so that as much as possible is told, some way ahead of what is overwritten next.
  std::uint64_t first() const noexcept {
    const std::uint64_t after = end(), reset = last_reset_.load(std::memory_order_acquire);
    const std::uint64_t safe = capacity_ - capacity_ / kMargin;
    return std::max(reset, after > safe ? after - safe : 0);
  }

  // Copies an entry below end(), and the counts of a bin; false when it is overwritten already.
  bool read(std::uint64_t index, Entry& entry, std::uint16_t* counts) const noexcept {
    const std::size_t place = static_cast<std::size_t>(index % capacity_);
    const Slot& slot = slots_[place];
    entry.kind = slot.kind.load(std::memory_order_relaxed);
    entry.n_bins = slot.n_bins.load(std::memory_order_relaxed);
    entry.position = slot.position.load(std::memory_order_relaxed);
    if (entry.kind == Kind::bin) {
      for (std::size_t i = 0; i < words_; ++i) {
        const std::uint64_t word = rows_[place * words_ + i].load(std::memory_order_relaxed);
        std::memcpy(counts + i * kPerWord, &word, bytes_at(i));
      }
    }
    // Whoever saw a part of a newer entry sees here that the ring has come round.
    std::atomic_thread_fence(std::memory_order_acquire);
    return end_.load(std::memory_order_relaxed) - index < capacity_;
  }

 private:
  static constexpr std::size_t kPerWord = 4, kLeast = 8, kMargin = 8;
  struct Slot {
    std::atomic<Kind> kind{Kind::reset};
    std::atomic<std::int64_t> n_bins{0}, position{0};
  };

  std::size_t bytes_at(std::size_t word) const noexcept {
    return std::min(kPerWord, n_units_ - word * kPerWord) * sizeof(std::uint16_t);
  }

  void write(Kind kind, std::int64_t n_bins, const std::uint16_t* counts) noexcept {
    const std::uint64_t index = end_.load(std::memory_order_relaxed);
    const std::size_t place = static_cast<std::size_t>(index % capacity_);
    std::atomic_thread_fence(std::memory_order_release);
    Slot& slot = slots_[place];
    slot.kind.store(kind, std::memory_order_relaxed);
    slot.n_bins.store(n_bins, std::memory_order_relaxed);
    slot.position.store(position_, std::memory_order_relaxed);
    for (std::size_t i = 0; counts != nullptr && i < words_; ++i) {
      std::uint64_t word = 0;
      std::memcpy(&word, counts + i * kPerWord, bytes_at(i));
      rows_[place * words_ + i].store(word, std::memory_order_relaxed);
    }
    position_ += n_bins;
    end_.store(index + 1, std::memory_order_release);
  }

  std::size_t capacity_, n_units_, words_;
  std::vector<Slot> slots_;
  std::vector<std::atomic<std::uint64_t>> rows_;
  std::atomic<std::uint64_t> end_{0}, last_reset_{0};
  std::int64_t position_ = 0;
};

// Takes an engine through the history up to its end, and on from there. Borrows both, and `counts`,
// which has room for a bin. One thread at a time may call it.
class Follower {
 public:
  Follower(const History& history, Stepper& stepper, std::uint16_t* counts, std::size_t n_outputs)
      : history_(history), stepper_(stepper), counts_(counts), n_outputs_(n_outputs) {}

  Stepper& stepper() noexcept { return stepper_; }
  std::uint64_t at() const noexcept { return next_; }
  std::uint64_t behind() const noexcept { return history_.end() - next_; }
  // How often it began at the oldest entry: once, unless it fell behind by more than the history.
  std::int64_t starts() const noexcept { return starts_; }
  // The entry that it began at, the last time.
  std::uint64_t begun() const noexcept { return begun_; }
  // Of the last entry, null when it was no bin.
  const float* outputs() const noexcept { return outputs_; }
  bool finite() const noexcept {
    return outputs_ == nullptr ||
           std::all_of(outputs_, outputs_ + n_outputs_, [](float x) { return std::isfinite(x); });
  }

  // Whatever the engine was at before: the next call of follow() begins at the oldest entry.
  void restart() noexcept {
    started_ = false;
    next_ = 0;
  }

  // Begins at an entry that is kept, as another follower did that is to be followed to the bit.
  void begin_at(std::uint64_t index) {
    if (index >= history_.end()) throw std::out_of_range("no such entry yet");
    begin(index);
  }

  // Goes through `most` entries at most and returns their number; what the engine throws passes.
  std::size_t follow(std::size_t most) {
    std::size_t done = 0;
    if (!started_) begin(history_.first());
    while (done < most && next_ < history_.end()) {
      History::Entry entry;
      if (!history_.read(next_, entry, counts_)) {
        begin(history_.first());
        continue;
      }
      if (fresh_ && entry.position > 0) stepper_.skip(entry.position);  // to where it counts on
      fresh_ = false;
      apply(entry);
      ++next_;
      ++done;
    }
    return done;
  }

 private:
  void begin(std::uint64_t index) {
    next_ = begun_ = index;
    started_ = fresh_ = true;
    ++starts_;
    outputs_ = nullptr;
    stepper_.reset();
  }

  void apply(const History::Entry& entry) {
    outputs_ = nullptr;
    switch (entry.kind) {
      case History::Kind::bin: outputs_ = stepper_.step(counts_, true); return;
      case History::Kind::lost: outputs_ = stepper_.step(counts_, false); return;
      case History::Kind::skip: stepper_.skip(entry.n_bins); return;
      case History::Kind::reset: stepper_.reset(); return;
    }
  }

  const History& history_;
  Stepper& stepper_;
  std::uint16_t* counts_;
  std::size_t n_outputs_;
  const float* outputs_ = nullptr;
  std::uint64_t next_ = 0, begun_ = 0;
  std::int64_t starts_ = 0;
  bool started_ = false, fresh_ = false;
};

}  // namespace neds
