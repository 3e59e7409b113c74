// The extension module neds_rt._core: one binding function a part, each in its own file.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_stream(nb::module_& m);  // bind_stream.cpp: bin grid, assembler, decode encoder
void bind_step(nb::module_& m);    // bind_step.cpp: the streaming transformer step
void bind_slot(nb::module_& m);    // bind_slot.cpp: the history, models to swap in
void bind_pipeline(nb::module_& m);  // bind_pipeline.cpp: the two together, a frame a call
void bind_tape(nb::module_& m);    // bind_tape.cpp: the flight recorder
void bind_raw(nb::module_& m);     // bind_raw.cpp: the raw AP band to threshold crossings
void bind_clocks(nb::module_& m);  // bind_clocks.cpp: frames into one sample clock

NB_MODULE(_core, m) {
  m.doc() = "C++ core of neds_rt: binning, assembling, and the streaming transformer step.";
  bind_stream(m);
  bind_step(m);
  bind_slot(m);
  bind_pipeline(m);
  bind_tape(m);
  bind_raw(m);
  bind_clocks(m);
}
