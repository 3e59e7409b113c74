// What every reading of the raw AP band begins with, sample by sample and causal: each channel is
// high-passed (second-order Butterworth, transposed direct form II), and the median over channels
// is taken away from all of them (common median reference).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <stdexcept>
#include <vector>

namespace neds {

// The element in the middle of the sorted ones, the upper of two; the values are moved about.
inline float median_of(float* values, std::size_t n) noexcept {
  std::nth_element(values, values + n / 2, values + n);
  return values[n / 2];
}

// The exact median of rows that follow each other: looked for among the few values near the last.
class RunningMedian {
 public:
  explicit RunningMedian(std::size_t n) : near_(n) {}

  float operator()(const float* values, std::size_t n) noexcept {
    const float low = last_ - width_, high = last_ + width_;
    std::size_t below = 0, found = 0;
    for (std::size_t i = 0; i < n; ++i) below += values[i] < low;
    for (std::size_t i = 0; i < n; ++i) {
      near_[found] = values[i];
      found += (values[i] >= low) & (values[i] < high);
    }
    const std::size_t middle = n / 2;
    if (below <= middle && middle < below + found) {
      float* const wanted = near_.data() + (middle - below);
      std::nth_element(near_.data(), wanted, near_.data() + found);
      last_ = *wanted;
      width_ *= found > n / 4 ? 0.9f : 1.0f;
    } else {
      std::copy(values, values + n, near_.data());
      last_ = median_of(near_.data(), n);
      width_ = 1.5f * width_ + 1e-3f;
    }
    return last_;
  }

 private:
  std::vector<float> near_;
  float last_ = 0, width_ = 1;
};

class FrontEnd {
 public:
  FrontEnd(std::size_t channels, double fs, double highpass_hz, bool reference)
      : n_((channels + 7) / 8 * 8), channels_(channels), reference_(reference), y_(n_), s1_(n_),
        s2_(n_), median_(n_) {
    const bool rate = std::isfinite(fs) && highpass_hz > 0 && highpass_hz < 0.5 * fs;
    if (channels == 0 || channels > 65536 || !rate) {
      throw std::invalid_argument("channels or rates out of range");
    }
    const double k = std::tan(std::numbers::pi * highpass_hz / fs), q = std::numbers::sqrt2;
    const double scale = 1 / (1 + q * k + k * k);
    b0_ = static_cast<float>(scale);
    a1_ = static_cast<float>(2 * (k * k - 1) * scale);
    a2_ = static_cast<float>((1 - q * k + k * k) * scale);
  }

  // The next row does not follow the last one.
  void reset() noexcept { fresh_ = true; }
  bool fresh() const noexcept { return fresh_; }
  std::size_t channels() const noexcept { return channels_; }

  // Takes one sample of all channels; returns the row, zero from `channels` to the next eighth.
  float* step(const std::int16_t* x) noexcept {
    if (fresh_) start(x);
    filter(x);
    if (reference_) {
      const float middle = median_(y_.data(), channels_);
      for (std::size_t c = 0; c < channels_; ++c) y_[c] -= middle;
    }
    return y_.data();
  }

 private:
  // As if the first values had always been there, so that offsets are no step.
  void start(const std::int16_t* x) noexcept {
    for (std::size_t c = 0; c < channels_; ++c) {
      s1_[c] = -b0_ * static_cast<float>(x[c]);
      s2_[c] = b0_ * static_cast<float>(x[c]);
    }
    fresh_ = false;
  }

  void filter(const std::int16_t* x) noexcept {
    const float b0 = b0_, b1 = -2 * b0_, a1 = a1_, a2 = a2_;
    float* __restrict y = y_.data();
    float* __restrict s1 = s1_.data();
    float* __restrict s2 = s2_.data();
    for (std::size_t c = 0; c < channels_; ++c) {
      const float in = static_cast<float>(x[c]);
      const float out = b0 * in + s1[c];
      s1[c] = (b1 * in - a1 * out) + s2[c];
      s2[c] = b0 * in - a2 * out;
      y[c] = out;
    }
  }

  std::size_t n_, channels_;
  bool reference_, fresh_ = true;
  float b0_ = 0, a1_ = 0, a2_ = 0;
  std::vector<float> y_, s1_, s2_;
  RunningMedian median_;
};

}  // namespace neds
