// The GPU step's own source run by CPU threads: a block is a set of threads, a warp is one thread
// of one lane, barriers are std::barrier, and copies to shared memory arrive as late as they may.
// Built with -fsanitize=thread, missing barriers are found as races.
#include <array>
#include <atomic>
#include <barrier>
#include <bit>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cuda/layout.hpp"
#include "cuda/phases.hpp"

namespace {

using namespace neds;
using namespace neds::gpu;

struct Machine {
  Machine(int n_blocks, int n_threads, std::size_t shared_floats)
      : everyone(n_blocks * n_threads), received(static_cast<std::size_t>(n_blocks)) {
    for (int i = 0; i < n_blocks; ++i) {
      blocks.push_back(std::make_unique<std::barrier<>>(n_threads));
      shared.emplace_back(shared_floats + 4, NAN);
    }
  }
  float* memory(int block) {  // aligned as shared memory is
    auto address = reinterpret_cast<std::uintptr_t>(shared[static_cast<std::size_t>(block)].data());
    return reinterpret_cast<float*>((address + 15) / 16 * 16);
  }
  std::barrier<> everyone;
  std::vector<std::unique_ptr<std::barrier<>>> blocks;
  std::vector<std::vector<float>> shared;
  std::vector<std::array<std::atomic<long>, 2>> received;  // floats counted at a block's barriers
  std::atomic<bool> miscounted{false};
};

template <bool CLUSTER>
struct EmulatedTeam {
  Machine& machine;
  const Plan& p;
  int index, count, thread, threads;
  float* shared;
  std::deque<std::function<void()>> groups{};
  unsigned meetings = 0;
  std::array<long, 2> expected{};

  void block_sync() { machine.blocks[static_cast<std::size_t>(index)]->arrive_and_wait(); }
  void warp_sync() {}
  void arrive() {}
  void started() { machine.everyone.arrive_and_wait(); }
  vec4 read_input(const vec4* from) { return *from; }

  void send(int offset, float value, int copy, int copies) {
    if (!CLUSTER && copy == 0) p.exchange[offset] = value;
    if (CLUSTER)
      for (int block = copy; block < count; block += copies) {
        machine.memory(block)[offset] = value;
        machine.received[static_cast<std::size_t>(block)][meetings & 1].fetch_add(1);
      }
  }
  void send_tile(int offset, float value, int copy) { send(offset, value, copy, 1); }
  void send4(int offset, vec4 v) {
    send(offset, v.x, 0, 1);
    send(offset + 1, v.y, 0, 1);
    send(offset + 2, v.z, 0, 1);
    send(offset + 3, v.w, 0, 1);
  }
  void nothing() {
    if (CLUSTER && thread == 0) send(p.s_nothing, 0.0f, 0, 1);
  }
  void meet(int offset, int n, int sent) {
    if (CLUSTER) {
      // Exactly those: one more, and a block would be two meetings ahead.
      auto& received = machine.received[static_cast<std::size_t>(index)][meetings & 1];
      const long all = expected[meetings & 1] += sent;
      while (received.load() < all) std::this_thread::yield();
      if (received.load() != all) machine.miscounted = true;
    } else {
      machine.everyone.arrive_and_wait();
      for (int i = thread; i < n; i += threads) shared[offset + i] = p.exchange[offset + i];
    }
    ++meetings;
  }

  bool loads() const { return true; }
  void load(int, void* to, const void* from, int bytes) {
    groups.push_back([=, this] {
      for (int i = thread * 16; i < bytes; i += threads * 16)
        std::memcpy(static_cast<char*>(to) + i, static_cast<const char*>(from) + i, 16);
    });
  }
  void wait(int i, int loaded) {
    for (; static_cast<int>(groups.size()) > loaded - 1 - i; groups.pop_front()) groups.front()();
  }
  void mark(int) {}
};

template <class Weight, bool CLUSTER>
bool launch(const Plan& plan, const Spread& spread, std::size_t shared_bytes) {
  Machine machine(spread.blocks, spread.threads, shared_bytes / sizeof(float));
  std::vector<std::jthread> threads;
  for (int block = 0; block < spread.blocks; ++block)
    for (int thread = 0; thread < spread.threads; ++thread)
      threads.emplace_back([&, block, thread] {
        EmulatedTeam<CLUSTER> team{machine, plan, block, spread.blocks, thread, spread.threads,
                                   machine.memory(block)};
        Step<Weight, EmulatedTeam<CLUSTER>>(plan, team).run();
      });
  threads.clear();  // joins them
  return !machine.miscounted;
}

using Launch = bool (*)(const Plan&, const Spread&, std::size_t);

template <class Weight>
Launch choose(bool cluster) {
  return cluster ? launch<Weight, true> : launch<Weight, false>;
}

}  // namespace

