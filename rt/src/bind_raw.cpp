// Python's view of the raw AP band: threshold crossings, and spikes of known units.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "buffers.hpp"
#include "detector.hpp"
#include "front_end.hpp"
#include "matcher.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> view(std::span<T> values) {
  return {values.data(), {values.size()}};
}

// Whole samples of so many channels.
struct Samples {
  Samples(const Bytes& bytes, std::size_t channels)
      : data(reinterpret_cast<const std::int16_t*>(bytes.data())), n(bytes.size() / (2 * channels)) {
    if (bytes.size() % (2 * channels) != 0 || reinterpret_cast<std::uintptr_t>(data) % 2 != 0) {
      throw nb::value_error("data must be whole samples of int16");
    }
  }
  const std::int16_t* data;
  std::size_t n;
};

template <typename Core>
std::size_t push(Core& self, nb::handle data, std::int64_t first) {
  const Bytes bytes(data);
  const Samples samples(bytes, self.channels());
  nb::gil_scoped_release release;
  return self.push(samples.data, samples.n, first);
}

// Rows as the matcher sees them, but in the channels' own order and units.
void process(FrontEnd& self, nb::handle data, nb::ndarray<float, nb::c_contig, nb::device::cpu> into) {
  const Bytes bytes(data);
  const Samples samples(bytes, self.channels());
  if (into.size() != samples.n * self.channels()) {
    throw nb::value_error("into must have a float32 for every value of data");
  }
  float* to = into.data();
  nb::gil_scoped_release release;
  for (std::size_t i = 0; i < samples.n; ++i, to += self.channels()) {
    std::memcpy(to, self.step(samples.data + i * self.channels()), self.channels() * sizeof(float));
  }
}

template <typename T>
std::vector<T> values(nb::dict arrays, const char* name) {
  const auto array = nb::cast<nb::ndarray<const T, nb::c_contig, nb::device::cpu>>(arrays[name]);
  return {array.data(), array.data() + array.size()};
}

std::size_t size(nb::dict arrays, const char* name) {
  return nb::cast<std::size_t>(arrays[name]);
}

MatcherModel model_of(nb::dict a) {
  MatcherModel m;
  m.units = size(a, "units");
  m.positions = size(a, "positions");
  m.rows = size(a, "rows");
  m.parts = size(a, "parts");
  m.before = static_cast<std::int32_t>(size(a, "before"));
  m.waveform = values<float>(a, "waveform");
  m.whiten = values<float>(a, "whiten");
  m.mask = values<float>(a, "mask");
  m.scale = values<float>(a, "scale");
  m.prior = values<float>(a, "prior");
  m.least = values<float>(a, "least");
  m.most = values<float>(a, "most");
  m.order = values<std::int32_t>(a, "order");
  m.first = values<std::int32_t>(a, "first");
  m.trough = values<std::int32_t>(a, "trough");
  m.part = values<std::int32_t>(a, "part");
  m.near = values<std::int32_t>(a, "near");
  m.near_at = values<std::int32_t>(a, "near_at");
  return m;
}

}  // namespace

void bind_raw(nb::module_& m) {
  nb::class_<ThresholdDetector>(m, "ThresholdDetector", "Raw AP band -> crossings by channel.")
      .def(
          "__init__",
          [](ThresholdDetector* self, std::size_t channels, double fs, double highpass_hz,
             double threshold, double refractory_s, bool reference) {
            new (self) ThresholdDetector(DetectorOptions{channels, fs, highpass_hz, threshold,
                                                         refractory_s, reference});
          },
          "channels"_a, "fs"_a, nb::kw_only(), "highpass_hz"_a = 300.0, "threshold"_a = 5.0,
          "refractory_s"_a = 0.001, "reference"_a = true)
      .def("push", &push<ThresholdDetector>, "data"_a, "first"_a)
      .def("reset", &ThresholdDetector::reset)
      .def_prop_ro("live_from", &ThresholdDetector::live_from)
      .def_prop_ro("overflow", &ThresholdDetector::overflow)
      .def_prop_ro(
          "noise", [](ThresholdDetector& self) { return view(self.noise()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "samples", [](ThresholdDetector& self) { return view(self.samples()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "where", [](ThresholdDetector& self) { return view(self.where()); },
          nb::rv_policy::reference_internal);

  nb::class_<FrontEnd>(m, "FrontEnd", "Raw AP band -> high-passed and referenced rows.")
      .def(nb::init<std::size_t, double, double, bool>(), "channels"_a, "fs"_a, "highpass_hz"_a,
           "reference"_a)
      .def("process", &process, "data"_a, "into"_a)
      .def("reset", &FrontEnd::reset);

  nb::class_<TemplateMatcher>(m, "TemplateMatcher", "Raw AP band -> spikes of known units.")
      .def(
          "__init__",
          [](TemplateMatcher* self, std::size_t channels, double fs, nb::dict model,
             double highpass_hz, bool reference, float threshold, float least_share, int shifts,
             int guard, int reach, int refractory, int rescans, float drift_gain,
             float adapt_gain) {
            new (self) TemplateMatcher(
                MatcherOptions{channels, fs, highpass_hz, reference, threshold, least_share, shifts,
                               guard, reach, refractory, rescans, drift_gain, adapt_gain},
                model_of(model));
          },
          "channels"_a, "fs"_a, "model"_a, nb::kw_only(), "highpass_hz"_a, "reference"_a,
          "threshold"_a, "least_share"_a, "shifts"_a, "guard"_a, "reach"_a, "refractory"_a,
          "rescans"_a, "drift_gain"_a, "adapt_gain"_a)
      .def("push", &push<TemplateMatcher>, "data"_a, "first"_a)
      .def("reset", &TemplateMatcher::reset)
      .def_prop_ro("live_from", &TemplateMatcher::live_from)
      .def_prop_ro("hold", &TemplateMatcher::hold)
      .def_prop_ro("overflow", &TemplateMatcher::overflow)
      .def_prop_ro("peaks", &TemplateMatcher::peaks)
      .def_prop_ro("unmatched", &TemplateMatcher::unmatched)
      .def_prop_ro(
          "drift", [](TemplateMatcher& self) { return view(self.drift()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "samples", [](TemplateMatcher& self) { return view(self.samples()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "where", [](TemplateMatcher& self) { return view(self.where()); },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "amplitude", [](TemplateMatcher& self) { return view(self.amplitude()); },
          nb::rv_policy::reference_internal);
}
