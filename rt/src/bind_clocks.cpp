// Python's view of the clock map: frames in, frames in the reference's clock out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "buffers.hpp"
#include "clock_map.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

// The memory stays the map's: a view is good until the next frame is taken.
nb::object view(std::span<const std::uint8_t> bytes) {
  auto* data = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));
  return nb::steal(PyMemoryView_FromMemory(data, static_cast<Py_ssize_t>(bytes.size()), PyBUF_READ));
}

}  // namespace

void bind_clocks(nb::module_& m) {
  nb::class_<ClockMap>(m, "ClockMap", "Frames of many probes, in the first one's sample clock.")
      .def(nb::init<const std::vector<std::string>&>(), "streams"_a)
      .def(
          "take",
          [](ClockMap& self, nb::handle header, nb::handle payload, std::int64_t recv_ns) {
            const Bytes head(header), body(payload);
            return static_cast<int>(self.take(head.all(), body.all(), recv_ns));
          },
          "header"_a, "payload"_a, "recv_ns"_a)
      .def("header", [](const ClockMap& self) { return view(self.header()); })
      .def("payload", [](const ClockMap& self) { return view(self.payload()); })
      .def("know",
           [](ClockMap& self, std::size_t stream, std::int64_t session, std::int64_t reference,
              std::int64_t from, double to, double rate) {
             self.know(stream, session, reference, {from, to, rate});
           },
           "stream"_a, "session"_a, "reference"_a, "from_sample"_a, "to_sample"_a, "rate"_a)
      .def("fs", &ClockMap::fs, "stream"_a)
      .def_prop_ro("held", &ClockMap::held)
      .def("next", [](ClockMap& self) -> nb::object {
        ClockMap::Pair pair;
        if (!self.next(pair)) return nb::none();
        return nb::make_tuple(pair.stream, pair.session, pair.watermark, pair.recv_ns);
      });
  m.attr("AS_IT_IS") = static_cast<int>(Mapped::as_it_is);
  m.attr("HELD") = static_cast<int>(Mapped::held);
  m.attr("REWRITTEN") = static_cast<int>(Mapped::rewritten);
}
