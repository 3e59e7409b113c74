// Python's view of what brings an engine to the present, and of a model that may be swapped in.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <limits>

#include "engine_slot.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

using Counts = nb::ndarray<std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void construct(Follower* self, const History& history, Stepper& stepper, const Counts& counts,
               std::size_t n_outputs) {
  if (counts.shape(0) != history.n_units()) throw nb::value_error("counts: one for every unit");
  new (self) Follower(history, stepper, counts.data(), n_outputs);
}

}  // namespace

void bind_slot(nb::module_& m) {
  nb::class_<Stepper>(m, "Stepper", "What a pipeline asks of an engine.");
  nb::class_<History>(m, "History", "The last bins, in memory taken once.")
      .def(nb::init<std::size_t, std::size_t>(), "capacity"_a, "n_units"_a)
      .def("add",
           [](History& self, const Counts& counts, bool present) {
             if (counts.shape(0) != self.n_units()) throw nb::value_error("one for every unit");
             self.add(present ? counts.data() : nullptr);
           },
           "counts"_a, "present"_a = true)
      .def("skip", &History::skip, "n_bins"_a)
      .def("reset", &History::reset)
      .def_prop_ro("capacity", &History::capacity)
      .def_prop_ro("first", &History::first)
      .def_prop_ro("end", &History::end);
  nb::class_<Follower>(m, "Follower", "Brings one engine to the present by the history.")
      .def("__init__", &construct, "history"_a, "stepper"_a, "counts"_a, "n_outputs"_a,
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>())
      .def("follow", &Follower::follow, "most"_a = std::numeric_limits<std::size_t>::max(),
           nb::call_guard<nb::gil_scoped_release>())
      .def("restart", &Follower::restart)
      .def("begin_at", &Follower::begin_at, "index"_a)
      .def_prop_ro("begun", &Follower::begun)
      .def_prop_ro("finite", &Follower::finite)
      .def_prop_ro("behind", &Follower::behind)
      .def_prop_ro("starts", &Follower::starts);
  // Borrowed by the pipeline that it is given to: the caller keeps it for as long as it may serve.
  nb::class_<Candidate>(m, "Candidate", "A model with all that a pipeline needs of it.")
      .def("__init__",
           [](Candidate* self, Stepper& stepper, DecodeEncoder& encoder, std::int64_t window,
              Follower& follower, Follower* standby, Health* health) {
             new (self) Candidate({&stepper, &encoder, window, standby, health}, follower);
           },
           "stepper"_a, "encoder"_a, "window"_a, "follower"_a, "standby"_a.none(),
           "health"_a = nb::none(), nb::keep_alive<1, 7>(),
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 5>(),
           nb::keep_alive<1, 6>());
}
