// What viewers may see of a running stream: the counts of its last bins, and the last word on
// validity. One thread writes, others read; neither side ever waits for the other.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

namespace neds {

// A ring of bins, each behind a sequence lock: a reader that meets the writer drops that bin. Rows
// are units, or where there are more units than rows, sums over neighbours in the model's order.
class Raster {
 public:
  struct Bin {
    std::int64_t bin = 0;
    int reason = 0;
  };

  Raster(std::size_t bins, std::size_t n_units, std::size_t rows)
      : n_units_(n_units), rows_(rows), slots_(bins), cells_(bins * rows) {
    if (bins == 0 || rows == 0 || rows > n_units) {
      throw std::invalid_argument("a raster has one bin or more, and 1 to n_units rows");
    }
  }

  std::size_t bins() const noexcept { return slots_.size(); }
  std::size_t rows() const noexcept { return rows_; }
  std::size_t n_units() const noexcept { return n_units_; }

  // Writer: a bin whose message has been sent. `counts` holds n_units of them; cells stop at 255.
  void add(std::int64_t bin, std::span<const std::uint16_t> counts, int reason) noexcept {
    const std::uint64_t index = written_.load(std::memory_order_relaxed);
    Slot& slot = slots_[index % slots_.size()];
    slot.ticket.store(2 * index + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    slot.bin.store(bin, std::memory_order_relaxed);
    slot.reason.store(reason, std::memory_order_relaxed);
    std::atomic<std::uint8_t>* cells = &cells_[index % slots_.size() * rows_];
    std::size_t unit = 0;
    for (std::size_t row = 0; row < rows_; ++row) {
      std::uint32_t sum = 0;
      for (const std::size_t end = (row + 1) * n_units_ / rows_; unit < end; ++unit) {
        sum += counts[unit];
      }
      cells[row].store(static_cast<std::uint8_t>(sum > 255 ? 255 : sum), std::memory_order_relaxed);
    }
    slot.ticket.store(2 * index + 2, std::memory_order_release);
    written_.store(index + 1, std::memory_order_release);
  }

  // Writer: the reason of a message that is about to be sent.
  void said(int reason, std::int64_t now_ns) noexcept {
    if (reason == reason_) return;
    reason_ = reason;
    // One word, so that nobody sees the one without the other.
    word_.store((now_ns / 1000) << 8 | reason, std::memory_order_release);
  }

  // Reader: the reason of the last message, -1 before any, and since when (ns) it has been that.
  std::pair<int, std::int64_t> word() const noexcept {
    const std::int64_t word = word_.load(std::memory_order_acquire);
    if (word < 0) return {-1, 0};
    return {static_cast<int>(word & 255), (word >> 8) * 1000};
  }

  // Reader: copies what the ring holds, oldest first, and returns how many bins that are. `bins` has
  // room for bins() and `cells` for bins() * rows(), a bin after the other.
  std::size_t copy(Bin* bins, std::uint8_t* cells) const noexcept {
    const std::uint64_t end = written_.load(std::memory_order_acquire);
    std::uint64_t index = end > slots_.size() ? end - slots_.size() : 0;
    std::size_t n = 0;
    for (; index < end; ++index) {
      const Slot& slot = slots_[index % slots_.size()];
      if (slot.ticket.load(std::memory_order_acquire) != 2 * index + 2) continue;
      bins[n] = {slot.bin.load(std::memory_order_relaxed),
                 slot.reason.load(std::memory_order_relaxed)};
      const std::atomic<std::uint8_t>* own = &cells_[index % slots_.size() * rows_];
      for (std::size_t row = 0; row < rows_; ++row) {
        cells[n * rows_ + row] = own[row].load(std::memory_order_relaxed);
      }
      std::atomic_thread_fence(std::memory_order_acquire);
      if (slot.ticket.load(std::memory_order_relaxed) == 2 * index + 2) ++n;
    }
    return n;
  }

 private:
  struct Slot {
    std::atomic<std::uint64_t> ticket{0};  // of bin `i`: 2i + 1 while it is written, then 2i + 2
    std::atomic<std::int64_t> bin{0};
    std::atomic<int> reason{0};
  };

  std::size_t n_units_, rows_;
  std::vector<Slot> slots_;
  std::vector<std::atomic<std::uint8_t>> cells_;
  std::atomic<std::uint64_t> written_{0};
  std::atomic<std::int64_t> word_{-1};  // microseconds << 8 | reason
  int reason_ = -1;                     // the writer's own copy
};

}  // namespace neds
