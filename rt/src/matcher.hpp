// The raw AP band to spikes of known units: matching pursuit against the units' templates.
//
// After the front end (`front_end.hpp`) every channel is divided by its noise, and rows are kept in
// the order of the probe's depth, so that a template covers a run of `kWidth` neighbouring channels.
// A peak is a value below -threshold that is the lowest within `guard` samples and `reach` channels.
// At a peak all templates with their trough near it are tried at a few shifts; the gain of one is
//
//     max over a of 2 a c - a^2 n - lambda (a - 1)^2 = (c + lambda)^2 / (n + lambda) - lambda,
//
// c = <rows, filter>, n = <template, filter>, lambda = 1 / variance of the unit's amplitudes, the
// filter being the inverse of the noise's covariance over the channels times the template: twice
// the gain in log likelihood in Gaussian noise (Pachitariu et al. 2024, Nature Methods 21:914, have
// the same prior on amplitudes). The best one, if good enough, is taken away from the rows, and what
// peaks then appear is looked at again, a bounded number of times. Every decision is tied to a
// sample: blocking changes nothing.
//
// Drift, in two ways. A unit has copies of its template moved along the probe in equal steps; which
// one is used follows from a slow estimate for the part of the probe that the unit is in, and every
// spike corrects it by where between the copies its gain is largest. And every spike brings its
// unit's template a little nearer to what was seen, which a slow pull back to the copy holds.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "front_end.hpp"

namespace neds {

struct MatcherOptions {
  std::size_t channels = 0;
  double fs = 0;
  double highpass_hz = 300;
  bool reference = true;
  float threshold = 3.5f;   // of a peak, in standard deviations of the noise
  float least_share = 0.5f;  // of a template's energy n that the gain must reach
  int shifts = 3;           // samples that a template is moved to either side of a peak
  int guard = 10;           // samples within which a peak is alone
  int reach = 8;            // channels within which a peak is alone, by depth
  int refractory = 20;      // samples in which a unit does not fire twice
  int rescans = 6;          // spikes taken away at a peak, at most
  float drift_gain = 0.03f;  // of a spike on the drift of its part of the probe; 0: no drift
  float adapt_gain = 0.02f;  // of a spike on its unit's template, at most; 0: templates stay
};

// U units, P positions (copies), R rows, W = kWidth channels.
struct MatcherModel {
  static constexpr std::size_t kWidth = 32;
  std::size_t units = 0, positions = 0, rows = 0, parts = 0;
  std::vector<std::int32_t> order;   // (channels,) channel at each place by depth
  std::vector<float> scale;          // (channels,) 1 / noise by place, 0 for a dead one
  std::vector<float> waveform;       // (U, P, R, W) in units of the noise
  std::vector<float> whiten;         // (U, W, W) inverse of the noise's covariance
  std::vector<float> mask;           // (U, W) 1 where the unit can be seen at all, else 0
  std::vector<std::int32_t> first;   // (U,) place of a template's first channel
  std::vector<std::int32_t> trough;  // (U,) row of the trough
  std::vector<float> prior;          // (U,) lambda
  std::vector<float> least, most;    // (U,) bounds of the amplitude
  std::vector<std::int32_t> part;    // (U,) part of the probe whose drift it follows
  std::vector<std::int32_t> near;    // units to be tried, place by place
  std::vector<std::int32_t> near_at;  // (channels + 1,) where those of a place begin in `near`
  std::int32_t before = 0;           // row that a spike's sample is at
};

class TemplateMatcher {
 public:
  static constexpr std::size_t kCapacity = std::size_t{1} << 16;  // spikes a block
  static constexpr double kSettleSeconds = 0.02;  // after a start, until the filter is at rest
  static constexpr std::size_t kLanes = 8, kWidth = MatcherModel::kWidth;

