// The bin grid and the one implementation of binning, used live and offline.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>

namespace neds {

// Sample numbers stay within +-2^52, so that every one of them is an exact double.
constexpr std::int64_t kMaxSample = std::int64_t{1} << 52;

// Bin k holds samples [edge(k), edge(k + 1)) with edge(k) = floor(k * fs * bin_size_s + 0.5).
// The grid is absolute: bin 0 starts at sample 0 wherever a recording or a stream begins.
class BinGrid {
 public:
  BinGrid() = default;

  BinGrid(double fs, double bin_size_s) : fs_(fs), width_(fs * bin_size_s), inverse_(1.0 / width_) {
    if (!valid(fs, bin_size_s)) {
      throw std::invalid_argument("fs * bin_size_s must lie between 1 and 2^31 samples");
    }
  }

  static bool valid(double fs, double bin_size_s) noexcept {
    const double width = fs * bin_size_s;
    return std::isfinite(fs) && fs > 0 && width >= 1.0 && width <= 2147483648.0;
  }

  double fs() const noexcept { return fs_; }

  std::int64_t edge(std::int64_t bin) const noexcept {
    return static_cast<std::int64_t>(std::floor(static_cast<double>(bin) * width_ + 0.5));
  }

  // The bin that holds `sample`, |sample| <= kMaxSample. The division only guesses; edge() decides.
  std::int64_t bin_of(std::int64_t sample) const noexcept {
    auto bin = static_cast<std::int64_t>(std::floor(static_cast<double>(sample) * inverse_));
    while (edge(bin) > sample) --bin;
    while (edge(bin + 1) <= sample) ++bin;
    return bin;
  }

 private:
  double fs_ = 1.0;
  double width_ = 1.0;
  double inverse_ = 1.0;
};

// Adds one to a count and sticks at the largest value; true when it was already there.
inline bool add_saturating(std::uint16_t& count) noexcept {
  if (count == std::numeric_limits<std::uint16_t>::max()) return true;
  ++count;
  return false;
}

// Counts spikes into `out`, (n_bins, n_units) row-major and zeroed by the caller. Spikes outside the
// bins are ignored. Returns the index of the first spike whose unit or sample is out of range, or n.
inline std::size_t bin_spikes(const std::int64_t* samples, const std::int64_t* units, std::size_t n,
                              const BinGrid& grid, std::int64_t first_bin, std::int64_t n_bins,
                              std::int64_t n_units, std::uint16_t* out) noexcept {
  std::int64_t low = 1, high = 0, row = -1;  // samples [low, high) belong to `row`
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t sample = samples[i];
    if (units[i] < 0 || units[i] >= n_units) return i;
    if (sample < -kMaxSample || sample > kMaxSample) return i;
    if (sample < low || sample >= high) {  // sorted spikes mostly stay in the bin of the last one
      const std::int64_t bin = grid.bin_of(sample);
      low = grid.edge(bin);
      high = grid.edge(bin + 1);
      row = bin - first_bin;
    }
    if (row >= 0 && row < n_bins) add_saturating(out[row * n_units + units[i]]);
  }
  return n;
}

}  // namespace neds
