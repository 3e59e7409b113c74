#include "engine.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "kernels.hpp"

namespace neds::gpu {

namespace {

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // not left for the next call to find
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(code));
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, 0), "device attribute");
  return value;
}

Precision precision_of(const std::string& name) {
  if (name == "float32") return Precision::float32;
  if (name == "bfloat16") return Precision::bfloat16;
  if (name == "float16") return Precision::float16;
  throw std::invalid_argument("precision: found " + name + ", expected float32, bfloat16 or float16");
}

const void* choose_kernel(Precision precision, bool cluster) {
  switch (precision) {
    case Precision::float32: return kernel_float32(cluster);
    case Precision::bfloat16: return kernel_bfloat16(cluster);
    default: return kernel_float16(cluster);
  }
}

void require_one_of(const std::string& found, const char* field,
                    const std::vector<std::string>& allowed) {
  if (std::find(allowed.begin(), allowed.end(), found) != allowed.end()) return;
  std::string text;
  for (const std::string& name : allowed) text += (text.empty() ? "" : " or ") + name;
  throw std::invalid_argument(std::string(field) + ": found " + found + ", expected " + text);
}

// Twelve warps a block, or as many more as make one pass less over the window's slots.
int best_threads(const StepShape& shape) {
  const int dims = std::max(1, shape.hidden / std::max(1, shape.heads));
  int slots = 32;  // that a warp attends to at once, four dimensions a lane
  while (slots > 1 && 32 / slots * 4 < dims) slots /= 2;
  const auto passes = [&](int warps) { return (shape.window + warps * slots - 1) / (warps * slots); };
  for (int warps = 12; warps < 16; ++warps)
    if (passes(warps) == passes(16)) return 32 * warps;
  return 512;
}

}  // namespace

// Everything that has to be given back, in the order it was taken.
struct CudaStep::Device {
  cudaStream_t stream = nullptr;
  cudaGraphExec_t graph = nullptr;
  std::vector<void*> device_memory, host_memory;
  bool lost = false;

  ~Device() {
    if (lost) return;  // every call below would wait for a step that never ends
    if (stream) cudaStreamSynchronize(stream);
    if (graph) cudaGraphExecDestroy(graph);
    if (stream) cudaStreamDestroy(stream);
    for (void* p : device_memory) cudaFree(p);
    for (void* p : host_memory) cudaFreeHost(p);
  }

  template <class T>
  T* take(std::size_t n) {
    void* p = nullptr;
    const std::size_t bytes = std::max<std::size_t>(n * sizeof(T), 16);
    check(cudaMalloc(&p, bytes), "device memory");
    device_memory.push_back(p);
    check(cudaMemset(p, 0, bytes), "clear device memory");
    return static_cast<T*>(p);
  }

  template <class T>
  T* copy(const std::vector<T>& from) {
    T* to = take<T>(from.size());
    if (!from.empty())
      check(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
    return to;
  }

  // Host memory that the device sees at `seen`.
  template <class T>
  T* share(std::size_t n, T** seen) {
    void *p = nullptr, *q = nullptr;
    const std::size_t bytes = std::max<std::size_t>(n * sizeof(T), 64);
    check(cudaHostAlloc(&p, bytes, cudaHostAllocMapped | cudaHostAllocPortable), "host memory");
    host_memory.push_back(p);
    std::memset(p, 0, bytes);
    check(cudaHostGetDevicePointer(&q, p, 0), "map host memory");
    *seen = static_cast<T*>(q);
    return static_cast<T*>(p);
  }
};

int device_count() noexcept {
  int n = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return n;
}

DeviceFacts device_facts() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "device properties");
  DeviceFacts facts{};
  facts.name = properties.name;
  facts.major = properties.major;
  facts.minor = properties.minor;
  facts.multiprocessors = properties.multiProcessorCount;
  facts.memory = properties.totalGlobalMem;
  facts.l2 = static_cast<std::size_t>(properties.l2CacheSize);
  facts.shared = properties.sharedMemPerBlockOptin;
  facts.clock_khz = attribute(cudaDevAttrClockRate);
  check(cudaDriverGetVersion(&facts.driver), "driver version");
  check(cudaRuntimeGetVersion(&facts.runtime), "runtime version");
  return facts;
}

