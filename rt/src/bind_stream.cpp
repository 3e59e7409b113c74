// Python's view of the streaming parts: binning, header parsing, assembler, decode encoder.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "assembler.hpp"
#include "buffers.hpp"
#include "decode.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace neds;

namespace {

using Counts = nb::ndarray<nb::numpy, std::uint16_t>;
using Integers = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Counts bin_spikes_array(Integers samples, Integers units, std::int64_t n_units, double fs,
                        double bin_size_s, std::int64_t first_bin, std::int64_t n_bins) {
  if (samples.size() != units.size()) throw nb::value_error("samples and units differ in length");
  if (n_bins < 0 || n_units < 0) throw nb::value_error("n_bins and n_units must not be negative");
  const BinGrid grid(fs, bin_size_s);
  const std::size_t size = static_cast<std::size_t>(n_bins) * static_cast<std::size_t>(n_units);
  auto* out = new std::uint16_t[size]();
  nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<std::uint16_t*>(p); });
  std::size_t done = 0;
  {
    nb::gil_scoped_release release;
    done = bin_spikes(samples.data(), units.data(), samples.size(), grid, first_bin, n_bins, n_units,
                      out);
  }
  if (done != samples.size()) {
    throw nb::value_error(("spike " + std::to_string(done) + ": unit or sample out of range").c_str());
  }
  return Counts(out, {static_cast<std::size_t>(n_bins), static_cast<std::size_t>(n_units)}, owner);
}

using Edges = nb::ndarray<nb::numpy, std::int64_t>;

Edges bin_edges_array(Integers bins, double fs, double bin_size_s) {
  const BinGrid grid(fs, bin_size_s);
  auto* out = new std::int64_t[bins.size()];
  nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<std::int64_t*>(p); });
  for (std::size_t i = 0; i < bins.size(); ++i) out[i] = grid.edge(bins.data()[i]);
  return Edges(out, {bins.size()}, owner);
}

nb::object parse_header_object(nb::handle data) {
  const Bytes bytes(data);
  SpikeHeader h;
  switch (parse_header(bytes.data(), bytes.size(), h)) {
    case HeaderVerdict::header: return nb::str("bad_header");
    case HeaderVerdict::version: return nb::str("bad_version");
    case HeaderVerdict::range: return nb::str("bad_range");
    case HeaderVerdict::ok: break;
  }
  return nb::make_tuple(kWireVersion, h.stream, h.session, h.seq, h.t0_sample, h.watermark, h.fs,
                        h.sent_mono_ns, h.sent_real_ns, h.n_spikes);
}

using Streams = std::vector<std::pair<std::string, std::vector<std::int32_t>>>;

void make_assembler(Assembler* self, double bin_size_s, Streams streams, std::size_t n_units,
                    std::size_t open_bins, std::optional<double> close_after_s,
                    std::optional<double> clock_jump_s) {
  Patience patience;
  if (close_after_s) patience.close_after_ns = static_cast<std::int64_t>(*close_after_s * 1e9);
  if (clock_jump_s) patience.clock_jump_s = *clock_jump_s;
  new (self) Assembler(bin_size_s, std::move(streams), n_units, open_bins, patience);
}

void bind_assembler(nb::module_& m) {
  nb::class_<Assembler>(m, "Assembler", "Frames of several streams -> closed bins, by watermark.")
      .def("__init__", &make_assembler, "bin_size_s"_a, "streams"_a, "n_units"_a, "open_bins"_a,
           "close_after_s"_a = nb::none(), "clock_jump_s"_a = nb::none())
      .def(
          "push",
          [](Assembler& self, nb::handle header, nb::handle payload, std::int64_t recv_ns) {
            const Bytes head(header), body(payload);
            return self.push(head.data(), head.size(), body.data(), body.size(), recv_ns);
          },
          "header"_a, "payload"_a, "recv_ns"_a = 0)
      .def("refuse",
           [](Assembler& self, int kind) {
             if (kind < 0 || kind >= kCounters) throw nb::index_error("no such counter");
             self.refuse(static_cast<Counter>(kind));
           })
      .def("pop", &Assembler::pop)
      .def_prop_ro("available", &Assembler::available)
      .def_prop_ro("bin", &Assembler::bin)
      .def_prop_ro("epoch", &Assembler::epoch)
      .def_prop_ro("missing",
                   [](const Assembler& self) {
                     nb::list names;
                     for (const std::string_view name : self.missing()) names.append(name);
                     return names;
                   })
      .def_prop_ro("clock_jumped", &Assembler::clock_jumped)
      .def_prop_ro("session", [](const Assembler& self) { return self.session(); })
      .def_prop_ro("spike_lag_s", &Assembler::spike_lag_s)
      .def("end_s", &Assembler::end_s, "bin"_a)
      .def_prop_ro(
          "counts",
          [](Assembler& self) {
            return nb::ndarray<nb::numpy, std::uint16_t, nb::ndim<1>>(self.counts().data(),
                                                                     {self.counts().size()});
          },
          nb::rv_policy::reference_internal)
      .def_prop_ro(
          "counters",
          [](Assembler& self) {
            return nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>(self.counters().data(),
                                                                     {self.counters().size()});
          },
          nb::rv_policy::reference_internal);
  nb::list names;
  for (const char* name : kCounterNames) names.append(name);
  m.attr("COUNTERS") = nb::tuple(names);
}