  TemplateMatcher(const MatcherOptions& o, MatcherModel model)
      : o_(o), m_(std::move(model)), stride_(std::max(kWidth, (o.channels + kLanes - 1) / kLanes * kLanes)),
        front_(o.channels, o.fs, o.highpass_hz, o.reference),
        settle_(std::llround(kSettleSeconds * o.fs)) {
    check();
    m_.near_at.resize(stride_ + 1, m_.near_at.back());  // places past the channels have no units
    for (std::size_t u = 0; u < m_.units; ++u) {
      troughs_ = std::max(troughs_, std::abs(m_.trough[u] - m_.before));
      most_before_ = std::max(most_before_, m_.trough[u]);
      most_after_ = std::max(most_after_, static_cast<int>(m_.rows) - 1 - m_.trough[u]);
    }
    ahead_ = std::max(o_.guard, most_after_ + o_.shifts);
    back_ = 2 * o_.guard;
    kept_ = back_ + std::max(o_.guard, most_before_ + o_.shifts);
    window_ = static_cast<std::size_t>(kept_ + ahead_ + 1);
    rows_.resize((kSlack + window_) * stride_);
    size_ = m_.rows * kWidth;
    white_.resize(size_);
    start_templates();
    drift_.assign(m_.parts, 0.0f);
    last_.resize(m_.units);
    samples_.resize(kCapacity);
    where_.resize(kCapacity);
    amplitude_.resize(kCapacity);
    reset();
  }

  // Samples do not follow the last ones: the filter starts anew, the drift is kept.
  void reset() noexcept {
    front_.reset();
    live_from_ = -1;
    filled_ = 0;
    std::fill(last_.begin(), last_.end(), INT64_MIN / 2);
  }

  // Takes n samples of all channels, sample-major, from `first` on; returns how many spikes are now
  // in samples(), where() and amplitude(). Those of one block are in no order.
  std::size_t push(const std::int16_t* data, std::size_t n, std::int64_t first) noexcept {
    found_ = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t sample = first + static_cast<std::int64_t>(i);
      if (front_.fresh()) {
        settled_ = sample + settle_;
        filled_ = 0;
      }
      const float* y = front_.step(data + i * m_.order.size());
      if (sample < settled_) continue;
      take_row(y);
      newest_ = sample;
      if (filled_ < window_) continue;
      if (live_from_ < 0) live_from_ = sample - ahead_ + troughs_ + o_.shifts;
      decide();
    }
    return found_;
  }

  // First sample since the last reset whose spikes are told; -1 before it is known.
  std::int64_t live_from() const noexcept { return live_from_; }
  // A spike is told at most this many samples after its own has come.
  std::int64_t hold() const noexcept { return ahead_ + back_ + troughs_ + o_.shifts + 1; }
  std::int64_t overflow() const noexcept { return overflow_; }  // spikes beyond kCapacity
  std::int64_t peaks() const noexcept { return peaks_; }        // looked at since the beginning
  std::int64_t unmatched() const noexcept { return unmatched_; }  // of which no unit was found
  std::size_t channels() const noexcept { return m_.order.size(); }
  std::size_t units() const noexcept { return m_.units; }
  std::span<float> drift() noexcept { return drift_; }  // of each part, in steps between copies
  std::span<std::int64_t> samples() noexcept { return samples_; }
  std::span<std::int32_t> where() noexcept { return where_; }
  std::span<float> amplitude() noexcept { return amplitude_; }

 private:
  static constexpr float kPull = 0.05f;           // back to the copy, a part of adapt_gain
  static constexpr float kHysteresis = 0.7f;      // steps of drift before another copy is used
  static constexpr std::size_t kRescans = 16;     // limit of the option
  static constexpr std::size_t kSlack = 512;  // rows written before those kept are moved back

