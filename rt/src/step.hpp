// The streaming transformer step as an engine: weights packed once, state kept inside, nothing
// allocated after construction. The arithmetic is in step_kernels.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "step_plan.hpp"

namespace neds {

struct StepShape {
  int units, hidden, layers, heads, mlp, window, conv;
  bool recurrent;
  double rope_base;
};

// The outputs of one modality; classes become probabilities.
struct ModalityShape {
  int n_outputs;
  bool categorical;
};

struct TensorView {
  const float* data;
  std::vector<std::size_t> shape;
};

using TensorMap = std::map<std::string, TensorView, std::less<>>;

// Names of the instruction sets that this build has and this CPU runs, best first.
std::vector<std::string> supported_isas();

class StepEngine {
 public:
  // `precision` is one of precision_names, `isa` one of supported_isas(), or empty for the best.
  // Tensors are copied. Throws std::invalid_argument for sizes out of range, a tensor that is
  // missing or of another shape, and a precision or an instruction set that is not there.
  StepEngine(const StepShape& shape, const std::vector<ModalityShape>& modalities,
             const TensorMap& tensors, std::string_view precision = "float32",
             std::string_view isa = {});

  // Forget all bins: the next step is bin 0 of a new stream.
  void reset() noexcept;

  // Advance by one bin: `counts` holds n_units() spike counts, or is null for a lost bin.
  void step(const std::uint16_t* counts) noexcept;

  // Advance by `n_bins` >= 0 lost bins; outputs stay as they are. The GRU really runs, for up to
  // `settling_bins`: without spikes its memory has long come to rest by then.
  static constexpr std::int64_t settling_bins = 4096;
  void skip(std::int64_t n_bins) noexcept;

  // Compute a step from the present state, so that code, weights and rings are in the caches, and
  // drop its result: outputs and all later steps are what they would be without the call.
  void warm() noexcept;

  const float* outputs() const noexcept { return outputs_; }
  // The last row before the heads, [hidden()], until the next step, skip or warm.
  const float* state() const noexcept { return plan_.y; }
  int hidden() const noexcept { return plan_.hidden; }
  int n_outputs() const noexcept { return n_outputs_; }
  int n_units() const noexcept { return plan_.units; }
  std::int64_t position() const noexcept { return position_; }  // bins since reset
  std::size_t arena_bytes() const noexcept { return arena_bytes_; }
  const char* isa() const noexcept { return kernels_->isa; }
  const char* precision() const noexcept { return precision_names[static_cast<int>(precision_)]; }

 private:
  struct Free {
    void operator()(std::byte* p) const noexcept { ::operator delete(p, page); }
    static constexpr std::align_val_t page{std::size_t{2} << 20};
  };

  void lay_out(class Arena& arena);
  void fill(const TensorMap& tensors);
  void set_phases() noexcept;
  void set_valid(int slot, bool valid) noexcept;
  StepInput input(const std::uint16_t* counts) const noexcept;

  const StepKernels* kernels_;
  Precision precision_;
  StepKernels::Functions run_;
  std::vector<ModalityShape> modalities_;
  std::vector<LayerPlan> layers_;
  std::vector<Readout> readouts_;
  std::vector<double> frequencies_;  // radians a bin, one for each rotated pair
  std::vector<std::uint16_t> ones_;  // counts of warm(): every unit fires, so every weight is read
  StepPlan plan_{};
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t arena_bytes_ = 0;
  float* outputs_ = nullptr;
  float* discarded_ = nullptr;  // outputs of warm()
  int n_outputs_ = 0;
  int n_valid_ = 0;
  std::int64_t position_ = 0;
};

}  // namespace neds
