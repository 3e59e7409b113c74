// The host's side of the GPU step that needs no GPU: weights packed as the kernel reads them, the
// layout of shared memory, the staging schedule, and the input buffer of each step.
#pragma once

#include <cstdint>
#include <vector>

#include "../step.hpp"
#include "plan.hpp"

namespace neds::gpu {

enum class Precision { float32, bfloat16, float16 };

std::size_t bytes_of(Precision precision);

// How the step is spread over the GPU.
struct Spread {
  int blocks;
  int threads;           // a block, a multiple of the lanes
  int lanes;             // of a warp
  std::size_t shared;    // bytes of shared memory a block may use
};

// What the host fills before a step: the input buffer's content, and the position it stands for.
class StreamState {
 public:
  StreamState() = default;
  StreamState(const Plan& plan, double rope_base);

  void reset();
  // Lost bins that the kernel need not see: all of them without a GRU.
  void skip(std::int64_t n_bins);

  // Write the next step's input to `buffer` (plan.in_bytes). Null counts are a lost bin; a dry step
  // is computed as if every unit had fired, and leaves this state as it is.
  void write(std::uint8_t* buffer, std::uint32_t sequence, const std::uint16_t* counts, bool dry);
  // The same for a lost bin that nobody wants the outputs of.
  void write_skipped(std::uint8_t* buffer, std::uint32_t sequence);

  std::int64_t position() const { return position_; }

 private:
  void set(std::vector<std::uint32_t>& bits, std::int64_t slot, bool value);

  Plan plan_{};
  std::vector<double> frequencies_;  // radians a bin, one for each rotated pair
  std::vector<std::uint32_t> valid_, conv_valid_;
  int n_valid_ = 0;
  std::int64_t position_ = 0;
};

// Everything constant, as it is copied to the device once. Addresses in `plan` are left empty.
// Throws std::invalid_argument for tensors that are missing or of another shape.
struct Layout {
  Plan plan{};
  std::vector<std::uint8_t> weights;
  std::vector<Job> jobs;  // [blocks][plan.n_jobs]
  std::vector<std::int32_t> softmax;
  std::size_t ring_floats = 0, conv_floats = 0;  // of keys and values, of embeddings
  std::size_t shared_bytes = 0, staged_bytes = 0;
  int staged = 0;  // jobs whose data reach shared memory before they are needed

  Layout(const StepShape& shape, const std::vector<ModalityShape>& modalities,
         const TensorMap& tensors, Precision precision, const Spread& spread);

 private:
  class BlockPacker;
  void stage(std::size_t room, int blocks);
};

}  // namespace neds::gpu
