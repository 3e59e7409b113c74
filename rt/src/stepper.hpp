// What the pipeline asks of an engine.
#pragma once

#include <cstdint>

namespace neds {

// Any of these may throw; the engine is then not to be used again.
class Stepper {
 public:
  Stepper() = default;
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;
  virtual ~Stepper() = default;

  virtual void reset() = 0;
  // Advances by one bin, lost for present == false; returns as many floats as the encoder takes.
  virtual const float* step(const std::uint16_t* counts, bool present) = 0;
  virtual void skip(std::int64_t n_bins) = 0;
};

}  // namespace neds
