// Python's view of the pipeline, and the two kinds of engine that it can drive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "buffers.hpp"
#include "pipeline.hpp"
#include "step.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

// The C++ engine. `dry` steps leave its stream as it is: those of the keep-warm tick.
class NativeStepper final : public Stepper {
 public:
  NativeStepper(StepEngine& engine, bool dry) : engine_(engine), dry_(dry) {}

  void reset() override {
    if (!dry_) engine_.reset();
  }
  const float* step(const std::uint16_t* counts, bool present) override {
    if (dry_) {
      engine_.warm();
    } else {
      engine_.step(present ? counts : nullptr);
    }
    return engine_.outputs();
  }
  void skip(std::int64_t n_bins) override {
    if (!dry_) engine_.skip(n_bins);
  }
  const float* state() const override { return engine_.state(); }

 private:
  StepEngine& engine_;
  bool dry_;
};

// An engine of the Python protocol `neds_rt.engines.Engine`; holds the GIL while it steps.
class PythonStepper final : public Stepper {
 public:
  PythonStepper(nb::object engine, nb::object counts, std::size_t n_outputs, bool dry)
      : reset_(engine.attr("reset")), step_(engine.attr("step")), skip_(engine.attr("skip")),
        warm_(engine.attr("warm")), counts_(std::move(counts)), n_outputs_(n_outputs), dry_(dry) {}

  void reset() override {
    const nb::gil_scoped_acquire locked;
    if (!dry_) reset_();
  }
  const float* step(const std::uint16_t*, bool present) override {
    const nb::gil_scoped_acquire locked;
    if (dry_) {
      warm_();
      return nullptr;
    }
    outputs_.reset();
    last_ = step_(counts_, present);
    outputs_.emplace(last_, n_outputs_);
    return outputs_->data();
  }
  void skip(std::int64_t n_bins) override {
    const nb::gil_scoped_acquire locked;
    if (!dry_) skip_(n_bins);
  }

 private:
  nb::object reset_, step_, skip_, warm_;
  nb::object counts_;  // the assembler's own array
  nb::object last_;    // what the last step returned, kept alive until it is encoded
  std::optional<Floats> outputs_;
  std::size_t n_outputs_;
  bool dry_;
};

void bind_parts(nb::module_& m) {
  nb::class_<Validity>(m, "Validity", "Says why a decode is or is not valid.")
      .def(nb::init<std::int64_t>(), "window"_a)
      .def("reset", &Validity::reset)
      .def("advance",
           [](Validity& self, bool present, std::int64_t n_bins, bool partial, bool jumped,
              int health) {
             if (health < 0 || health >= kReasons) throw nb::index_error("no such reason");
             return int{self.advance({!present, partial, jumped}, n_bins,
                                     static_cast<Reason>(health))};
           },
           "present"_a, "n_bins"_a = 1, "partial"_a = false, "jumped"_a = false, "health"_a = 0);
  nb::class_<LatencyRing>(m, "LatencyRing", "Stamps of the last bins, in memory taken once.")
      .def(nb::init<std::size_t>(), "capacity"_a)
      .def("add", [](LatencyRing& self, std::int64_t received, std::int64_t assembled,
                     std::int64_t stepped, std::int64_t encoded, std::int64_t sent) {
        self.add({received, assembled, stepped, encoded, sent});
      })
      .def_prop_ro("recorded", &LatencyRing::recorded)
      .def_prop_ro(
          "rows",
          [](LatencyRing& self) {
            return nb::ndarray<nb::numpy, std::int64_t, nb::ndim<2>>(
                self.rows().data(), {self.rows().size(), LatencyRing::kStamps});
          },
          nb::rv_policy::reference_internal);
  nb::class_<NativeStepper, Stepper>(m, "NativeStepper", "The C++ engine in a pipeline.")
      .def(nb::init<StepEngine&, bool>(), "engine"_a, "dry"_a = false, nb::keep_alive<1, 2>());
  nb::class_<PythonStepper, Stepper>(m, "PythonStepper", "Any other engine in a pipeline.")
      .def(nb::init<nb::object, nb::object, std::size_t, bool>(), "engine"_a, "counts"_a,
           "n_outputs"_a, "dry"_a = false);
}

// What the engine threw, raised here; None when it threw nothing.
void raise_failure(Pipeline& self) {
  if (const std::exception_ptr failure = self.slot().take_failure()) {
    std::rethrow_exception(failure);
  }
}

