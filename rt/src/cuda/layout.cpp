#include "layout.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace neds::gpu {

namespace {

template <class T>
T round_up(T n, T multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

const float* find(const TensorMap& tensors, const std::string& name,
                  const std::vector<std::size_t>& shape) {
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw std::invalid_argument(name + ": found nothing, expected a tensor");
  if (found->second.shape != shape)
    throw std::invalid_argument(name + ": found another shape, expected that of the model");
  return found->second.data;
}

std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);  // to even
}

// Round to nearest even; beyond the range, to the largest number.
std::uint16_t to_float16(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::min(std::fabs(value), 65504.0f);
  if (size == 0.0f) return sign;
  const int exponent = std::max(std::ilogb(size), -14);
  long fraction = std::lrint(std::ldexp(size, 10 - exponent));  // 1024 .. 2048, less if subnormal
  if (fraction < 1024) return static_cast<std::uint16_t>(sign | fraction);
  return static_cast<std::uint16_t>(sign | (static_cast<long>(exponent + 15) * 1024 + fraction - 1024));
}

// Appends matrices in the type of the weights: rows padded with zeros, each followed by its bias.
class Packer {
 public:
  Packer(std::vector<std::uint8_t>& to, Precision precision) : to_(to), precision_(precision) {}

  // Elements so far.
  std::size_t size() const { return to_.size() / bytes_of(precision_); }

  // `at(row, column)` and `bias(row)` for n rows of `depth`, padded to `ld`.
  template <class At, class Bias>
  void append(int n, int depth, int ld, const At& at, const Bias& bias) {
    for (int row = 0; row < n; ++row) {
      for (int k = 0; k < ld; ++k) push(k < depth ? at(row, k) : 0.0f);
      const float after[bias_bytes / sizeof(float)] = {bias(row)};
      const auto* bytes = reinterpret_cast<const std::uint8_t*>(after);
      to_.insert(to_.end(), bytes, bytes + bias_bytes);
    }
  }

 private:
  void push(float value) {
    const std::size_t size = bytes_of(precision_), old = to_.size();
    const std::uint16_t bits = precision_ == Precision::bfloat16 ? to_bfloat16(value)
                               : precision_ == Precision::float16 ? to_float16(value) : 0;
    to_.resize(old + size);
    std::memcpy(to_.data() + old, size == 4 ? static_cast<const void*>(&value) : &bits, size);
  }

  std::vector<std::uint8_t>& to_;
  Precision precision_;
};

// Places chunks in a ring of `room` bytes: each as early as the bytes it takes are free.
std::vector<Chunk> schedule(const std::vector<std::size_t>& sizes, std::size_t room) {
  struct Live {
    std::size_t begin, end;
    int chunk;
  };
  std::vector<Chunk> chunks;
  std::vector<Live> live;
  std::size_t cursor = 0;
  int issue = 0;
  for (int chunk = 0; chunk < static_cast<int>(sizes.size()); ++chunk) {
    issue = std::max(issue, chunk + 1 - max_in_flight);
    const std::size_t size = round_up<std::size_t>(sizes[static_cast<std::size_t>(chunk)], 128);
    if (size == 0 || size > room) {
      chunks.push_back({-1, issue});
      continue;
    }
    if (cursor + size > room) cursor = 0;
    for (const Live& other : live)
      if (other.begin < cursor + size && cursor < other.end) issue = std::max(issue, other.chunk + 1);
    std::erase_if(live, [&](const Live& other) { return other.chunk < issue; });
    live.push_back({cursor, cursor + size, chunk});
    chunks.push_back({static_cast<std::int32_t>(cursor), issue});
    cursor += size;
  }
  return chunks;
}

// Hands out runs of floats, each begun at a multiple of four.
class Offsets {
 public:
  int take(int n) {
    const int here = used_;
    used_ += round_up(n, 4);
    return here;
  }
  int used() const { return used_; }

 private:
  int used_ = 0;
};

void set_sizes(Plan& p, const StepShape& shape, const std::vector<ModalityShape>& modalities) {
  p.units = shape.units;
  p.hidden = shape.hidden;
  p.layers = shape.layers;
  p.heads = shape.heads;
  p.head_dim = shape.hidden / shape.heads;
  p.mlp = shape.mlp;
  p.window = shape.window;
  p.conv = shape.conv;
  p.recurrent = shape.recurrent;
  p.ld_units = round_up(shape.units, 8);
  p.ld_hidden = round_up(shape.hidden, 8);
  p.ld_mlp = round_up(shape.mlp, 8);
  p.ld_head = round_up(p.head_dim, 4);
  for (const ModalityShape& modality : modalities) p.n_outputs += modality.n_outputs;
}

