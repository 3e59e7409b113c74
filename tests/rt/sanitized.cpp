// The step, the detector and the MessagePack reader under sanitizers, without Python.
// Usage: sanitized SEED ROUNDS; prints what was reached, exits 1 when a result is not what it must be.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "detector.hpp"
#include "msgpack.hpp"
#include "step.hpp"

using namespace neds;

namespace {

std::mt19937_64 rng;

std::int64_t pick(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}
int size(std::int64_t low, std::int64_t high) { return static_cast<int>(pick(low, high)); }

// Owns what a TensorMap looks at.
struct Weights {
  std::vector<std::vector<float>> data;
  TensorMap map;

  void add(const std::string& name, std::vector<std::size_t> shape) {
    std::size_t n = 1;
    for (const std::size_t side : shape) n *= side;
    std::vector<float>& values = data.emplace_back(n);
    for (float& value : values) value = std::normal_distribution<float>(0, 0.2F)(rng);
    map.insert_or_assign(name, TensorView{values.data(), std::move(shape)});
  }
};

Weights weights_of(const StepShape& s, int n_outputs) {
  const auto hidden = static_cast<std::size_t>(s.hidden), mlp = static_cast<std::size_t>(s.mlp);
  Weights made;
  made.data.reserve(4096);
  made.add("input.weight", {static_cast<std::size_t>(s.units), hidden});
  for (const char* name : {"input.bias", "input.token", "input.lost", "norm.weight", "norm.bias"})
    made.add(name, {hidden});
  made.add("head.weight", {static_cast<std::size_t>(n_outputs), hidden});
  made.add("head.bias", {static_cast<std::size_t>(n_outputs)});
  if (s.conv > 0) {
    made.add("conv.weight", {static_cast<std::size_t>(s.conv), hidden});
    made.add("conv.bias", {hidden});
  }
  if (s.recurrent) {
    for (const char* end : {"ih", "hh"}) {
      made.add(std::string("gru.weight_") + end, {3 * hidden, hidden});
      made.add(std::string("gru.bias_") + end, {3 * hidden});
    }
  }
  for (int layer = 0; layer < s.layers; ++layer) {
    const std::string at = "layers." + std::to_string(layer) + ".";
    for (const char* norm : {"norm1", "norm2"}) {
      made.add(at + norm + ".weight", {hidden});
      made.add(at + norm + ".bias", {hidden});
    }
    const std::vector<std::pair<const char*, std::pair<std::size_t, std::size_t>>> linears = {
        {"qkv", {3 * hidden, hidden}}, {"out", {hidden, hidden}}, {"up", {mlp, hidden}},
        {"down", {hidden, mlp}}};
    for (const auto& [name, sides] : linears) {
      made.add(at + name + ".weight", {sides.first, sides.second});
      made.add(at + name + ".bias", {sides.first});
    }
  }
  return made;
}

// A model of random sizes through bins, lost bins, long gaps, rehearsals and restarts.
bool try_step(std::int64_t& steps) {
  const int heads = size(1, 3);
  const StepShape shape{size(1, 40), 2 * heads * size(1, 12), size(1, 2), heads, size(1, 40),
                        size(1, 9), size(0, 4), pick(0, 1) == 1, 10000.0};
  const std::vector<ModalityShape> modalities = {{size(1, 3), false}, {size(2, 4), true}};
  const int n_outputs = modalities[0].n_outputs + modalities[1].n_outputs;
  const Weights weights = weights_of(shape, n_outputs);
  for (const char* precision : precision_names) {
    for (const std::string& isa : supported_isas()) {
      StepEngine engine(shape, modalities, weights.map, precision, isa);
      std::vector<std::uint16_t> counts(static_cast<std::size_t>(shape.units));
      for (int bin = 0; bin < 2 * shape.window + 3; ++bin, ++steps) {
        for (std::uint16_t& count : counts) {
          count = static_cast<std::uint16_t>(pick(0, 9) == 0 ? pick(0, 65535) : pick(0, 3));
        }
        engine.step(pick(0, 9) == 0 ? nullptr : counts.data());
        if (pick(0, 9) == 0) engine.warm();
        if (pick(0, 19) == 0) engine.skip(pick(0, 5000));
        if (pick(0, 19) == 0) engine.reset();
        for (int i = 0; i < n_outputs; ++i) {
          if (!std::isfinite(engine.outputs()[i])) return false;
        }
      }
    }
  }
  return true;
}

// Whatever the bytes are, a reader takes values or says no, and ends.
std::int64_t try_reader() {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(pick(0, 300)));
  for (std::uint8_t& byte : bytes) {
    byte = static_cast<std::uint8_t>(pick(0, 2) == 0 ? pick(0xc0, 0xdf) : pick(0, 255));
  }
  Reader in(bytes.data(), bytes.size());
  std::int64_t taken = 0;
  for (int tries = 0; tries < 1000 && !in.finished(); ++tries) {
    std::uint64_t n = 0;
    std::int64_t whole = 0;
    double number = 0;
    std::string_view text;
    switch (pick(0, 3)) {
      case 0: taken += in.array(n); break;
      case 1: taken += in.integer(whole); break;
      case 2: taken += in.number(number); break;
      default: taken += in.text(text);
    }
  }
  return taken;
}

// Noise with outliers at the ends of int16, in blocks of any length, with jumps and restarts.
std::int64_t try_detector() {
  DetectorOptions options;
  options.channels = static_cast<std::size_t>(pick(1, 20));
  options.fs = 1000;
  options.highpass_hz = 100;
  options.reference = pick(0, 1) == 1;
  ThresholdDetector detector(options);
  std::int64_t crossings = 0, first = pick(-1000, 1'000'000);
  for (int block = 0; block < 40; ++block) {
    const auto n = static_cast<std::size_t>(pick(0, 200));
    std::vector<std::int16_t> data(n * options.channels);
    for (std::int16_t& value : data) {
      value = static_cast<std::int16_t>(pick(0, 99) == 0 ? pick(INT16_MIN, INT16_MAX) : pick(-9, 9));
    }
    const std::size_t found = detector.push(data.data(), n, first);
    for (std::size_t i = 0; i < found; ++i) {
      const std::int64_t at = detector.samples()[i] - first;
      const bool inside = at >= 0 && at < static_cast<std::int64_t>(n);
      if (!inside || detector.where()[i] >= static_cast<std::int32_t>(options.channels)) std::abort();
    }
    crossings += static_cast<std::int64_t>(found);
    first += static_cast<std::int64_t>(n);
    if (pick(0, 19) == 0) detector.reset(), first += pick(0, 5000);
  }
  return crossings;
}

}  // namespace

int main(int argc, char** argv) {
  rng.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1);
  const std::int64_t rounds = argc > 2 ? std::atoll(argv[2]) : 10;
  std::int64_t steps = 0, values = 0, crossings = 0;
  for (std::int64_t i = 0; i < rounds; ++i) {
    if (!try_step(steps)) return std::puts("an output is not finite"), 1;
    for (int k = 0; k < 1000; ++k) values += try_reader();
    crossings += try_detector();
  }
  std::printf("steps %" PRId64 " values %" PRId64 " crossings %" PRId64 "\n", steps, values,
              crossings);
  return steps > 0 && values > 0 && crossings > 0 ? 0 : 1;
}