Modality modality(const std::string& name, const std::string& kind, std::size_t n_outputs,
                  std::vector<std::string> classes, std::vector<float> sd) {
  if (kind != "continuous" && kind != "circular" && kind != "categorical") {
    throw nb::value_error(("modality " + name + ": unknown kind " + kind).c_str());
  }
  const ModalityKind which = kind == "continuous" ? ModalityKind::continuous
                             : kind == "circular" ? ModalityKind::circular
                                                  : ModalityKind::categorical;
  return {name, which, n_outputs, std::move(classes), std::move(sd)};
}

std::size_t encode(DecodeEncoder& self, std::int64_t seq, std::int64_t bin, double t_s,
                   double spike_lag_s, std::int64_t recv_ns, int reason, nb::handle outputs) {
  if (reason < 0 || reason >= kReasons) throw nb::index_error("no such reason");
  const auto why = static_cast<Reason>(reason);
  if (outputs.is_none()) return self.encode(seq, bin, t_s, spike_lag_s, recv_ns, why, nullptr);
  const Floats floats(outputs, self.n_outputs());
  return self.encode(seq, bin, t_s, spike_lag_s, recv_ns, why, floats.data());
}

void bind_encoder(nb::module_& m) {
  nb::class_<Modality>(m, "Modality", "One decoded behaviour, as the encoder needs it.")
      .def(nb::new_(&modality), "name"_a, "kind"_a, "n_outputs"_a,
           "classes"_a = std::vector<std::string>(), "sd"_a = std::vector<float>());
  nb::class_<DecodeEncoder>(m, "DecodeEncoder", "Writes decode messages into one buffer.")
      .def(nb::init<std::vector<Modality>, std::string, std::size_t>(), "modalities"_a, "model"_a,
           "max_session_bytes"_a)
      .def("set_session", &DecodeEncoder::set_session, "name"_a)
      .def("set_deadline", &DecodeEncoder::set_deadline, "ns"_a)
      .def("encode", &encode, "seq"_a, "bin"_a, "t_s"_a, "spike_lag_s"_a, "recv_ns"_a, "reason"_a,
           "outputs"_a.none())
      .def_prop_ro("n_outputs", &DecodeEncoder::n_outputs)
      .def_prop_ro("pub_ns", &DecodeEncoder::pub_ns)
      .def_prop_ro("reason", &DecodeEncoder::reason)
      .def_prop_ro(
          "buffer",
          [](DecodeEncoder& self) {
            return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(self.buffer().data(),
                                                                    {self.buffer().size()});
          },
          nb::rv_policy::reference_internal);
  nb::list names, meanings;
  for (const ReasonText& reason : kReasonTable) {
    names.append(reason.name);
    meanings.append(reason.meaning);
  }
  m.attr("REASONS") = nb::tuple(names);
  m.attr("MEANINGS") = nb::tuple(meanings);
}

}  // namespace

void bind_stream(nb::module_& m) {
  m.def("bin_spikes", &bin_spikes_array, "samples"_a, "units"_a, "n_units"_a, "fs"_a,
        "bin_size_s"_a, "first_bin"_a, "n_bins"_a);
  m.def("bin_edge", [](std::int64_t bin, double fs, double bin_size_s) {
    return BinGrid(fs, bin_size_s).edge(bin);
  }, "bin"_a, "fs"_a, "bin_size_s"_a);
  m.def("bin_edges", &bin_edges_array, "bins"_a, "fs"_a, "bin_size_s"_a);
  m.def("bin_of", [](std::int64_t sample, double fs, double bin_size_s) {
    if (sample < -kMaxSample || sample > kMaxSample) throw nb::value_error("sample out of range");
    return BinGrid(fs, bin_size_s).bin_of(sample);
  }, "sample"_a, "fs"_a, "bin_size_s"_a);
  m.def("parse_header", &parse_header_object, "data"_a);
  m.def("monotonic_ns", &monotonic_ns);
  bind_assembler(m);
  bind_encoder(m);
}
