#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "step_pack.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace neds {

namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

std::vector<const StepKernels*> supported_kernels() {
  std::vector<const StepKernels*> found;
#ifdef NEDS_X86_DISPATCH
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(&kernels_avx512vnni);
    found.push_back(&kernels_avx512);
  }
  if (avx2) found.push_back(&kernels_avx2);
#endif
  found.push_back(&kernels_baseline);
  return found;
}

const StepKernels* choose(std::string_view isa) {
  std::string names;
  for (const StepKernels* kernels : supported_kernels()) {
    if (isa.empty() || isa == kernels->isa) return kernels;
    names += names.empty() ? kernels->isa : std::string(", ") + kernels->isa;
  }
  throw std::invalid_argument("isa: found " + std::string(isa) + ", expected one of " + names);
}

Precision parse_precision(std::string_view name) {
  for (Precision precision : precisions)
    if (name == precision_names[static_cast<int>(precision)]) return precision;
  throw std::invalid_argument("precision: found " + std::string(name) +
                              ", expected one of float32, bf16, int8");
}

void require(bool good, const char* field, long long found, const char* expected) {
  if (!good)
    throw std::invalid_argument(std::string(field) + ": found " + std::to_string(found) +
                                ", expected " + expected);
}

void check(const StepShape& s, const std::vector<ModalityShape>& modalities) {
  constexpr int limit = 1 << 20;
  require(s.units >= 1 && s.units <= limit, "units", s.units, "1 to 1048576");
  require(s.hidden >= 1 && s.hidden <= 65536, "hidden", s.hidden, "1 to 65536");
  require(s.layers >= 1 && s.layers <= 1024, "layers", s.layers, "1 to 1024");
  require(s.heads >= 1 && s.hidden % (2 * s.heads) == 0, "heads", s.heads,
          "a number that divides hidden into even parts");
  require(s.mlp >= 1 && s.mlp <= limit, "mlp", s.mlp, "1 to 1048576");
  require(s.window >= 1 && s.window <= limit, "window", s.window, "1 to 1048576");
  require(s.conv >= 0 && s.conv <= 1024, "conv", s.conv, "0 to 1024");
  require(std::isfinite(s.rope_base) && s.rope_base >= 1.0, "rope_base",
          static_cast<long long>(std::isfinite(s.rope_base) ? s.rope_base : 0.0), "at least 1");
  require(!modalities.empty() && modalities.size() <= 256, "modalities",
          static_cast<long long>(modalities.size()), "1 to 256");
  for (const ModalityShape& modality : modalities)
    require(modality.n_outputs >= 1 && modality.n_outputs <= 65536, "n_outputs",
            modality.n_outputs, "1 to 65536");
}

const float* find(const TensorMap& tensors, const std::string& name,
                  const std::vector<std::size_t>& shape) {
  const auto text = [](const std::vector<std::size_t>& sizes) {
    std::string result = "(";
    for (std::size_t size : sizes) result += std::to_string(size) + ",";
    return result + ")";
  };
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw std::invalid_argument(name + ": found nothing, expected shape " + text(shape));
  if (found->second.shape != shape)
    throw std::invalid_argument(name + ": found shape " + text(found->second.shape) +
                                ", expected " + text(shape));
  return found->second.data;
}

void copy_rows(const float* from, std::size_t n_rows, std::size_t width, std::size_t ld, float* to) {
  for (std::size_t row = 0; row < n_rows; ++row)
    std::copy_n(from + row * width, width, to + row * ld);
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const StepKernels* kernels : supported_kernels()) names.emplace_back(kernels->isa);
  return names;
}