CudaStep::CudaStep(const StepShape& shape, const std::vector<ModalityShape>& modalities,
                   const TensorMap& tensors, const Options& options)
    : options_(options), device_(std::make_unique<Device>()) {
  require_one_of(options.team, "team", {"auto", "cluster", "grid"});
  require_one_of(options.input, "input", {"mapped", "copied"});
  require_one_of(options.launch, "launch", {"graph", "direct"});
  const Precision precision = precision_of(options.precision);
  check(cudaSetDevice(0), "select device 0");
  check(cudaStreamCreateWithFlags(&device_->stream, cudaStreamNonBlocking), "create a stream");
  spread_.lanes = 32;
  spread_.threads = options.threads ? options.threads : best_threads(shape);
  if (spread_.threads % 32 || spread_.threads < 32 || spread_.threads > max_threads)
    throw std::invalid_argument("threads: found " + std::to_string(spread_.threads) +
                                ", expected a multiple of 32 up to " + std::to_string(max_threads));
  spread_.shared = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  choose_team();
  kernel_ = choose_kernel(precision, cluster_);
  layout_ = std::make_unique<Layout>(shape, modalities, tensors, precision, spread_);
  state_ = StreamState(layout_->plan, shape.rope_base);
  upload();
  capture();
}

CudaStep::~CudaStep() = default;

void CudaStep::choose_team() {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  const bool possible = major >= 9;
  if (options_.team == "cluster" && !possible)
    throw std::invalid_argument("team: found cluster, expected grid below compute capability 9.0");
  cluster_ = options_.team == "cluster" || (options_.team == "auto" && possible);
  if (!cluster_) {
    const int all = attribute(cudaDevAttrMultiProcessorCount);
    spread_.blocks = options_.blocks ? options_.blocks : std::min(all, 64);
    if (spread_.blocks < 1 || spread_.blocks > all)
      throw std::invalid_argument("blocks: found " + std::to_string(spread_.blocks) +
                                  ", expected 1 to " + std::to_string(all));
    return;
  }
  // The largest cluster that fits: 16 blocks on data-centre GPUs, 8 elsewhere.
  const void* kernel = choose_kernel(precision_of(options_.precision), true);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(spread_.shared)), "shared memory");
  for (int blocks : {16, 8, 4, 2, 1}) {
    if (options_.blocks && blocks != options_.blocks) continue;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(spread_.threads));
    config.dynamicSmemBytes = spread_.shared;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int fit = 0;
    if (cudaOccupancyMaxActiveClusters(&fit, kernel, &config) == cudaSuccess && fit > 0) {
      spread_.blocks = blocks;
      return;
    }
    cudaGetLastError();
  }
  throw std::invalid_argument("blocks: found " + std::to_string(options_.blocks) +
                              ", expected a size of cluster that this GPU has");
}

void CudaStep::upload() {
  Device& d = *device_;
  plan_ = layout_->plan;
  plan_.weights = d.copy(layout_->weights);
  plan_.softmax = d.copy(layout_->softmax);
  plan_.jobs = d.copy(layout_->jobs);
  plan_.rings = d.take<float>(layout_->ring_floats);
  plan_.conv_ring = d.take<float>(layout_->conv_floats);
  plan_.memory = d.take<float>(static_cast<std::size_t>(plan_.ld_hidden));
  plan_.exchange = d.take<float>(layout_->shared_bytes / sizeof(float));
  plan_.barrier = d.take<unsigned>(32);
  if (options_.marks)
    plan_.marks = d.take<long long>(static_cast<std::size_t>(n_marks()));
  std::uint8_t* input = nullptr;
  input_ = d.share(plan_.in_bytes, &input);
  plan_.input = options_.input == "copied" ? d.take<std::uint8_t>(plan_.in_bytes) : input;
  Output* outputs = nullptr;
  arriving_ = d.share(static_cast<std::size_t>(plan_.n_outputs), &outputs);
  plan_.outputs = outputs;
  outputs_.assign(static_cast<std::size_t>(plan_.n_outputs), 0.0f);
  std::uint32_t* done = nullptr;
  done_ = d.share(16, &done);
  plan_.done = done;
  check(cudaFuncSetAttribute(kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(layout_->shared_bytes)), "shared memory");
  check(cudaDeviceSynchronize(), "upload");
}

void CudaStep::launch(const void* kernel, const Plan& plan, std::size_t shared) {
  if (options_.input == "copied")
    check(cudaMemcpyAsync(const_cast<std::uint8_t*>(plan.input), input_, plan.in_bytes,
                          cudaMemcpyHostToDevice, device_->stream), "copy the input");
  cudaLaunchAttribute attribute{};
  if (cluster_) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(spread_.blocks), 1, 1};
  } else {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(spread_.blocks));
  config.blockDim = dim3(static_cast<unsigned>(spread_.threads));
  config.dynamicSmemBytes = shared;
  config.stream = device_->stream;
  config.attrs = &attribute;
  config.numAttrs = spread_.blocks > 1;
  void* arguments[] = {const_cast<Plan*>(&plan)};
  check(cudaLaunchKernelExC(&config, kernel, arguments), "launch");
}