// Run `bins` bins. sizes: units, hidden, layers, heads, mlp, window, conv, recurrent; how: precision,
// blocks, threads, shared bytes, in a cluster, dry run before each step, lost bins are skipped.
// Returns the chunks that were staged ahead, or -1 for sizes that do not fit.
extern "C" int emulate(const int* sizes, double rope_base, int n_modalities, const int* modalities,
                       int n_tensors, const char** names, const float** data, const int* dims,
                       const int* how, int bins, const std::uint16_t* counts,
                       const std::uint8_t* present, float* outputs) {
  const StepShape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],
                        sizes[7] != 0, rope_base};
  std::vector<ModalityShape> parts;
  for (int m = 0; m < n_modalities; ++m) parts.push_back({modalities[2 * m], modalities[2 * m + 1] != 0});
  TensorMap tensors;
  for (int i = 0; i < n_tensors; ++i) {
    std::vector<std::size_t> size{static_cast<std::size_t>(dims[2 * i])};
    if (dims[2 * i + 1]) size.push_back(static_cast<std::size_t>(dims[2 * i + 1]));
    tensors[names[i]] = {data[i], size};
  }
  const auto precision = static_cast<gpu::Precision>(how[0]);
  const Spread spread{how[1], how[2], lanes, static_cast<std::size_t>(how[3])};
  std::unique_ptr<Layout> layout;
  try {
    layout = std::make_unique<Layout>(shape, parts, tensors, precision, spread);
  } catch (const std::invalid_argument&) {
    return -1;
  }

  const auto floats = [](std::size_t n) { return std::vector<vec4>((n + 3) / 4 + 1); };
  const auto at = [](std::vector<vec4>& v) { return reinterpret_cast<float*>(v.data()); };
  auto rings = floats(layout->ring_floats);
  auto conv = floats(layout->conv_floats);
  auto weights = floats(layout->weights.size() / 4);
  auto memory = floats(static_cast<std::size_t>(layout->plan.ld_hidden));
  auto exchange = floats(layout->shared_bytes / 4), input = floats(layout->plan.in_bytes / 4);
  std::memcpy(at(weights), layout->weights.data(), layout->weights.size());
  volatile std::uint32_t done = 0;

  Plan plan = layout->plan;
  plan.weights = reinterpret_cast<const std::uint8_t*>(weights.data());
  plan.softmax = layout->softmax.data();
  plan.jobs = layout->jobs.data();
  plan.rings = at(rings);
  plan.conv_ring = at(conv);
  plan.memory = at(memory);
  plan.exchange = at(exchange);
  auto* buffer = reinterpret_cast<std::uint8_t*>(input.data());
  plan.input = buffer;
  plan.done = &done;

  const bool cluster = how[4] != 0;
  const Launch run = precision == gpu::Precision::float32    ? choose<float>(cluster)
                     : precision == gpu::Precision::bfloat16 ? choose<Bf16>(cluster)
                                                             : choose<Half>(cluster);
  StreamState state(layout->plan, rope_base);
  const auto n_outputs = static_cast<std::size_t>(plan.n_outputs);
  std::vector<Output> arrived(n_outputs);
  plan.outputs = arrived.data();
  std::uint32_t sequence = 0;
  for (int t = 0; t < bins; ++t) {
    if (how[5]) {
      state.write(buffer, ++sequence, nullptr, true);
      if (!run(plan, spread, layout->shared_bytes) || done != sequence) return -2;
    }
    const std::uint16_t* row = counts + static_cast<std::size_t>(t) * static_cast<std::size_t>(shape.units);
    if (how[6] && !present[t]) {
      if (plan.recurrent) {
        state.write_skipped(buffer, ++sequence);
        if (!run(plan, spread, layout->shared_bytes) || done != sequence) return -2;
      } else {
        state.skip(1);
      }
      continue;
    }
    state.write(buffer, ++sequence, present[t] ? row : nullptr, false);
    if (!run(plan, spread, layout->shared_bytes)) return -2;
    for (std::size_t i = 0; i < n_outputs; ++i) {
      if (arrived[i] >> 32 != sequence) return -2;
      outputs[static_cast<std::size_t>(t) * n_outputs + i] =
          std::bit_cast<float>(static_cast<std::uint32_t>(arrived[i]));
    }
  }
  return layout->staged;
}