StepEngine::StepEngine(const StepShape& shape, const std::vector<ModalityShape>& modalities,
                       const TensorMap& tensors, std::string_view precision,
                       std::string_view isa)
    : kernels_(choose(isa)), precision_(parse_precision(precision)),
      run_(kernels_->of[static_cast<int>(precision_)]), modalities_(modalities) {
  check(shape, modalities);
  plan_.units = shape.units;
  plan_.hidden = shape.hidden;
  plan_.n_layers = shape.layers;
  plan_.heads = shape.heads;
  plan_.head_dim = shape.hidden / shape.heads;
  plan_.mlp = shape.mlp;
  plan_.window = shape.window;
  plan_.conv = shape.conv;
  plan_.recurrent = shape.recurrent;
  plan_.n_readouts = static_cast<int>(modalities.size());
  plan_.ld_hidden = round_up(static_cast<std::size_t>(shape.hidden), row_multiple);
  plan_.ld_mlp = round_up(static_cast<std::size_t>(shape.mlp), row_multiple);
  plan_.ld_scores = round_up(static_cast<std::size_t>(shape.window),
                             static_cast<std::size_t>(kernels_->ring_panel));
  layers_.resize(static_cast<std::size_t>(shape.layers));
  readouts_.resize(modalities.size());
  plan_.layers = layers_.data();
  plan_.readouts = readouts_.data();
  ones_.assign(static_cast<std::size_t>(shape.units), 1);
  const int half = plan_.head_dim / 2;
  for (int i = 0; i < half; ++i)
    frequencies_.push_back(std::pow(shape.rope_base, -static_cast<double>(i) / half));
  for (const ModalityShape& modality : modalities) n_outputs_ += modality.n_outputs;

  Arena counting(nullptr, precision_);
  lay_out(counting);
  arena_bytes_ = round_up(counting.used(), static_cast<std::size_t>(Free::page));
  memory_.reset(static_cast<std::byte*>(::operator new(arena_bytes_, Free::page)));
#ifdef __linux__
  madvise(memory_.get(), arena_bytes_, MADV_HUGEPAGE);  // only advice: fewer pages to look up
#endif
  std::memset(memory_.get(), 0, arena_bytes_);  // touches every page, and zeroes all padding
  Arena arena(memory_.get(), precision_);
  lay_out(arena);
  fill(tensors);
  reset();
}

// Weights and rings lie in the order in which a step reads them.
void StepEngine::lay_out(Arena& arena) {
  const std::size_t hidden = static_cast<std::size_t>(plan_.hidden);
  const std::size_t mlp = static_cast<std::size_t>(plan_.mlp);
  const std::size_t units = static_cast<std::size_t>(plan_.units);
  const std::size_t taps = static_cast<std::size_t>(plan_.conv);
  const std::size_t heads = static_cast<std::size_t>(plan_.heads);
  const std::size_t head_dim = static_cast<std::size_t>(plan_.head_dim);
  const std::size_t panel = static_cast<std::size_t>(kernels_->panel);
  const std::size_t ring_panel = static_cast<std::size_t>(kernels_->ring_panel);
  const std::size_t window = static_cast<std::size_t>(plan_.window);
  const Precision ring = ring_of(precision_);
  const std::size_t ld = plan_.ld_hidden;

  plan_.active = arena.take<std::int32_t>(units + 4);
  plan_.activation = arena.take(units + 4);
  plan_.input_weight = arena.take<std::byte>(units * ld * bytes_of(precision_));
  plan_.input_scale = arena.scales(units);
  plan_.input_bias = arena.take(ld);
  plan_.conv_weight = arena.take(taps * ld);
  plan_.conv_bias = arena.take(ld);
  plan_.conv_ring = arena.take(taps * ld);
  const std::size_t gates = plan_.recurrent ? 3 * ld : 0;
  plan_.gates_in = arena.linear(gates, hidden, panel);
  plan_.gate_in = arena.take(gates);
  plan_.memory = arena.take(gates / 3);
  plan_.gates_back = arena.linear(gates, hidden, panel);
  plan_.gate_back = arena.take(gates);
  plan_.next_memory = arena.take(gates / 3);
  plan_.token = arena.take(ld);
  plan_.lost = arena.take(ld);
  plan_.slot_bias = arena.take(plan_.ld_scores);
  plan_.cosine = arena.take(head_dim / 2);
  plan_.sine = arena.take(head_dim / 2);
  plan_.x = arena.take(ld);
  plan_.y = arena.take(ld);
  plan_.q = arena.take(ld);
  plan_.kv = arena.take(round_up(2 * hidden, row_multiple));
  plan_.attended = arena.take(ld);
  plan_.hidden_mlp = arena.take(plan_.ld_mlp);
  plan_.scores = arena.take(plan_.ld_scores);
  plan_.factors = arena.take<std::int16_t>(std::max(ld, plan_.ld_mlp));
  for (LayerPlan& layer : layers_) {
    layer.norm1 = arena.norm(ld);
    layer.q = arena.linear(hidden, hidden, panel);
    layer.kv = arena.linear(2 * hidden, hidden, panel);
    layer.keys = arena.panels(ring, heads * plan_.ld_scores, head_dim, ring_panel);
    layer.values = arena.panels(ring, heads * round_up(head_dim, ring_panel), window, ring_panel);
    layer.out = arena.linear(hidden, hidden, panel);
    layer.norm2 = arena.norm(ld);
    layer.up = arena.linear(mlp, hidden, panel);
    layer.down = arena.linear(hidden, mlp, panel);
  }
  plan_.norm = arena.norm(ld);
  for (std::size_t m = 0; m < modalities_.size(); ++m) {
    const std::size_t n = static_cast<std::size_t>(modalities_[m].n_outputs);
    float* const weight = arena.take(n * ld);
    readouts_[m] = {weight, arena.take(n), modalities_[m].n_outputs, modalities_[m].categorical};
  }
  outputs_ = arena.take(static_cast<std::size_t>(n_outputs_));
  discarded_ = arena.take(static_cast<std::size_t>(n_outputs_));
}

