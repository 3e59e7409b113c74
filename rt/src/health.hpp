// Whether spikes are what they were in training: unit by unit, and as the model predicts them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

#include "reasons.hpp"

namespace neds {

// What a bundle says of its training data; fitted by neds/health.py. Vectors are (units,).
struct HealthSpec {
  std::vector<float> rate, rate_sd;    // spikes a bin; spread of their running mean
  std::vector<float> gain, gain_sd;    // log-likelihood a bin over that of `rate`; of its running mean
  std::vector<float> quiet;            // bins of silence that training explains; 0: not judged
  std::vector<float> ceiling;          // of the running mean over `burst_bins`
  std::vector<float> weight, bias;     // (hidden, units), (units,): log rates of the next bin
  double smooth_bins = 1, burst_bins = 1;
  double firing_limit = 1, likelihood_limit = 1, silent_limit = 1, saturated_limit = 1;
};

enum HealthGauge : int {
  kDriftGauge,       // the larger of the next two; 1 is an alarm
  kFiringGauge,      // score of the firing rates, as a share of its limit
  kLikelihoodGauge,  // score of the predictions, as a share of its limit; NaN: none were made
  kBitsGauge,        // bits per spike over the training rates, smoothed; NaN as above
  kSilentGauge,      // share of units silent for too long, as a share of its limit
  kSaturatedGauge,   // share of units above their ceiling, as a share of its limit
  kHealthGauges
};

inline constexpr std::array<const char*, kHealthGauges> kHealthNames = {
    "drift", "firing", "likelihood", "bits_per_spike", "silent", "saturated"};

// Running means of every unit's count, and of how much better than its mean rate the model predicted
// it, each against its mean and spread in training; the squares of their deviations, capped so that
// no unit speaks for all, and averaged over units, are the two scores. README.md, "Health".
class Health {
 public:
  static constexpr float kCap = 25;      // of a squared deviation
  static constexpr float kMaxLog = 8;    // of a predicted log rate

  Health(HealthSpec spec, std::size_t hidden, bool drift_invalidates)
      : s_(std::move(spec)), hidden_(hidden), drift_invalidates_(drift_invalidates),
        smooth_(s_.rate), burst_(s_.rate.size()), gained_(s_.gain), silent_(s_.rate.size()),
        log_rate_(s_.rate.size()), expected_(s_.rate.size()) {
    const std::size_t n = s_.rate.size();
    for (const auto* v : {&s_.rate_sd, &s_.gain, &s_.gain_sd, &s_.quiet, &s_.ceiling, &s_.bias}) {
      if (v->size() != n) throw std::invalid_argument("health: one number a unit");
    }
    if (n == 0 || s_.weight.size() != n * hidden || !(s_.smooth_bins >= 1) || !(s_.burst_bins >= 1)) {
      throw std::invalid_argument("health: sizes do not fit");
    }
    for (const float rate : s_.rate) {
      if (!(rate > 0)) throw std::invalid_argument("health: rates must be above 0");
      base_.push_back(std::log(rate));
    }
    judged_ = std::count_if(s_.quiet.begin(), s_.quiet.end(), [](float q) { return q > 0; });
    reset();
  }

  std::size_t n_units() const noexcept { return s_.rate.size(); }
  std::size_t hidden() const noexcept { return hidden_; }
  std::span<double> gauges() noexcept { return gauges_; }
  std::span<float> smooth() noexcept { return smooth_; }
  std::span<float> gained() noexcept { return gained_; }

  // Begins at the training means, so that nothing is an alarm that has not been seen for a while.
  void reset() noexcept {
    smooth_ = s_.rate;
    gained_ = s_.gain;
    std::fill(burst_.begin(), burst_.end(), 0.0f);
    std::fill(silent_.begin(), silent_.end(), 0);
    gauges_.fill(0);
    gauges_[kLikelihoodGauge] = gauges_[kBitsGauge] = std::numeric_limits<double>::quiet_NaN();
    predicted_ = false;
  }

  // A bin whose counts are not all known: what comes next was not predicted from it.
  void skip() noexcept { predicted_ = false; }

