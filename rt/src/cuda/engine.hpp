// The streaming step on a GPU: weights and rings on the device, one kernel a bin, launched as a
// CUDA graph; counts go in and outputs come back through host memory that both sides see.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../step.hpp"
#include "layout.hpp"

namespace neds::gpu {

struct Options {
  std::string precision = "float32";  // of the matrices: float32, bfloat16 or float16
  std::string team = "auto";          // cluster, grid; auto takes a cluster where there are any
  int blocks = 0;                     // of the team, 0 for the best known
  int threads = 0;                    // a block, 0 for the best known
  std::string input = "mapped";       // the kernel reads host memory, or "copied" before it runs
  std::string launch = "graph";       // or "direct": without a graph
  bool marks = false;                 // take the time of each phase
  double timeout_s = 2.0;             // a step that takes longer has failed
};

struct DeviceFacts {
  std::string name;
  int major, minor, multiprocessors, driver, runtime, clock_khz;
  std::size_t memory, l2, shared;
};

// Devices there are, 0 without a driver.
int device_count() noexcept;
// Throws std::runtime_error without a usable device.
DeviceFacts device_facts();

class CudaStep {
 public:
  // Throws std::invalid_argument for sizes, tensors or options that do not fit, and
  // std::runtime_error where CUDA fails.
  CudaStep(const StepShape& shape, const std::vector<ModalityShape>& modalities,
           const TensorMap& tensors, const Options& options);
  ~CudaStep();
  CudaStep(const CudaStep&) = delete;
  CudaStep& operator=(const CudaStep&) = delete;

  // Advance by one bin; null counts are a lost bin. Throws std::runtime_error when CUDA fails or
  // the step is not done in time.
  void step(const std::uint16_t* counts);
  void warm();
  // Throws where CUDA fails.
  void reset();
  // The GRU runs over StepEngine::settling_bins of them at most. Throws as step() does.
  void skip(std::int64_t n_bins);

  const float* outputs() const { return outputs_.data(); }
  int n_outputs() const { return layout_->plan.n_outputs; }
  int n_units() const { return layout_->plan.units; }
  std::int64_t position() const { return state_.position(); }
  const Layout& layout() const { return *layout_; }
  bool cluster() const { return cluster_; }
  int blocks() const { return spread_.blocks; }
  int threads() const { return spread_.threads; }

  // Clock at the end of each phase of the last step; empty unless Options::marks.
  std::vector<long long> phase_clocks() const;

  // Nanoseconds of `n` launches of an empty kernel in the same manner, each waited for.
  std::vector<std::int64_t> launch_floor(int n);
  // Clock cycles of one meeting of the team, mean of `n`.
  double meeting_cycles(int n);

 private:
  struct Device;

  void choose_team();
  void upload();
  void capture();
  void start();
  void run();
  void run_without_outputs();
  void launch(const void* kernel, const Plan& plan, std::size_t shared);
  // Until there() is true; throws std::runtime_error when CUDA fails or that takes too long.
  template <class There>
  void await(const There& there);
  int n_marks() const;

  Options options_;
  Spread spread_{};
  bool cluster_ = false;
  const void* kernel_ = nullptr;
  std::unique_ptr<Layout> layout_;
  StreamState state_;
  Plan plan_{};
  std::unique_ptr<Device> device_;
  std::uint8_t* input_ = nullptr;  // host memory
  volatile Output* arriving_ = nullptr;  // host memory that the device writes
  std::vector<float> outputs_;
  volatile std::uint32_t* done_ = nullptr;
  std::uint32_t sequence_ = 0;
};

}  // namespace neds::gpu
