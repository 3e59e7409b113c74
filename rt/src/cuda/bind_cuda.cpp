// Python face of the GPU step: CudaStep and facts of the device.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "engine.hpp"

namespace nb = nanobind;
using neds::gpu::CudaStep;

namespace {

using Counts = nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tensor = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

void construct(CudaStep* self, int units, int hidden, int layers, int heads, int mlp, int window,
               int conv, bool recurrent, double rope_base,
               const std::vector<std::pair<int, bool>>& modalities,
               const nb::dict& weights, const std::string& precision, const std::string& team,
               int blocks, int threads, const std::string& input, const std::string& launch,
               bool marks, double timeout_s) {
  std::vector<neds::ModalityShape> shapes;
  for (const auto& [n_outputs, categorical] : modalities) shapes.push_back({n_outputs, categorical});
  neds::TensorMap tensors;
  std::vector<Tensor> held;  // keeps the arrays alive until they are copied
  for (const auto& [key, value] : weights) {
    const std::string name = nb::cast<std::string>(key);
    Tensor tensor;
    if (!nb::try_cast(value, tensor, false))
      throw std::invalid_argument(name + ": expected a C-contiguous float32 array");
    std::vector<std::size_t> sizes;
    for (std::size_t i = 0; i < tensor.ndim(); ++i) sizes.push_back(tensor.shape(i));
    tensors.insert_or_assign(name, neds::TensorView{tensor.data(), std::move(sizes)});
    held.push_back(std::move(tensor));
  }
  const neds::StepShape shape{units, hidden, layers, heads, mlp, window, conv, recurrent,
                              rope_base};
  neds::gpu::Options options{precision, team, blocks, threads, input, launch, marks, timeout_s};
  new (self) CudaStep(shape, shapes, tensors, options);
}

void step(CudaStep& self, const Counts& counts, bool present) {
  if (counts.shape(0) != static_cast<std::size_t>(self.n_units()))
    throw std::invalid_argument("counts: found " + std::to_string(counts.shape(0)) +
                                " units, expected " + std::to_string(self.n_units()));
  const std::uint16_t* const data = present ? counts.data() : nullptr;
  nb::gil_scoped_release unlocked;
  self.step(data);
}

void skip(CudaStep& self, std::int64_t n_bins) {
  if (n_bins < 0 || n_bins > INT64_MAX - self.position())
    throw std::invalid_argument("n_bins: found " + std::to_string(n_bins) + ", expected at least 0");
  nb::gil_scoped_release unlocked;
  self.skip(n_bins);
}

nb::dict facts_of_device() {
  const neds::gpu::DeviceFacts facts = neds::gpu::device_facts();
  nb::dict d;
  d["name"] = facts.name;
  d["capability"] = std::to_string(facts.major) + "." + std::to_string(facts.minor);
  d["multiprocessors"] = facts.multiprocessors;
  d["memory_bytes"] = facts.memory;
  d["l2_bytes"] = facts.l2;
  d["shared_bytes"] = facts.shared;
  d["clock_khz"] = facts.clock_khz;
  d["driver"] = facts.driver;
  d["runtime"] = facts.runtime;
  return d;
}

nb::dict facts_of_step(const CudaStep& self) {
  const neds::gpu::Layout& layout = self.layout();
  nb::dict d;
  d["team"] = self.cluster() ? "cluster" : "grid";
  d["blocks"] = self.blocks();
  d["threads"] = self.threads();
  d["shared_bytes"] = layout.shared_bytes;
  d["jobs"] = layout.plan.n_jobs;
  d["jobs_ahead"] = layout.staged;
  d["weight_bytes"] = layout.weights.size();
  d["ring_bytes"] = layout.ring_floats * sizeof(float);
  return d;
}

}  // namespace

NB_MODULE(_cuda, m) {
  m.doc() = "The streaming step as one CUDA kernel.";
  m.def("device_count", &neds::gpu::device_count, "GPUs that CUDA sees, 0 without a driver.");
  m.def("device_facts", &facts_of_device, "Facts of GPU 0. Raises RuntimeError without one.");
  nb::class_<CudaStep>(m, "CudaStep", "The step on GPU 0. One thread at a time may call it.")
      .def("__init__", &construct, nb::kw_only(), nb::arg("units"), nb::arg("hidden"),
           nb::arg("layers"), nb::arg("heads"), nb::arg("mlp"), nb::arg("window"), nb::arg("conv"),
           nb::arg("recurrent"), nb::arg("rope_base"), nb::arg("modalities"), nb::arg("weights"),
           nb::arg("precision") = "float32", nb::arg("team") = "auto", nb::arg("blocks") = 0,
           nb::arg("threads") = 0, nb::arg("input") = "mapped", nb::arg("launch") = "graph",
           nb::arg("marks") = false, nb::arg("timeout_s") = 2.0,
           "As _core.StepEngine; how it is spread over the GPU in the other arguments. Raises "
           "ValueError when they do not fit, RuntimeError where CUDA fails.")
      .def("step", &step, nb::arg("counts").noconvert(), nb::arg("present") = true,
           "Advance by one bin of uint16 counts (units,); the result is in `outputs`.")
      .def("skip", &skip, nb::arg("n_bins"), "Advance by lost bins without computing outputs.")
      .def("reset", &CudaStep::reset, "Forget all bins.")
      .def("warm", &CudaStep::warm, nb::call_guard<nb::gil_scoped_release>(),
           "Run a step whose result is dropped, which keeps the GPU's clocks up.")
      .def_prop_ro(
          "outputs",
          [](CudaStep& self) {
            const std::size_t n = static_cast<std::size_t>(self.n_outputs());
            return nb::ndarray<nb::numpy, const float, nb::ndim<1>>(self.outputs(), {n});
          },
          nb::rv_policy::reference_internal,
          "Read-only view (n_outputs,) of host memory that the GPU writes, overwritten by `step`.")
      .def_prop_ro("n_units", &CudaStep::n_units)
      .def_prop_ro("n_outputs", &CudaStep::n_outputs)
      .def_prop_ro("position", &CudaStep::position, "Bins since reset.")
      .def_prop_ro("facts", &facts_of_step, "How the step is spread and what it keeps where.")
      .def("phase_clocks", &CudaStep::phase_clocks, "GPU clock after each phase of the last step.")
      .def("launch_floor", &CudaStep::launch_floor, nb::arg("n"),
           "Nanoseconds of each of `n` empty kernels, launched and waited for as a step is.")
      .def("meeting_cycles", &CudaStep::meeting_cycles, nb::arg("n"),
           "Clock cycles that a meeting of the team's blocks takes, mean of `n`.");
}
