// Python's view of what watches the spikes themselves.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>

#include "buffers.hpp"
#include "health.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

std::vector<float> vector(const nb::dict& arrays, const char* name) {
  using Array = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
  const auto array = nb::cast<Array>(arrays[name]);
  return {array.data(), array.data() + array.size()};
}

void make(Health* self, const nb::dict& arrays, std::size_t hidden, const nb::dict& numbers,
          bool drift_invalidates) {
  HealthSpec spec;
  const auto number = [&](const char* name) { return nb::cast<double>(numbers[name]); };
  spec.rate = vector(arrays, "rate");
  spec.rate_sd = vector(arrays, "rate.sd");
  spec.gain = vector(arrays, "gain");
  spec.gain_sd = vector(arrays, "gain.sd");
  spec.quiet = vector(arrays, "quiet");
  spec.ceiling = vector(arrays, "ceiling");
  spec.weight = vector(arrays, "forecast.weight");
  spec.bias = vector(arrays, "forecast.bias");
  spec.smooth_bins = number("smooth_bins");
  spec.burst_bins = number("burst_bins");
  spec.firing_limit = number("firing_limit");
  spec.likelihood_limit = number("likelihood_limit");
  spec.silent_limit = number("silent_limit");
  spec.saturated_limit = number("saturated_limit");
  new (self) Health(std::move(spec), hidden, drift_invalidates);
}

void observe(Health& self, nb::handle counts, nb::handle state) {
  const Bytes bytes(counts);
  if (bytes.size() != 2 * self.n_units()) throw nb::value_error("counts must be (units,) uint16");
  const auto* values = reinterpret_cast<const std::uint16_t*>(bytes.data());
  if (state.is_none()) {
    self.observe(values, nullptr);
    return;
  }
  const Floats floats(state, self.hidden());
  self.observe(values, floats.data());
}

template <class T>
auto view(std::span<T> values) {
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(values.data(), {values.size()});
}

}  // namespace

void bind_health(nb::module_& m) {
  nb::class_<Health>(m, "Health", "Whether spikes are what they were in training.")
      .def("__init__", &make, "arrays"_a, "hidden"_a, "numbers"_a, "drift_invalidates"_a = true)
      .def("reset", &Health::reset)
      .def("skip", &Health::skip)
      .def("observe", &observe, "counts"_a, "state"_a.none())
      .def_prop_ro("reason", [](const Health& self) { return int{self.reason()}; })
      .def_prop_ro("gauges", [](Health& self) { return view(self.gauges()); },
                   nb::rv_policy::reference_internal)
      .def_prop_ro("smooth", [](Health& self) { return view(self.smooth()); },
                   nb::rv_policy::reference_internal)
      .def_prop_ro("gained", [](Health& self) { return view(self.gained()); },
                   nb::rv_policy::reference_internal);
  nb::list names;
  for (const char* name : kHealthNames) names.append(name);
  m.attr("HEALTH") = nb::tuple(names);
}