std::size_t size(int n) { return static_cast<std::size_t>(n); }

// Bytes of what a block needs in each phase: its rows with their biases, and norms after them.
std::vector<std::size_t> chunk_sizes(const Plan& p, Precision precision, int blocks) {
  const auto rows = [&](int n, int ld) {
    return size(share_of(n, 0, blocks).count) * (size(ld) * bytes_of(precision) + bias_bytes);
  };
  const std::size_t norm = 2 * size(p.ld_hidden) * sizeof(float);
  std::vector<std::size_t> sizes{rows(p.hidden, p.ld_units)};
  if (p.recurrent) sizes.push_back(6 * rows(p.hidden, p.ld_hidden));
  for (int layer = 0; layer < p.layers; ++layer)
    sizes.insert(sizes.end(), {rows(3 * p.hidden, p.ld_hidden) + norm,
                               2 * size(p.window) * size(p.ld_head) * sizeof(float),
                               rows(p.hidden, p.ld_hidden), rows(p.mlp, p.ld_hidden) + norm,
                               rows(p.hidden, p.ld_mlp)});
  sizes.push_back(norm + size(p.n_outputs) * (size(p.ld_hidden) * sizeof(float) + bias_bytes));
  return sizes;
}

// The input buffer: header, phases, validity bits, counts.
void lay_out_input(Plan& p) {
  std::size_t used = sizeof(InputHeader);
  const auto take = [&](std::size_t bytes) {
    const std::size_t here = used;
    used += round_up<std::size_t>(bytes, 16);
    return here;
  };
  p.in_cosine = take(sizeof(float) * static_cast<std::size_t>(p.head_dim / 2));
  p.in_sine = take(sizeof(float) * static_cast<std::size_t>(p.head_dim / 2));
  p.in_valid = take(4 * static_cast<std::size_t>((p.window + 31) / 32));
  p.in_conv_valid = take(4 * static_cast<std::size_t>((p.conv + 31) / 32));
  p.in_counts = take(2 * static_cast<std::size_t>(p.units));
  p.in_bytes = used;
}

void lay_out_shared(Plan& p, const Spread& spread) {
  Offsets shared;
  const int warps = spread.threads / spread.lanes, ld_q = p.heads * p.ld_head;
  const int own = share_of(p.hidden, 0, spread.blocks).count;
  p.s_input = shared.take(static_cast<int>(p.in_bytes / sizeof(float)));
  p.s_chunks = shared.take(p.n_chunks() * static_cast<int>(sizeof(Chunk) / sizeof(float)));
  p.s_softmax = shared.take(2 * p.n_softmax);
  p.s_barriers = shared.take(4);
  p.s_nothing = shared.take(1);
  p.s_counts = shared.take(p.ld_units);  // from here on all is zero before the first meeting
  p.s_memory = shared.take(p.recurrent ? p.ld_hidden : 0);
  p.s_gates = shared.take(p.recurrent ? 6 * own : 0);
  p.s_stem = shared.take((stem_fields + 2 * p.conv) * own);
  p.s_x = shared.take(p.ld_hidden);
  p.s_x2 = shared.take(p.ld_hidden);
  p.s_qkv = shared.take(3 * ld_q);
  p.s_attended = shared.take(p.ld_hidden);
  p.s_inner = shared.take(p.ld_mlp);
  p.s_query = shared.take(p.ld_head);
  p.s_own = shared.take(2 * p.ld_head);
  p.s_scores = shared.take(p.window);
  p.s_parts = shared.take(warps * p.ld_head);
  p.s_tops = shared.take(2 * warps);
  p.s_raw = shared.take(p.n_outputs);
  p.s_stage = round_up(shared.used(), 32);
}

}  // namespace

std::size_t bytes_of(Precision precision) { return precision == Precision::float32 ? 4 : 2; }