  void check() const {
    const std::size_t copies = m_.units * m_.positions, size = copies * m_.rows * kWidth;
    const bool sizes = m_.units > 0 && m_.positions % 2 == 1 && m_.rows > 1 && m_.rows <= 1024 &&
                       m_.parts > 0;
    const bool arrays = m_.order.size() == o_.channels && m_.scale.size() == o_.channels &&
                        m_.waveform.size() == size && m_.whiten.size() == m_.units * kWidth * kWidth &&
                        m_.mask.size() == m_.units * kWidth && m_.first.size() == m_.units && m_.trough.size() == m_.units &&
                        m_.prior.size() == m_.units && m_.least.size() == m_.units &&
                        m_.most.size() == m_.units && m_.part.size() == m_.units &&
                        m_.near_at.size() == o_.channels + 1;
    const bool options = o_.threshold > 0 && o_.shifts >= 0 && o_.shifts <= 32 && o_.guard > 0 &&
                         o_.guard <= 256 && o_.reach >= 0 && o_.refractory >= 0 &&
                         o_.rescans > 0 &&
                         o_.rescans <= static_cast<int>(kRescans) && o_.drift_gain >= 0 && o_.drift_gain <= 1 &&
                         o_.adapt_gain >= 0 && o_.adapt_gain <= 1;
    if (!sizes || !arrays || !options || !inside(m_.order, o_.channels) ||
        !inside(m_.trough, m_.rows) || !inside(m_.part, m_.parts) || !inside(m_.near, m_.units) ||
        !inside(m_.first, stride_ - kWidth + 1) || !inside(m_.near_at, m_.near.size() + 1) ||
        !std::is_sorted(m_.near_at.begin(), m_.near_at.end()) || m_.before < 0 ||
        static_cast<std::size_t>(m_.before) >= m_.rows) {
      throw std::invalid_argument("templates that do not fit together");
    }
  }

  static bool inside(const std::vector<std::int32_t>& values, std::size_t below) {
    return std::all_of(values.begin(), values.end(), [below](std::int32_t v) {
      return v >= 0 && static_cast<std::size_t>(v) < below;
    });
  }

  // Row 0 is the sample that is decided; negative ones came before it.
  float* at(int row) noexcept {
    return rows_.data() + static_cast<std::ptrdiff_t>(end_ - 1 - static_cast<std::size_t>(ahead_)) *
                              static_cast<std::ptrdiff_t>(stride_) +
           row * static_cast<std::ptrdiff_t>(stride_);
  }

  void take_row(const float* y) noexcept {
    if (filled_ == 0) end_ = 0;
    if ((end_ + 1) * stride_ > rows_.size()) {
      const std::size_t keep = window_ - 1;
      std::memmove(rows_.data(), rows_.data() + (end_ - keep) * stride_,
                   keep * stride_ * sizeof(float));
      end_ = keep;
    }
    float* row = rows_.data() + end_ * stride_;
    for (std::size_t p = 0; p < m_.order.size(); ++p) row[p] = y[m_.order[p]] * m_.scale[p];
    ++end_;
    filled_ = std::min(filled_ + 1, window_);
  }

  void decide() noexcept {
    const float* row = at(0);
    for (std::size_t p = 0; p < stride_; p += kLanes) {
      bool any = false;
      for (std::size_t k = p; k < p + kLanes; ++k) any |= row[k] < -o_.threshold;
      if (!any) continue;
      for (std::size_t k = p; k < p + kLanes; ++k) {
        if (row[k] < -o_.threshold && lowest(0, static_cast<int>(k))) peak(0, static_cast<int>(k));
      }
    }
  }

  // Whether no other value near row and place is lower; of equal ones the first is the peak.
  bool lowest(int row, int place) noexcept {
    const float value = at(row)[place];
    const int low = std::max(0, place - o_.reach);
    const int high = std::min(static_cast<int>(stride_) - 1, place + o_.reach);
    const int until = std::min(row + o_.guard, ahead_);
    for (int r = row - o_.guard; r <= until; ++r) {
      const float* values = at(r);
      float least = values[low];
      for (int p = low + 1; p <= high; ++p) least = std::min(least, values[p]);
      if (least < value) return false;
      if (least > value || r > row) continue;
      for (int p = low; p <= (r < row ? high : place - 1); ++p) {
        if (values[p] == value) return false;
      }
    }
    return true;
  }

  struct Best {
    float gain = 0, amplitude = 0;
    int unit = -1, row = 0;  // row of the template's first one
  };

