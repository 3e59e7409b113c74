// Python's view of the raw AP band: threshold crossings.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "buffers.hpp"
#include "detector.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> view(std::span<T> values) {
  return {values.data(), {values.size()}};
}

std::size_t push(ThresholdDetector& self, nb::handle data, std::int64_t first) {
  const Bytes bytes(data);
  const std::size_t row = 2 * self.channels();
  if (bytes.size() % row != 0 || reinterpret_cast<std::uintptr_t>(bytes.data()) % 2 != 0) {
    throw nb::value_error("data must be whole samples of int16");
  }
  nb::gil_scoped_release release;
  return self.push(reinterpret_cast<const std::int16_t*>(bytes.data()), bytes.size() / row, first);
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
      .def("push", &push, "data"_a, "first"_a)
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
}
