// The raw AP band to threshold crossings, one unit a channel: the simple mode, causal throughout.
//
// After the front end (`front_end.hpp`) a channel crosses where it falls below -threshold * noise,
// noise = median(|x|) / 0.6745 (Quiroga, Nadasdy and Ben-Shaul 2004, Neural Computation 16:1661),
// over rows spread over a second and then averaged exponentially. After a crossing a channel is deaf
// for the refractory time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <vector>

#include "front_end.hpp"

namespace neds {

struct DetectorOptions {
  std::size_t channels = 0;
  double fs = 0;
  double highpass_hz = 300;
  double threshold = 5;        // in standard deviations of the noise
  double refractory_s = 0.001;
  bool reference = true;       // take the median over channels away
};

class ThresholdDetector {
 public:
  static constexpr std::size_t kNoiseRows = 512;   // of which the noise is the median
  static constexpr double kNoiseSeconds = 1.0;     // that they are spread over
  static constexpr float kNoiseGain = 0.1f;        // of a new estimate on the running one
  static constexpr double kSettleSeconds = 0.02;   // after a start, until the filter is at rest
  static constexpr std::size_t kCapacity = std::size_t{1} << 16;  // crossings a block

  explicit ThresholdDetector(const DetectorOptions& o)
      : n_((o.channels + 7) / 8 * 8), channels_(o.channels),
        front_(o.channels, o.fs, o.highpass_hz, o.reference),
        threshold_(static_cast<float>(o.threshold)), refractory_(std::llround(o.refractory_s * o.fs)),
        stride_(std::max<std::int64_t>(1, std::llround(kNoiseSeconds * o.fs / kNoiseRows))),
        settle_(std::llround(kSettleSeconds * o.fs)), 
        rows_(kNoiseRows * n_), noise_(n_), level_(n_, -HUGE_VALF), below_(n_), fresh_(n_),
        last_(n_), samples_(kCapacity), where_(kCapacity) {
    if (!(o.threshold > 0) || !(o.refractory_s >= 0)) {
      throw std::invalid_argument("threshold or refractory time out of range");
    }
    reset();
  }

  // Samples do not follow the last ones: the filter starts anew, the noise is kept.
  void reset() noexcept {
    front_.reset();
    live_from_ = -1;
    row_ = 0;
    until_row_ = 0;
  }

  // Takes n samples of all channels, sample-major, from `first` on; returns how many crossings are
  // now in samples() and where(), in the order of their samples.
  std::size_t push(const std::int16_t* data, std::size_t n, std::int64_t first) noexcept {
    found_ = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int16_t* x = data + i * channels_;
      const std::int64_t sample = first + static_cast<std::int64_t>(i);
      if (front_.fresh()) settled_ = sample + settle_;
      y_ = front_.step(x);
      if (sample >= settled_ && until_row_-- == 0) keep_row();
      if (measured_ && sample >= settled_) {
        if (live_from_ < 0) live_from_ = begin(sample);
        detect(sample);
      }
    }
    return found_;
  }

  // First sample since the last reset whose crossings are told; -1 before it is known.
  std::int64_t live_from() const noexcept { return live_from_; }
  std::int64_t overflow() const noexcept { return overflow_; }  // crossings beyond kCapacity
  std::size_t channels() const noexcept { return channels_; }
  std::span<float> noise() noexcept { return {noise_.data(), channels_}; }
  std::span<std::int64_t> samples() noexcept { return samples_; }
  std::span<std::int32_t> where() noexcept { return where_; }

 private:
  void keep_row() noexcept {
    until_row_ = stride_ - 1;
    float* row = rows_.data() + row_ * channels_;
    for (std::size_t c = 0; c < channels_; ++c) row[c] = std::fabs(y_[c]);
    if (++row_ == kNoiseRows) measure();
  }

  void measure() noexcept {
    float column[kNoiseRows];
    for (std::size_t c = 0; c < channels_; ++c) {
      for (std::size_t r = 0; r < kNoiseRows; ++r) column[r] = rows_[r * channels_ + c];
      const float found = median_of(column, kNoiseRows) / 0.6745f;
      noise_[c] = measured_ ? noise_[c] + kNoiseGain * (found - noise_[c]) : found;
      // A dead channel crosses nothing.
      level_[c] = noise_[c] > 0 ? -threshold_ * noise_[c] : -HUGE_VALF;
    }
    measured_ = true;
    row_ = 0;
  }

  std::int64_t begin(std::int64_t sample) noexcept {
    for (std::size_t c = 0; c < channels_; ++c) {
      last_[c] = sample - refractory_ - 1;
      below_[c] = y_[c] < level_[c];  // what is under way has crossed before
    }
    return sample;
  }

  void detect(std::int64_t sample) noexcept {
    const float* y = y_;
    const float* level = level_.data();
    std::uint8_t* below = below_.data();
    std::uint8_t* fresh = fresh_.data();
    for (std::size_t c = 0; c < channels_; ++c) {
      const std::uint8_t now = y[c] < level[c];
      fresh[c] = now & static_cast<std::uint8_t>(~below[c]);
      below[c] = now;
    }
    for (std::size_t c = 0; c < n_; c += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, fresh + c, 8);
      if (eight == 0) continue;
      for (std::size_t k = c; k < c + 8; ++k) {
        if (fresh[k]) cross(k, sample);
      }
    }
  }

  void cross(std::size_t c, std::int64_t sample) noexcept {
    if (sample - last_[c] <= refractory_) return;
    last_[c] = sample;
    if (found_ == kCapacity) {
      ++overflow_;
      return;
    }
    samples_[found_] = sample;
    where_[found_++] = static_cast<std::int32_t>(c);
  }

  std::size_t n_, channels_;  // n_: rounded up to eight
  FrontEnd front_;
  const float* y_ = nullptr;  // the row at hand
  float threshold_;
  bool measured_ = false;
  std::int64_t refractory_, stride_, settle_;
  std::int64_t settled_ = 0, live_from_ = -1, until_row_ = 0, overflow_ = 0;
  std::size_t row_ = 0, found_ = 0;
  std::vector<float> rows_, noise_, level_;
  std::vector<std::uint8_t> below_, fresh_;
  std::vector<std::int64_t> last_, samples_;
  std::vector<std::int32_t> where_;
};

}  // namespace neds
