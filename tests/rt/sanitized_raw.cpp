// Front end and template matcher under sanitizers, without Python.
// Usage: sanitized_raw SEED ROUNDS; prints what was reached, exits 1 when a result is not what it must be.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "matcher.hpp"

using namespace neds;

namespace {

constexpr std::size_t kWidth = MatcherModel::kWidth;
std::mt19937_64 rng;
std::int64_t spikes = 0, refused = 0, rows = 0;

std::int64_t pick(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}
float real(double low, double high) {
  return static_cast<float>(std::uniform_real_distribution(low, high)(rng));
}
bool chance(int per_mille) { return pick(1, 1000) <= per_mille; }

[[noreturn]] void fail(const char* why) {
  std::puts(why);
  std::exit(1);
}

// Noise with outliers at the ends of int16, and runs of equal values.
std::vector<std::int16_t> signal(std::size_t n) {
  std::vector<std::int16_t> values(n);
  for (std::int16_t& value : values) {
    value = static_cast<std::int16_t>(chance(3) ? pick(INT16_MIN, INT16_MAX) : pick(-20, 20));
  }
  return values;
}

void try_front() {
  const auto channels = static_cast<std::size_t>(pick(1, 70));
  FrontEnd front(channels, 1000, real(1, 499), chance(500));
  for (int row = 0; row < 200; ++row, ++rows) {
    const std::vector<std::int16_t> x = signal(channels);
    const float* y = front.step(x.data());
    for (std::size_t c = 0; c < channels; ++c) {
      if (!std::isfinite(y[c])) fail("a row is not finite");
    }
    if (chance(10)) front.reset();
  }
}

MatcherModel model(std::size_t channels) {
  MatcherModel m;
  const std::size_t stride = std::max(kWidth, (channels + 7) / 8 * 8);
  m.units = static_cast<std::size_t>(pick(1, 5)), m.positions = static_cast<std::size_t>(2 * pick(0, 3) + 1);
  m.rows = static_cast<std::size_t>(pick(2, 30)), m.parts = static_cast<std::size_t>(pick(1, 3));
  m.before = static_cast<std::int32_t>(pick(0, static_cast<std::int64_t>(m.rows) - 1));
  m.waveform.resize(m.units * m.positions * m.rows * kWidth);
  for (float& w : m.waveform) w = chance(100) ? real(-12, 3) : real(-1, 1);
  m.whiten.resize(m.units * kWidth * kWidth);
  m.mask.resize(m.units * kWidth);
  for (float& x : m.mask) x = chance(500) ? 1 : 0;  // none at all, perhaps
  m.scale.resize(channels);
  for (float& x : m.scale) x = chance(100) ? 0 : real(0.05, 0.3);
  m.order.resize(channels);
  std::iota(m.order.begin(), m.order.end(), 0);
  std::shuffle(m.order.begin(), m.order.end(), rng);
  for (std::size_t u = 0; u < m.units; ++u) {
    for (std::size_t k = 0; k < kWidth; ++k) m.whiten[(u * kWidth + k) * kWidth + k] = 1;
    m.first.push_back(static_cast<std::int32_t>(pick(0, static_cast<std::int64_t>(stride - kWidth))));
    m.trough.push_back(static_cast<std::int32_t>(pick(0, static_cast<std::int64_t>(m.rows) - 1)));
    m.part.push_back(static_cast<std::int32_t>(pick(0, static_cast<std::int64_t>(m.parts) - 1)));
    m.prior.push_back(real(4, 400)), m.least.push_back(real(0.01, 0.5)), m.most.push_back(real(1, 5));
  }
  for (std::size_t place = 0; place < channels; ++place) {
    m.near_at.push_back(static_cast<std::int32_t>(m.near.size()));
    for (std::int64_t n = pick(0, 3); n > 0; --n) {
      m.near.push_back(static_cast<std::int32_t>(pick(0, static_cast<std::int64_t>(m.units) - 1)));
    }
  }
  m.near_at.push_back(static_cast<std::int32_t>(m.near.size()));
  return m;
}

// Something about it that does not fit, which has to be refused and not used.
void spoil(MatcherModel& m) {
  std::vector<std::int32_t>* const whole[] = {&m.order, &m.first, &m.trough, &m.part, &m.near_at};
  std::vector<float>* const part[] = {&m.waveform, &m.whiten, &m.mask, &m.scale, &m.prior, &m.least};
  if (chance(500)) {
    auto& values = *whole[pick(0, 4)];
    values[static_cast<std::size_t>(pick(0, static_cast<std::int64_t>(values.size()) - 1))] =
        chance(500) ? -1 : 1 << 30;
  } else {
    part[pick(0, 5)]->pop_back();
  }
}

MatcherOptions options(std::size_t channels) {
  MatcherOptions o;
  o.channels = channels, o.fs = 1000, o.highpass_hz = real(1, 400), o.reference = chance(500);
  o.threshold = real(0.5, 3), o.least_share = real(0, 0.5);
  o.shifts = static_cast<int>(pick(0, 32)), o.guard = static_cast<int>(pick(1, 60));
  o.reach = static_cast<int>(pick(0, 80)), o.refractory = static_cast<int>(pick(0, 50));
  o.rescans = static_cast<int>(pick(1, 16));
  o.drift_gain = chance(500) ? real(0, 1) : 0, o.adapt_gain = chance(500) ? real(0, 1) : 0;
  return o;
}

// What a block has told, in whatever order.
void check(TemplateMatcher& matcher, std::size_t found, std::int64_t first, std::int64_t newest) {
  for (std::size_t i = 0; i < found; ++i) {
    const std::int64_t sample = matcher.samples()[i];
    if (sample < first - matcher.hold() || sample > newest) fail("a spike outside its block");
    const std::int32_t unit = matcher.where()[i];
    if (unit < 0 || static_cast<std::size_t>(unit) >= matcher.units()) fail("a spike of nobody");
  }
}

void try_matcher() {
  const auto channels = static_cast<std::size_t>(pick(1, 60));
  const MatcherOptions o = options(channels);
  MatcherModel m = model(channels);
  MatcherModel spoiled = m;
  spoil(spoiled);
  try {
    TemplateMatcher never(o, std::move(spoiled));
    fail("a model that does not fit was taken");
  } catch (const std::invalid_argument&) {
    ++refused;
  }
  TemplateMatcher matcher(o, std::move(m));
  std::int64_t first = pick(-1'000'000'000'000, 1'000'000'000'000);
  for (int block = 0; block < 30; ++block) {
    const auto n = static_cast<std::size_t>(pick(0, 100));
    const std::vector<std::int16_t> data = signal(n * channels);
    const std::size_t found = matcher.push(data.data(), n, first);
    check(matcher, found, first, first + static_cast<std::int64_t>(n));
    spikes += static_cast<std::int64_t>(found);
    first += static_cast<std::int64_t>(n);
    if (chance(50)) matcher.reset(), first += pick(0, 5000);
  }
  for (const float drift : matcher.drift()) {
    if (!std::isfinite(drift)) fail("the drift is not finite");
  }
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const std::int64_t rounds = argc > 2 ? std::atoll(argv[2]) : 10;
  for (std::int64_t i = 0; i < rounds; ++i) {
    try_front();
    try_matcher();
  }
  std::printf("rows %" PRId64 " spikes %" PRId64 " refused %" PRId64 "\n", rows, spikes, refused);
}
