// Python's view of the flight recorder: made with an open file, stopped, and asked how it is.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include "buffers.hpp"
#include "pipeline.hpp"
#include "tape_writer.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

// Owns the writer together with its thread: a disk that never answers keeps the thread, and so the
// writer, after everything else has gone.
class Tape {
 public:
  Tape(int fd, nb::handle start, TapePolicy policy, std::size_t capacity) {
    const Bytes body(start);
    const nb::gil_scoped_release released;
    writer_ = std::make_shared<TapeWriter>(fd, body.all(), policy, capacity);
    std::thread([writer = writer_] { writer->run(); }).detach();
  }
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;
  ~Tape() { writer_->request_stop(); }

  TapeWriter& writer() { return *writer_; }
  bool stop(double seconds) {
    const nb::gil_scoped_release released;
    writer_->request_stop();
    return writer_->ended(seconds);
  }

 private:
  std::shared_ptr<TapeWriter> writer_;
};

}  // namespace

void bind_tape(nb::module_& m) {
  nb::class_<Tape>(m, "Tape", "The flight recorder: a ring, and a thread that writes it to a file.")
      .def(
          "__init__",
          [](Tape* self, int fd, nb::handle start, std::uint64_t id, std::size_t ring_bytes,
             double drain_s, double sync_s, std::uint64_t reserve_bytes) {
            new (self) Tape(fd, start, {id, drain_s, sync_s, reserve_bytes}, ring_bytes);
          },
          "fd"_a, "start"_a, "id"_a, "ring_bytes"_a, "drain_s"_a, "sync_s"_a, "reserve_bytes"_a)
      .def("record",
           [](Tape& self, Pipeline& pipeline) { pipeline.record(&self.writer().ring); },
           "pipeline"_a, nb::keep_alive<2, 1>())
      .def(
          "event",
          [](Tape& self, std::string_view kind, nb::handle data) {
            self.writer().ring.event(kind, Bytes(data).all(), monotonic_ns());
          },
          "kind"_a, "data"_a)
      .def("stop", &Tape::stop, "seconds"_a)
      .def_prop_ro("lost", [](Tape& self) { return self.writer().ring.lost(); })
      .def_prop_ro("error", [](Tape& self) { return self.writer().error.load(); })
      .def_prop_ro("bytes", [](Tape& self) { return self.writer().bytes.load(); })
      .def_prop_ro("chunks", [](Tape& self) { return self.writer().chunks.load(); })
      .def_prop_ro("syncs", [](Tape& self) { return self.writer().syncs.load(); })
      .def_prop_ro("waiting", [](Tape& self) {
        const TapeRing& ring = self.writer().ring;
        return ring.written() - ring.drained();
      });
  m.attr("MAX_TAPE_RECORD") = TapeRing::kLargest;
}