void StepEngine::fill(const TensorMap& tensors) {
  const std::size_t hidden = static_cast<std::size_t>(plan_.hidden);
  const std::size_t mlp = static_cast<std::size_t>(plan_.mlp);
  const std::size_t ld = plan_.ld_hidden;
  const Packer packer(precision_, static_cast<std::size_t>(kernels_->panel));
  const auto vector = [&](const std::string& name, float* to) {
    std::copy_n(find(tensors, name, {hidden}), hidden, to);
  };
  const auto rows = [&](const std::string& name, std::size_t n, float* to) {
    copy_rows(find(tensors, name, {n, hidden}), n, hidden, ld, to);
  };
  const auto norm = [&](const std::string& name, const Norm& to) {
    vector(name + ".weight", to.weight);
    vector(name + ".bias", to.bias);
  };
  const auto linear = [&](const std::string& name, std::size_t n, std::size_t depth,
                          const Linear& to) {
    const float* const weight = find(tensors, name + ".weight", {n, depth});
    packer.linear(weight, find(tensors, name + ".bias", {n}), n, depth, 1.0f, to);
  };

  const std::size_t units = static_cast<std::size_t>(plan_.units);
  packer.rows(find(tensors, "input.weight", {units, hidden}), units, hidden, ld, plan_.input_weight,
              plan_.input_scale);
  vector("input.bias", plan_.input_bias);
  vector("input.token", plan_.token);
  vector("input.lost", plan_.lost);
  if (plan_.conv > 0) {
    rows("conv.weight", static_cast<std::size_t>(plan_.conv), plan_.conv_weight);
    vector("conv.bias", plan_.conv_bias);
  }
  // Every gate begins at a multiple of ld, so that whole vectors of them can be put together.
  const auto gates = [&](const std::string& end, const Linear& to) {
    const float* const weight = find(tensors, "gru.weight_" + end, {3 * hidden, hidden});
    const float* const bias = find(tensors, "gru.bias_" + end, {3 * hidden});
    for (std::size_t g = 0; g < 3; ++g)
      packer.linear(weight + g * hidden * hidden, bias + g * hidden, hidden, hidden, 1.0f,
                    {to.weight + g * ld * hidden * bytes_of(precision_),
                     to.scale == nullptr ? nullptr : to.scale + g * ld, to.bias + g * ld});
  };
  if (plan_.recurrent) {
    gates("ih", plan_.gates_in);
    gates("hh", plan_.gates_back);
  }
  const float score_scale = 1.0f / std::sqrt(static_cast<float>(plan_.head_dim));
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    const LayerPlan& layer = layers_[i];
    norm(prefix + "norm1", layer.norm1);
    const float* const qkv = find(tensors, prefix + "qkv.weight", {3 * hidden, hidden});
    const float* const bias = find(tensors, prefix + "qkv.bias", {3 * hidden});
    packer.linear(qkv, bias, hidden, hidden, score_scale, layer.q);
    packer.linear(qkv + hidden * hidden, bias + hidden, 2 * hidden, hidden, 1.0f, layer.kv);
    linear(prefix + "out", hidden, hidden, layer.out);
    norm(prefix + "norm2", layer.norm2);
    linear(prefix + "up", mlp, hidden, layer.up);
    linear(prefix + "down", hidden, mlp, layer.down);
  }
  norm("norm", plan_.norm);
  const std::size_t n_outputs = static_cast<std::size_t>(n_outputs_);
  const float* weight = find(tensors, "head.weight", {n_outputs, hidden});
  const float* bias = find(tensors, "head.bias", {n_outputs});
  for (const Readout& readout : readouts_) {
    const std::size_t n = static_cast<std::size_t>(readout.n_outputs);
    copy_rows(weight, n, hidden, ld, readout.weight);
    std::copy_n(bias, n, readout.bias);
    weight += n * hidden;
    bias += n;
  }
}

