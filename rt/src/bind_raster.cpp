// Python's view of the raster.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "raster.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

// (bin numbers, their reason codes, cells a bin after the other), oldest first.
nb::tuple recent(const Raster& self) {
  std::vector<Raster::Bin> bins(self.bins());
  std::vector<std::uint8_t> cells(self.bins() * self.rows());
  const std::size_t n = self.copy(bins.data(), cells.data());
  nb::list numbers, reasons;
  for (std::size_t i = 0; i < n; ++i) {
    numbers.append(bins[i].bin);
    reasons.append(bins[i].reason);
  }
  return nb::make_tuple(numbers, reasons, nb::bytes(cells.data(), n * self.rows()));
}

}  // namespace

void bind_raster(nb::module_& m) {
  nb::class_<Raster>(m, "Raster", "What viewers may see of a running stream.")
      .def(nb::init<std::size_t, std::size_t, std::size_t>(), "bins"_a, "n_units"_a, "rows"_a)
      .def(
          "add",
          [](Raster& self, std::int64_t bin, const std::vector<std::uint16_t>& counts, int reason) {
            if (counts.size() != self.n_units()) throw nb::value_error("counts of all units");
            self.add(bin, counts, reason);
          },
          "bin"_a, "counts"_a, "reason"_a)
      .def("said", &Raster::said, "reason"_a, "now_ns"_a)
      .def("recent", &recent)
      .def_prop_ro("word", &Raster::word)
      .def_prop_ro("rows", &Raster::rows);
}