void Layout::pack_stem(const TensorMap& tensors, Precision precision) {
  Plan& p = plan;
  const std::size_t h = size(p.hidden);
  Packer packer(weights, precision);
  if (p.recurrent)
    for (const char* which : {"ih", "hh"}) {
      // One gate after the other; here, by feature.
      const float* gates = find(tensors, std::string("gru.weight_") + which, {3 * h, h});
      const float* bias = find(tensors, std::string("gru.bias_") + which, {3 * h});
      (which[0] == 'i' ? p.w_gates : p.w_gates_back) = packer.size();
      const auto row_of = [&](int row) { return size(row % 3) * h + size(row / 3); };
      packer.append(3 * p.hidden, p.hidden, p.ld_hidden,
                    [&](int row, int k) { return gates[row_of(row) * h + size(k)]; },
                    [&](int row) { return bias[row_of(row)]; });
    }
  p.w_input = packer.size();
  const float* input = find(tensors, "input.weight", {size(p.units), h});
  const float* bias = find(tensors, "input.bias", {h});
  packer.append(p.hidden, p.units, p.ld_units,
                [&](int o, int u) { return input[size(u) * h + size(o)]; },
                [&](int o) { return bias[o]; });
  p.w_layers = packer.size();
  p.f_token = keep(find(tensors, "input.token", {h}), h);
  p.f_lost = keep(find(tensors, "input.lost", {h}), h);
  if (!p.conv) return;
  p.f_conv_weight = keep(find(tensors, "conv.weight", {size(p.conv), h}), size(p.conv) * h);
  p.f_conv_bias = keep(find(tensors, "conv.bias", {h}), h);
}

void Layout::pack_layers(const TensorMap& tensors, Precision precision) {
  Plan& p = plan;
  Packer packer(weights, precision);
  p.f_layers = floats.size();
  for (int layer = 0; layer < p.layers; ++layer) {
    const std::string name = "layers." + std::to_string(layer) + ".";
    const std::size_t f = floats.size(), w = packer.size();
    const auto matrix = [&](const std::string& part, int n, int depth, int ld) {
      const float* data = find(tensors, name + part + ".weight", {size(n), size(depth)});
      const float* bias = find(tensors, name + part + ".bias", {size(n)});
      const std::size_t here = packer.size() - w;
      packer.append(n, depth, ld, [&](int o, int k) { return data[size(o) * size(depth) + size(k)]; },
                    [&](int o) { return bias[o]; });
      return here;
    };
    keep_norm(tensors, name + "norm1");
    p.f_norm2 = keep_norm(tensors, name + "norm2") - f;
    p.f_layer_stride = floats.size() - f;
    matrix("qkv", 3 * p.hidden, p.hidden, p.ld_hidden);
    p.w_out = matrix("out", p.hidden, p.hidden, p.ld_hidden);
    p.w_up = matrix("up", p.mlp, p.hidden, p.ld_hidden);
    p.w_down = matrix("down", p.hidden, p.mlp, p.ld_mlp);
    p.w_layer_stride = packer.size() - w;
  }
}

void Layout::pack_head(const TensorMap& tensors) {
  Plan& p = plan;
  const std::size_t h = size(p.hidden), ld = size(p.ld_hidden), n = size(p.n_outputs);
  const float* weight = find(tensors, "head.weight", {n, h});
  const float* bias = find(tensors, "head.bias", {n});
  p.f_norm = keep_norm(tensors, "norm");
  for (std::size_t o = 0; o < n; ++o) {
    const std::size_t here = floats.size();
    floats.resize(here + ld + bias_bytes / sizeof(float), 0.0f);
    std::copy_n(weight + o * h, h, floats.data() + here);
    floats[here + ld] = bias[o];
  }
}

std::size_t Layout::keep(const float* data, std::size_t n) {
  const std::size_t here = floats.size();
  floats.insert(floats.end(), data, data + n);
  floats.resize(round_up<std::size_t>(floats.size(), 4), 0.0f);
  return here;
}

// Weights, then biases, each padded with zeros to ld_hidden: what is padding stays zero.
std::size_t Layout::keep_norm(const TensorMap& tensors, const std::string& name) {
  const std::size_t h = size(plan.hidden), ld = size(plan.ld_hidden), here = floats.size();
  floats.resize(here + 2 * ld, 0.0f);
  std::copy_n(find(tensors, name + ".weight", {h}), h, floats.data() + here);
  std::copy_n(find(tensors, name + ".bias", {h}), h, floats.data() + here + ld);
  return here;
}