  // Explains the peak and those that come to light when its spike is taken away. With every further
  // spike all of them are fitted again, each with the others gone: the first one tried had some of
  // the others in it.
  void peak(int row, int place) noexcept {
    taken_ = 0;
    for (int left = o_.rescans; left > 0; --left) {
      ++peaks_;
      const Best best = match(row, place);
      if (best.unit < 0) {
        ++unmatched_;
        break;
      }
      spikes_[taken_++] = best;
      add(best, -best.amplitude);
      note(best);
      if (taken_ > 1) fit_again();
      if (!next_peak(best, row, place)) break;
    }
    for (std::size_t i = 0; i < taken_; ++i) tell(spikes_[i]);
    if (o_.adapt_gain > 0) {
      for (std::size_t i = 0; i < taken_; ++i) learn(spikes_[i]);
    }
  }

  void fit_again() noexcept {
    for (std::size_t i = 0; i < taken_; ++i) {
      const Best last = spikes_[i];
      add(last, last.amplitude);
      Best best;
      for (int shift = -o_.shifts; shift <= o_.shifts; ++shift) {
        const int begin = last.row + shift;
        if (fits(begin)) consider(best, last.unit, begin);
      }
      if (best.unit < 0) best = last;
      add(best, -best.amplitude);
      note(best);
      spikes_[i] = best;
    }
  }

  // Whether a template whose first row is this one lies within the rows kept, and would be told in
  // the time that it may be held back.
  bool fits(int begin) const noexcept {
    const int sample = begin + m_.before, last = begin + static_cast<int>(m_.rows) - 1;
    return begin >= -kept_ && last <= ahead_ && sample >= -(back_ + troughs_ + o_.shifts);
  }

  std::int64_t sample_of(const Best& best) const noexcept {
    return newest_ - ahead_ + best.row + m_.before;
  }

  void note(const Best& best) noexcept { last_[best.unit] = sample_of(best); }

  // The deepest peak in what was hidden by a spike and was decided before.
  bool next_peak(const Best& best, int& row, int& place) noexcept {
    const int first = m_.first[best.unit];
    const int last = first + static_cast<int>(kWidth);
    float deepest = -o_.threshold;
    bool found = false;
    int found_row = 0, found_place = 0;
    for (int r = -back_; r <= 0; ++r) {
      const float* values = at(r);
      for (int p = first; p < last; ++p) {
        if (values[p] < deepest && lowest(r, p)) {
          deepest = values[p];
          found = true;
          found_row = r;
          found_place = p;
        }
      }
    }
    row = found_row;
    place = found_place;
    return found;
  }

  void start_templates() {
    shape_.resize(m_.units * size_);
    filter_.resize(m_.units * size_);
    norm_.resize(m_.units);
    copy_norm_.resize(m_.units * m_.positions);
    position_.assign(m_.units, static_cast<int>(m_.positions / 2));
    for (std::size_t u = 0; u < m_.units; ++u) {
      for (std::size_t p = 0; p < m_.positions; ++p) {
        std::copy_n(copy(u, p), size_, shape(u));
        refresh(u);
        copy_norm_[u * m_.positions + p] = norm_[u];
      }
      std::copy_n(copy(u, m_.positions / 2), size_, shape(u));
      refresh(u);
    }
  }

  float* shape(std::size_t unit) noexcept { return shape_.data() + unit * size_; }
  float* filter(std::size_t unit) noexcept { return filter_.data() + unit * size_; }
  const float* copy(std::size_t unit, std::size_t position) const noexcept {
    return m_.waveform.data() + (unit * m_.positions + position) * size_;
  }

  // What follows from a unit's template.
  void refresh(std::size_t unit) noexcept {
    whitened(unit, shape(unit), kWidth, filter(unit));
    norm_[unit] = product(shape(unit), kWidth, filter(unit));
  }