void StepEngine::reset() noexcept {
  position_ = 0;
  n_valid_ = 0;
  std::fill_n(plan_.slot_bias, plan_.ld_scores, minus_infinity);
  std::fill_n(plan_.conv_ring, static_cast<std::size_t>(plan_.conv) * plan_.ld_hidden, 0.0f);
  if (plan_.recurrent) std::fill_n(plan_.memory, plan_.ld_hidden, 0.0f);
  std::fill_n(outputs_, n_outputs_, 0.0f);
}

void StepEngine::step(const std::uint16_t* counts) noexcept {
  set_phases();
  set_valid(static_cast<int>(position_ % plan_.window), counts != nullptr);
  run_.step(plan_, input(counts), outputs_);
  std::swap(plan_.memory, plan_.next_memory);
  ++position_;
}

void StepEngine::skip(std::int64_t n_bins) noexcept {
  const std::int64_t n_slots = std::min<std::int64_t>(n_bins, plan_.window);
  for (std::int64_t i = 0; i < n_slots; ++i)
    set_valid(static_cast<int>((position_ + i) % plan_.window), false);
  const std::int64_t n_runs = std::min<std::int64_t>(n_bins, plan_.recurrent ? settling_bins : plan_.conv);
  for (std::int64_t i = 0; i < n_runs; ++i) {
    const bool again = i >= std::max(plan_.conv, 1);
    const int conv_slot = plan_.conv > 0 ? static_cast<int>((position_ + i) % plan_.conv) : 0;
    run_.lose(plan_, {nullptr, 0, conv_slot, false}, again);
    if (!plan_.recurrent) continue;
    std::swap(plan_.memory, plan_.next_memory);
    // At rest to the last bit, and nothing new comes in: all bins to come are like this one.
    if (again && std::equal(plan_.memory, plan_.memory + plan_.ld_hidden, plan_.next_memory)) break;
  }
  position_ += n_bins;
}

// The slots that this writes hold what fell out of the window with the last bin, and next_memory is
// not taken over: the next bin overwrites or invalidates them before anything reads them.
void StepEngine::warm() noexcept {
  set_phases();
  run_.step(plan_, input(ones_.data()), discarded_);
}

// In double: a float angle would be off by a milliradian after an hour of bins.
void StepEngine::set_phases() noexcept {
  const double t = static_cast<double>(position_);
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    plan_.cosine[i] = static_cast<float>(std::cos(t * frequencies_[i]));
    plan_.sine[i] = static_cast<float>(std::sin(t * frequencies_[i]));
  }
}

void StepEngine::set_valid(int slot, bool valid) noexcept {
  float& bias = plan_.slot_bias[slot];
  n_valid_ += static_cast<int>(valid) - static_cast<int>(bias == 0.0f);
  bias = valid ? 0.0f : minus_infinity;
}

StepInput StepEngine::input(const std::uint16_t* counts) const noexcept {
  const int conv_slot = plan_.conv > 0 ? static_cast<int>(position_ % plan_.conv) : 0;
  return {counts, static_cast<int>(position_ % plan_.window), conv_slot, n_valid_ > 0};
}

}  // namespace neds