Layout::Layout(const StepShape& shape, const std::vector<ModalityShape>& modalities,
               const TensorMap& tensors, Precision precision, const Spread& spread) {
  Plan& p = plan;
  set_sizes(p, shape, modalities);
  int begin = 0;
  for (const ModalityShape& modality : modalities) {
    if (modality.categorical) softmax.insert(softmax.end(), {begin, modality.n_outputs});
    begin += modality.n_outputs;
  }
  p.n_softmax = static_cast<int>(softmax.size() / 2);
  lay_out_input(p);
  lay_out_shared(p, spread);
  const std::size_t fixed = static_cast<std::size_t>(p.s_stage) * sizeof(float);
  if (fixed > spread.shared)
    throw std::invalid_argument("activations of " + std::to_string(fixed) + " bytes, of which a "
                                "block holds " + std::to_string(spread.shared));
  pack_stem(tensors, precision);
  pack_layers(tensors, precision);
  pack_head(tensors);
  ring_floats = size(p.layers) * size(p.heads) * size(p.window) * size(p.ld_head);
  conv_floats = size(p.conv) * size(p.ld_hidden);

  const std::vector<std::size_t> sizes = chunk_sizes(p, precision, spread.blocks);
  chunks = schedule(sizes, spread.shared - fixed);
  std::size_t end = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i)
    if (chunks[i].offset >= 0) {
      end = std::max(end, static_cast<std::size_t>(chunks[i].offset) + round_up<std::size_t>(sizes[i], 128));
      staged += chunks[i].issue < static_cast<int>(i);
      staged_bytes += sizes[i];
    }
  shared_bytes = fixed + end;
}

StreamState::StreamState(const Plan& plan, double rope_base) : plan_(plan) {
  const int half = plan.head_dim / 2;
  for (int i = 0; i < half; ++i)
    frequencies_.push_back(std::pow(rope_base, -static_cast<double>(i) / half));
  valid_.assign(static_cast<std::size_t>((plan.window + 31) / 32), 0);
  conv_valid_.assign(static_cast<std::size_t>((plan.conv + 31) / 32), 0);
}

void StreamState::reset() {
  std::fill(valid_.begin(), valid_.end(), 0u);
  std::fill(conv_valid_.begin(), conv_valid_.end(), 0u);
  n_valid_ = 0;
  position_ = 0;
}

void StreamState::set(std::vector<std::uint32_t>& bits, std::int64_t slot, bool value) {
  std::uint32_t& word = bits[static_cast<std::size_t>(slot / 32)];
  const std::uint32_t bit = 1u << (slot % 32);
  if (&bits == &valid_) n_valid_ += static_cast<int>(value) - ((word & bit) != 0);
  word = value ? word | bit : word & ~bit;
}

void StreamState::skip(std::int64_t n_bins) {
  for (std::int64_t i = 0; i < std::min<std::int64_t>(n_bins, plan_.window); ++i)
    set(valid_, (position_ + i) % plan_.window, false);
  for (std::int64_t i = 0; i < std::min<std::int64_t>(n_bins, plan_.conv); ++i)
    set(conv_valid_, (position_ + i) % plan_.conv, false);
  position_ += n_bins;
}

void StreamState::write(std::uint8_t* buffer, std::uint32_t sequence, const std::uint16_t* counts,
                        bool dry) {
  const bool present = counts != nullptr || dry;
  const std::int64_t slot = position_ % plan_.window;
  const bool was_valid = (valid_[static_cast<std::size_t>(slot / 32)] >> (slot % 32) & 1u) != 0;
  set(valid_, slot, present);
  InputHeader header{};
  header.sequence = sequence;
  header.slot = static_cast<std::int32_t>(slot);
  header.conv_slot = plan_.conv ? static_cast<std::int32_t>(position_ % plan_.conv) : 0;
  header.flags = (present ? flag_present : 0) | (dry ? flag_dry : 0) | (n_valid_ ? flag_any_valid : 0);
  std::memcpy(buffer, &header, sizeof header);
  float* cosine = reinterpret_cast<float*>(buffer + plan_.in_cosine);
  float* sine = reinterpret_cast<float*>(buffer + plan_.in_sine);
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position_) * frequencies_[i];
    cosine[i] = static_cast<float>(std::cos(angle));
    sine[i] = static_cast<float>(std::sin(angle));
  }
  std::memcpy(buffer + plan_.in_valid, valid_.data(), valid_.size() * 4);
  std::memcpy(buffer + plan_.in_conv_valid, conv_valid_.data(), conv_valid_.size() * 4);
  auto* to = reinterpret_cast<std::uint16_t*>(buffer + plan_.in_counts);
  if (dry) {
    std::fill_n(to, plan_.units, std::uint16_t{1});
    set(valid_, slot, was_valid);
    return;
  }
  if (counts) std::memcpy(to, counts, sizeof(std::uint16_t) * static_cast<std::size_t>(plan_.units));
  if (plan_.conv) set(conv_valid_, position_ % plan_.conv, counts != nullptr);
  ++position_;
}

void StreamState::write_skipped(std::uint8_t* buffer, std::uint32_t sequence) {
  write(buffer, sequence, nullptr, false);
  reinterpret_cast<InputHeader*>(buffer)->flags |= flag_skip;
}

}  // namespace neds::gpu
