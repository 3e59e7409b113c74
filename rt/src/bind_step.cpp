// Python face of the streaming step: StepEngine and supported_isas().
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "step.hpp"

namespace nb = nanobind;
using neds::StepEngine;

namespace {

using Counts = nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tensor = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

void construct(StepEngine* self, int units, int hidden, int layers, int heads, int mlp, int window,
               int conv, bool recurrent, double rope_base,
               const std::vector<std::pair<int, bool>>& modalities,
               const nb::dict& weights, const std::string& precision, const std::string& isa) {
  std::vector<neds::ModalityShape> shapes;
  for (const auto& [n_outputs, categorical] : modalities) shapes.push_back({n_outputs, categorical});
  neds::TensorMap tensors;
  std::vector<Tensor> held;  // keeps the arrays alive until they are copied
  for (const auto& [key, value] : weights) {
    const std::string name = nb::cast<std::string>(key);
    Tensor tensor;
    if (!nb::try_cast(value, tensor, false))
      throw std::invalid_argument(name + ": expected a C-contiguous float32 array");
    std::vector<std::size_t> shape;
    for (std::size_t i = 0; i < tensor.ndim(); ++i) shape.push_back(tensor.shape(i));
    tensors.insert_or_assign(name, neds::TensorView{tensor.data(), std::move(shape)});
    held.push_back(std::move(tensor));
  }
  const neds::StepShape shape{units, hidden, layers, heads, mlp, window, conv, recurrent,
                              rope_base};
  const nb::gil_scoped_release unlocked;  // packing takes longer than a served bin may wait
  new (self) StepEngine(shape, shapes, tensors, precision, isa);
}

void step(StepEngine& self, const Counts& counts, bool present) {
  if (counts.shape(0) != static_cast<std::size_t>(self.n_units()))
    throw std::invalid_argument("counts: found " + std::to_string(counts.shape(0)) +
                                " units, expected " + std::to_string(self.n_units()));
  const std::uint16_t* const data = present ? counts.data() : nullptr;
  nb::gil_scoped_release unlocked;
  self.step(data);
}

void skip(StepEngine& self, std::int64_t n_bins) {
  if (n_bins < 0 || n_bins > INT64_MAX - self.position())
    throw std::invalid_argument("n_bins: found " + std::to_string(n_bins) + ", expected at least 0");
  nb::gil_scoped_release unlocked;
  self.skip(n_bins);
}

}  // namespace

void bind_step(nb::module_& m) {
  m.def("supported_isas", &neds::supported_isas,
        "Instruction sets of this build that this CPU runs, best first.");
  nb::class_<StepEngine>(m, "StepEngine",
                         "The streaming transformer step. One thread at a time may call it.")
      .def("__init__", &construct, nb::kw_only(), nb::arg("units"), nb::arg("hidden"),
           nb::arg("layers"), nb::arg("heads"), nb::arg("mlp"), nb::arg("window"), nb::arg("conv"),
           nb::arg("recurrent"), nb::arg("rope_base"), nb::arg("modalities"), nb::arg("weights"),
           nb::arg("precision") = "float32", nb::arg("isa") = "",
           "Sizes, modalities as (n_outputs, categorical), and float32 tensors by name (copied). "
           "Raises ValueError when they do not fit together.")
      .def("step", &step, nb::arg("counts").noconvert(), nb::arg("present") = true,
           "Advance by one bin of uint16 counts (units,); the result is in `outputs`.")
      .def("skip", &skip, nb::arg("n_bins"), "Advance by lost bins without computing outputs.")
      .def("reset", &StepEngine::reset, "Forget all bins.")
      .def("warm", &StepEngine::warm, nb::call_guard<nb::gil_scoped_release>(),
           "Run a step whose result is dropped, to bring code and weights into the caches.")
      .def_prop_ro(
          "outputs",
          [](StepEngine& self) {
            const std::size_t n = static_cast<std::size_t>(self.n_outputs());
            return nb::ndarray<nb::numpy, const float, nb::ndim<1>>(self.outputs(), {n});
          },
          nb::rv_policy::reference_internal,
          "Read-only view (n_outputs,) of the engine's own buffer, overwritten by `step`.")
      .def_prop_ro("n_units", &StepEngine::n_units)
      .def_prop_ro("n_outputs", &StepEngine::n_outputs)
      .def_prop_ro("position", &StepEngine::position, "Bins since reset.")
      .def_prop_ro("arena_bytes", &StepEngine::arena_bytes, "Memory of weights, rings, scratch.")
      .def_prop_ro("precision", &StepEngine::precision, "What weights are stored in.")
      .def_prop_ro("isa", &StepEngine::isa, "Instruction set in use.");
}