void CudaStep::capture() {
  if (device_->graph) check(cudaGraphExecDestroy(device_->graph), "graph");
  device_->graph = nullptr;
  if (options_.launch == "direct") return;
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(device_->stream, cudaStreamCaptureModeThreadLocal), "capture");
  launch(kernel_, plan_, layout_->shared_bytes);
  check(cudaStreamEndCapture(device_->stream, &graph), "capture");
  const cudaError_t code = cudaGraphInstantiate(&device_->graph, graph, 0);
  cudaGraphDestroy(graph);
  check(code, "instantiate the graph");
  check(cudaGraphUpload(device_->graph, device_->stream), "upload the graph");
  check(cudaStreamSynchronize(device_->stream), "upload the graph");
}

void CudaStep::start() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (device_->graph)
    check(cudaGraphLaunch(device_->graph, device_->stream), "launch the graph");
  else
    launch(kernel_, plan_, layout_->shared_bytes);
}

template <class There>
void CudaStep::await(const There& there) {
  using Clock = std::chrono::steady_clock;
  const auto limit = Clock::now() + std::chrono::duration<double>(options_.timeout_s);
  for (unsigned spins = 1; !there(); ++spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spins % 4096) continue;
    const cudaError_t state = cudaStreamQuery(device_->stream);
    if (state != cudaSuccess && state != cudaErrorNotReady) check(state, "step");
    if (Clock::now() <= limit) continue;
    device_->lost = true;
    throw std::runtime_error("CUDA: step: found no result in time, expected one within " +
                               std::to_string(options_.timeout_s) + " s");
  }
  std::atomic_thread_fence(std::memory_order_acquire);
}

void CudaStep::run_without_outputs() {
  start();
  await([&] { return *done_ == sequence_; });
}

void CudaStep::run() {
  start();
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    Output found = 0;
    await([&] { return (found = arriving_[i]) >> 32 == sequence_; });
    outputs_[i] = std::bit_cast<float>(static_cast<std::uint32_t>(found));
  }
}

void CudaStep::reset() {
  state_.reset();
  check(cudaMemsetAsync(plan_.memory, 0, static_cast<std::size_t>(plan_.ld_hidden) * sizeof(float),
                        device_->stream), "reset");
}

void CudaStep::step(const std::uint16_t* counts) {
  state_.write(input_, ++sequence_, counts, false);
  run();
}

void CudaStep::skip(std::int64_t n_bins) {
  const std::int64_t n_runs =
      plan_.recurrent ? std::min(n_bins, std::int64_t{StepEngine::settling_bins}) : 0;
  for (std::int64_t i = 0; i < n_runs; ++i) {
    state_.write_skipped(input_, ++sequence_);
    run_without_outputs();
  }
  state_.skip(n_bins - n_runs);
}

void CudaStep::warm() {
  state_.write(input_, ++sequence_, nullptr, true);
  run_without_outputs();
}

// The beginning and every job's end.
int CudaStep::n_marks() const { return 1 + plan_.n_jobs; }

std::vector<long long> CudaStep::phase_clocks() const {
  if (!plan_.marks) return {};
  std::vector<long long> clocks(static_cast<std::size_t>(n_marks()));
  check(cudaStreamSynchronize(device_->stream), "wait");
  check(cudaMemcpy(clocks.data(), plan_.marks, clocks.size() * sizeof(long long),
                   cudaMemcpyDeviceToHost), "read the clocks");
  return clocks;
}

std::vector<std::int64_t> CudaStep::launch_floor(int n) {
  const void* const kernel = kernel_;
  const std::size_t shared = layout_->shared_bytes;
  std::vector<std::int64_t> took;
  const int blocks = spread_.blocks;
  spread_.blocks = 1;
  kernel_ = kernel_nothing();
  layout_->shared_bytes = 0;
  capture();
  for (int i = 0; i < n; ++i) {
    const auto start = std::chrono::steady_clock::now();
    reinterpret_cast<InputHeader*>(input_)->sequence = ++sequence_;
    run_without_outputs();
    took.push_back((std::chrono::steady_clock::now() - start).count());
  }
  kernel_ = kernel;
  layout_->shared_bytes = shared;
  spread_.blocks = blocks;
  capture();
  return took;
}

double CudaStep::meeting_cycles(int n) {
  const void* const kernel = kernel_meetings(cluster_);
  if (cluster_)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(layout_->shared_bytes)), "shared memory");
  Plan plan = plan_;
  plan.layers = n;
  long long* clocks = device_->take<long long>(2);
  plan.marks = clocks;
  for (int i = 0; i < 3; ++i) launch(kernel, plan, layout_->shared_bytes);
  check(cudaStreamSynchronize(device_->stream), "meetings");
  long long found[2];
  check(cudaMemcpy(found, clocks, sizeof found, cudaMemcpyDeviceToHost), "read the clocks");
  return static_cast<double>(found[1] - found[0]) / n;
}

}  // namespace neds::gpu