  // Takes the counts (units,) of a whole bin, and the model's state (hidden,) after it, or null.
  void observe(const std::uint16_t* counts, const float* state) noexcept {
    watch_units(counts);
    if (predicted_) score_prediction(counts);
    gauges_[kDriftGauge] = std::fmax(gauges_[kFiringGauge], gauges_[kLikelihoodGauge]);
    predicted_ = state != nullptr;
    if (predicted_) predict(state);
  }

  // What speaks against the bins to come.
  Reason reason() const noexcept {
    if (gauges_[kSilentGauge] >= 1) return kUnitsSilent;
    if (gauges_[kSaturatedGauge] >= 1) return kUnitsSaturated;
    return drift_invalidates_ && gauges_[kDriftGauge] >= 1 ? kDrift : kOk;
  }

 private:
  void watch_units(const std::uint16_t* counts) noexcept {
    const float slow = static_cast<float>(1 / s_.smooth_bins);
    const float fast = static_cast<float>(1 / s_.burst_bins);
    float score = 0;
    int silent = 0, saturated = 0;
    for (std::size_t u = 0; u < n_units(); ++u) {
      const float k = counts[u];
      smooth_[u] += slow * (k - smooth_[u]);
      const float z = (smooth_[u] - s_.rate[u]) / s_.rate_sd[u];
      score += std::min(z * z, kCap);
      burst_[u] += fast * (k - burst_[u]);
      saturated += burst_[u] > s_.ceiling[u];
      silent_[u] = counts[u] > 0 ? 0 : std::min(silent_[u] + 1, 1 << 30);
      silent += s_.quiet[u] > 0 && static_cast<float>(silent_[u]) > s_.quiet[u];
    }
    const double n = static_cast<double>(n_units());
    gauges_[kFiringGauge] = score / n / s_.firing_limit;
    gauges_[kSaturatedGauge] = saturated / n / s_.saturated_limit;
    gauges_[kSilentGauge] = judged_ > 0 ? silent / static_cast<double>(judged_) / s_.silent_limit : 0;
  }

  // Of the bin that the last state predicted; only falls count.
  void score_prediction(const std::uint16_t* counts) noexcept {
    const float slow = static_cast<float>(1 / s_.smooth_bins);
    float score = 0, gained = 0, spikes = 0;
    for (std::size_t u = 0; u < n_units(); ++u) {
      const float over = static_cast<float>(counts[u]) * (log_rate_[u] - base_[u]);
      gained_[u] += slow * (over - (expected_[u] - s_.rate[u]) - gained_[u]);
      const float z = std::min((gained_[u] - s_.gain[u]) / s_.gain_sd[u], 0.0f);
      score += std::min(z * z, kCap);
      gained += gained_[u];
      spikes += smooth_[u];
    }
    gauges_[kLikelihoodGauge] = score / static_cast<double>(n_units()) / s_.likelihood_limit;
    gauges_[kBitsGauge] = gained / std::max(spikes, 1e-6f) / std::log(2.0);
  }

  void predict(const float* state) noexcept {
    const std::size_t n = n_units();
    std::copy(s_.bias.begin(), s_.bias.end(), log_rate_.begin());
    for (std::size_t h = 0; h < hidden_; ++h) {
      const float* row = s_.weight.data() + h * n;
      const float x = state[h];
      for (std::size_t u = 0; u < n; ++u) log_rate_[u] += x * row[u];
    }
    for (std::size_t u = 0; u < n; ++u) {
      log_rate_[u] = std::min(log_rate_[u], kMaxLog);
      expected_[u] = std::exp(log_rate_[u]);
    }
  }

  HealthSpec s_;
  std::size_t hidden_;
  bool drift_invalidates_;
  std::vector<float> base_;  // log of the training rates
  std::vector<float> smooth_, burst_, gained_;
  std::vector<int> silent_;                // bins since the last spike
  std::vector<float> log_rate_, expected_;  // of the next bin, as predicted
  std::array<double, kHealthGauges> gauges_{};
  std::ptrdiff_t judged_ = 0;
  bool predicted_ = false;
};

}  // namespace neds