  // Rows of kWidth channels, `stride` apart, times the inverse of the noise's covariance there.
  void whitened(std::size_t unit, const float* rows, std::size_t stride, float* to) noexcept {
    const float* inverse = m_.whiten.data() + unit * kWidth * kWidth;
    for (std::size_t r = 0; r < m_.rows; ++r, rows += stride, to += kWidth) {
      float sums[kWidth] = {};
      for (std::size_t k = 0; k < kWidth; ++k) {
        const float x = rows[k];
        const float* from = inverse + k * kWidth;
        for (std::size_t p = 0; p < kWidth; ++p) sums[p] += x * from[p];
      }
      std::copy_n(sums, kWidth, to);
    }
  }

  float product(const float* x, std::size_t stride, const float* f) const noexcept {
    float sums[kWidth] = {};
    for (std::size_t r = 0; r < m_.rows; ++r, x += stride, f += kWidth) {
      for (std::size_t p = 0; p < kWidth; ++p) sums[p] += x[p] * f[p];
    }
    float sum = 0;
    for (const float s : sums) sum += s;
    return sum;
  }

  // Goes over to the copy that the drift asks for, keeping what the template has learned.
  void move(std::size_t unit) noexcept {
    const int middle = static_cast<int>(m_.positions / 2);
    const float drift = drift_[m_.part[unit]];
    const int last = position_[unit];
    if (std::fabs(drift - static_cast<float>(last - middle)) < kHysteresis) return;
    const int now = middle + std::clamp(static_cast<int>(std::lround(drift)), -middle, middle);
    if (now == last) return;
    const float* from = copy(unit, static_cast<std::size_t>(last));
    const float* to = copy(unit, static_cast<std::size_t>(now));
    float* e = shape(unit);
    for (std::size_t i = 0; i < size_; ++i) e[i] += to[i] - from[i];
    position_[unit] = now;
    refresh(unit);
  }

  Best match(int row, int place) noexcept {
    Best best;
    const std::int64_t sample = newest_ - ahead_ + row;
    const float depth = at(row)[place];
    for (std::int32_t i = m_.near_at[place]; i < m_.near_at[place + 1]; ++i) {
      const int unit = m_.near[i];
      move(static_cast<std::size_t>(unit));
      const int inside_at = place - m_.first[unit];
      if (inside_at < 0 || inside_at >= static_cast<int>(kWidth)) continue;
      const float expected = shape(static_cast<std::size_t>(
          unit))[m_.trough[unit] * static_cast<int>(kWidth) + inside_at];
      // Too small or too large by far at the peak: not worth a closer look.
      if (depth > 0.4f * m_.least[unit] * expected || depth < 2.5f * m_.most[unit] * expected) {
        continue;
      }
      for (int shift = -o_.shifts; shift <= o_.shifts; ++shift) {
        const int begin = row - m_.trough[unit] + shift;
        const std::int64_t when = sample - m_.trough[unit] + m_.before + shift;
        if (!fits(begin)) continue;
        if (std::llabs(when - last_[unit]) < o_.refractory) continue;
        consider(best, unit, begin);
      }
    }
    return best;
  }

  float gain_of(float c, int unit, float n) const noexcept {
    const float prior = m_.prior[unit], with = c + prior;
    return with * with / (n + prior) - prior;
  }

  void consider(Best& best, int unit, int begin) noexcept {
    const auto u = static_cast<std::size_t>(unit);
    const float fit = product(at(begin) + m_.first[u], stride_, filter(u));
    const float n = norm_[u], prior = m_.prior[u], raw = fit / n;
    if (raw < m_.least[u] || raw > m_.most[u]) return;
    const float gain = gain_of(fit, unit, n);
    if (gain < o_.least_share * n || gain <= best.gain) return;
    best = {gain, (fit + prior) / (n + prior), unit, begin};
  }

  // Adds a spike of this amplitude to the rows.
  void add(const Best& best, float amplitude) noexcept {
    const auto u = static_cast<std::size_t>(best.unit);
    const float* w = shape(u);
    float* x = at(best.row) + m_.first[u];
    for (std::size_t r = 0; r < m_.rows; ++r, x += stride_, w += kWidth) {
      for (std::size_t p = 0; p < kWidth; ++p) x[p] += amplitude * w[p];
    }
  }