void bind_swap(nb::class_<Pipeline>& pipeline) {
  pipeline
      .def("keep", [](Pipeline& self, History& history) { self.slot().keep(history); },
           "history"_a, nb::keep_alive<1, 2>())
      .def("limit",
           [](Pipeline& self, std::int64_t budget_ns, std::int64_t overruns) {
             self.slot().limit(budget_ns, overruns);
           },
           "budget_ns"_a, "overruns"_a)
      .def("offer", [](Pipeline& self, Candidate& model) { self.slot().offer(model); }, "model"_a)
      .def("retract",
           [](Pipeline& self, Candidate& model) { return self.slot().retract(model); }, "model"_a)
      .def("give_up", [](Pipeline& self) { return self.slot().give_up(); })
      .def("raise_failure", &raise_failure)
      .def("follow", [](Pipeline& self) { self.slot().follow(); },
           nb::call_guard<nb::gil_scoped_release>())
      .def("enter", [](Pipeline& self) { self.slot().enter(); })
      // Without the GIL: who has borrowed may need it to give back.
      .def("leave", [](Pipeline& self) { self.slot().leave(); },
           nb::call_guard<nb::gil_scoped_release>())
      .def("overdue",
           [](Pipeline& self, std::int64_t limit_ns) { return self.slot().overdue(limit_ns); },
           "limit_ns"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("end_overdue", [](Pipeline& self) { self.slot().end_overdue(); })
      .def("borrow", [](Pipeline& self, std::int64_t since) { return self.slot().borrow(since); },
           "since"_a)
      .def("give_back", [](Pipeline& self, std::int64_t since) { self.slot().give_back(since); },
           "since"_a)
      .def("cut_off", [](Pipeline& self, std::int64_t since) { return self.slot().cut_off(since); },
           "since"_a)
      .def_prop_ro("busy_since", [](Pipeline& self) { return self.slot().busy_since(); })
      .def_prop_ro("standby_behind", [](Pipeline& self) { return self.slot().standby_behind(); })
      .def_prop_ro("swaps", [](Pipeline& self) { return self.slot().swaps(); })
      .def_prop_ro("failovers", [](Pipeline& self) { return self.slot().failovers(); });
}

}  // namespace

void bind_pipeline(nb::module_& m) {
  bind_parts(m);
  nb::class_<Pipeline> pipeline(m, "Pipeline", "Frames in, decode messages out; the GIL is released.");
  bind_swap(pipeline);
  pipeline
      .def("__init__",
           [](Pipeline* self, Assembler& assembler, const Candidate& model, LatencyRing& latency) {
             new (self) Pipeline(assembler, model.model, latency);
           },
           "assembler"_a, "model"_a, "latency"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>())
      .def(nb::init<Assembler&, DecodeEncoder&, Stepper&, LatencyRing&, std::int64_t, Health*>(),
           "assembler"_a, "encoder"_a, "stepper"_a, "latency"_a, "window"_a,
           "health"_a = nb::none(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
           nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), nb::keep_alive<1, 7>())
      .def(
          "feed",
          [](Pipeline& self, nb::handle header, nb::handle payload, std::int64_t recv_ns) {
            const Bytes head(header), body(payload);
            const nb::gil_scoped_release released;
            return self.feed(head.all(), body.all(), recv_ns);
          },
          "header"_a, "payload"_a, "recv_ns"_a)
      .def("next", &Pipeline::next, nb::call_guard<nb::gil_scoped_release>())
      .def("sent", &Pipeline::sent)
      .def("set_patience", &Pipeline::set_patience, "late_s"_a, "backlog"_a)
      .def("watch", &Pipeline::watch, "raster"_a, nb::keep_alive<1, 2>())
      .def("nothing",
           [](Pipeline& self, int reason, std::int64_t now_ns) {
             if (reason < 0 || reason >= kReasons) throw nb::index_error("no such reason");
             return self.nothing(static_cast<Reason>(reason), now_ns);
           },
           "reason"_a, "now_ns"_a)
      .def_prop_ro("seq", &Pipeline::seq)
      .def_prop_ro("service_ns", &Pipeline::service_ns)
      .def_prop_ro(
          "reasons",
          [](Pipeline& self) {
            return nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>(self.reasons().data(),
                                                                     {self.reasons().size()});
          },
          nb::rv_policy::reference_internal);
}