  void tell(const Best& best) noexcept {
    if (o_.drift_gain > 0 && m_.positions > 2) {
      add(best, best.amplitude);
      follow(best);
      add(best, -best.amplitude);
    }
    if (found_ == kCapacity) {
      ++overflow_;
      return;
    }
    samples_[found_] = sample_of(best);
    where_[found_] = best.unit;
    amplitude_[found_++] = best.amplitude;
  }

  // Of the copy in use and its neighbours the gain is taken as a parabola; its top is where the unit
  // is. What the template has learned is left out of the differences between them.
  void follow(const Best& best) noexcept {
    const auto u = static_cast<std::size_t>(best.unit);
    const float* rows = at(best.row) + m_.first[u];
    const auto position = static_cast<std::size_t>(position_[u]);
    if (position == 0 || position + 1 == m_.positions) return turn_back(u);
    whitened(u, rows, stride_, white_.data());
    const float fit = product(shape(u), kWidth, white_.data());
    const float at_copy = product(copy(u, position), kWidth, white_.data());
    const float* norms = copy_norm_.data() + u * m_.positions + position;
    float gains[3];
    for (int i = -1; i <= 1; ++i) {
      const float here = product(copy(u, position + static_cast<std::size_t>(i)), kWidth, white_.data());
      gains[i + 1] = gain_of(fit + here - at_copy, best.unit, norm_[u] * norms[i] / norms[0]);
    }
    const float bend = gains[0] - 2 * gains[1] + gains[2];
    if (!(bend < 0)) return;
    const float top = std::clamp(0.5f * (gains[0] - gains[2]) / bend, -1.5f, 1.5f);
    const float place = static_cast<float>(position_[u] - static_cast<int>(m_.positions / 2)) + top;
    float& drift = drift_[m_.part[u]];
    drift += o_.drift_gain * (place - drift);
  }

  // At the last copy nobody can say how far beyond it the unit is.
  void turn_back(std::size_t u) noexcept {
    const float middle = static_cast<float>(m_.positions / 2);
    float& drift = drift_[m_.part[u]];
    drift = std::clamp(drift, 1 - middle, middle - 1);
  }

  void learn(const Best& best) noexcept {
    const auto u = static_cast<std::size_t>(best.unit);
    const float* residual = at(best.row) + m_.first[u];
    const float* mask = m_.mask.data() + u * kWidth;
    // What a spike adds to the template's noise must stay small beside the template itself.
    const float values = static_cast<float>(m_.rows) * std::accumulate(mask, mask + kWidth, 0.0f);
    const float gain = o_.adapt_gain * std::min(1.0f, norm_[u] / values), pull = kPull * gain;
    const float* origin = copy(u, static_cast<std::size_t>(position_[u]));
    float* e = shape(u);
    for (std::size_t r = 0; r < m_.rows; ++r) {
      for (std::size_t p = 0; p < kWidth; ++p) {
        e[p] += gain * mask[p] * residual[p] + pull * (origin[p] - e[p]);
      }
      e += kWidth;
      origin += kWidth;
      residual += stride_;
    }
    refresh(u);
  }

  MatcherOptions o_;
  MatcherModel m_;
  std::size_t stride_;
  FrontEnd front_;
  std::int64_t settle_;
  int ahead_ = 0, back_ = 0, kept_ = 0;  // rows after the decided one, looked back to, and kept
  int troughs_ = 0, most_before_ = 0, most_after_ = 0;
  std::array<Best, kRescans> spikes_;  // taken away at the peak at hand
  std::size_t taken_ = 0, size_ = 0, window_ = 0, filled_ = 0, end_ = 0, found_ = 0;
  std::int64_t newest_ = 0, settled_ = 0, live_from_ = -1;
  std::int64_t overflow_ = 0, peaks_ = 0, unmatched_ = 0;
  std::vector<float> rows_, drift_, amplitude_, white_;
  std::vector<float> shape_, filter_, norm_, copy_norm_;  // of templates as they are now; of copies
  std::vector<int> position_;
  std::vector<std::int64_t> last_, samples_;
  std::vector<std::int32_t> where_;
};

}  // namespace neds
