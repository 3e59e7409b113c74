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

// Appends matrices, rows padded with zeros, in the type of the weights.
class Packer {
 public:
  Packer(std::vector<std::uint8_t>& to, Precision precision) : to_(to), precision_(precision) {}

  // Elements so far.
  std::size_t size() const { return to_.size() / bytes_of(precision_); }

  // `at(row, column)` for n rows of `depth`, padded to `ld`.
  template <class At>
  void append(int n, int depth, int ld, const At& at) {
    for (int row = 0; row < n; ++row)
      for (int k = 0; k < ld; ++k) push(k < depth ? at(row, k) : 0.0f);
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
  p.ld_scores = round_up(p.window, 4);
  p.s_input = shared.take(static_cast<int>(p.in_bytes / sizeof(float)));
  p.s_chunks = shared.take(p.phases() * static_cast<int>(sizeof(Chunk) / sizeof(float)));
  p.s_counts = shared.take(p.ld_units);
  p.s_memory = shared.take(p.recurrent ? p.ld_hidden : 0);
  p.s_gates = shared.take(p.recurrent ? 6 * share_of(p.hidden, 0, spread.blocks).count : 0);
  p.s_x = shared.take(p.ld_hidden);
  p.s_x2 = shared.take(p.ld_hidden);
  p.s_y = shared.take(p.ld_hidden);
  p.s_q = shared.take(ld_q);
  p.s_kv = shared.take(2 * ld_q);
  p.s_attended = shared.take(p.ld_hidden);
  p.s_inner = shared.take(p.ld_mlp);
  p.s_query = shared.take(p.ld_head);
  p.s_own = shared.take(2 * p.ld_head);
  p.s_scores = shared.take(p.ld_scores);
  p.s_parts = shared.take(warps * p.ld_head);
  p.s_inverse = shared.take(1);
  p.s_stage = round_up(shared.used(), 32);
}

}  // namespace

std::size_t bytes_of(Precision precision) { return precision == Precision::float32 ? 4 : 2; }

Layout::Layout(const StepShape& shape, const std::vector<ModalityShape>& modalities,
               const TensorMap& tensors, Precision precision, const Spread& spread) {
  Plan& p = plan;
  set_sizes(p, shape, modalities);
  lay_out_input(p);
  lay_out_shared(p, spread);
  const std::size_t fixed = static_cast<std::size_t>(p.s_stage) * sizeof(float);
  if (fixed > spread.shared)
    throw std::invalid_argument("activations of " + std::to_string(fixed) + " bytes, of which a "
                                "block holds " + std::to_string(spread.shared));

  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  const auto tensor = [&](const std::string& name, const std::vector<std::size_t>& sizes) {
    return find(tensors, name, sizes);
  };
  const std::size_t h = size(p.hidden), units = size(p.units), mlp = size(p.mlp);

  Packer packer(weights, precision);
  const float* input = tensor("input.weight", {units, h});
  packer.append(p.hidden, p.units, p.ld_units, [&](int o, int u) { return input[size(u) * h + size(o)]; });
  p.w_gates = packer.size();
  if (p.recurrent)
    for (const char* name : {"gru.weight_ih", "gru.weight_hh"}) {
      const float* gates = tensor(name, {3 * h, h});  // one gate after the other; here, by feature
      packer.append(3 * p.hidden, p.hidden, p.ld_hidden, [&](int row, int k) {
        return gates[(size(row % 3) * h + size(row / 3)) * h + size(k)];
      });
    }
  p.w_layers = packer.size();

  const auto keep = [&](const std::string& name, const std::vector<std::size_t>& sizes) {
    const std::size_t here = floats.size();
    std::size_t n = 1;
    for (std::size_t s : sizes) n *= s;
    const float* data = tensor(name, sizes);
    floats.insert(floats.end(), data, data + n);
    floats.resize(round_up<std::size_t>(floats.size(), 4));
    return here;
  };
  p.f_input_bias = keep("input.bias", {h});
  p.f_token = keep("input.token", {h});
  p.f_lost = keep("input.lost", {h});
  if (p.conv) {
    p.f_conv_weight = keep("conv.weight", {size(p.conv), h});
    p.f_conv_bias = keep("conv.bias", {h});
  }
  if (p.recurrent) {
    p.f_gates = floats.size();  // of the bin, then of the memory
    for (const char* name : {"gru.bias_ih", "gru.bias_hh"}) {
      const float* bias = tensor(name, {3 * h});
      for (std::size_t row = 0; row < 3 * h; ++row) floats.push_back(bias[row % 3 * h + row / 3]);
    }
    floats.resize(round_up<std::size_t>(floats.size(), 4));
  }
  p.f_norm_weight = keep("norm.weight", {h});
  p.f_norm_bias = keep("norm.bias", {h});
  const float* head = tensor("head.weight", {size(p.n_outputs), h});
  p.f_head_weight = floats.size();
  floats.resize(floats.size() + size(p.n_outputs) * size(p.ld_hidden), 0.0f);
  for (std::size_t o = 0; o < size(p.n_outputs); ++o)
    std::copy_n(head + o * h, h, floats.data() + p.f_head_weight + o * size(p.ld_hidden));
  p.f_head_bias = keep("head.bias", {size(p.n_outputs)});

  p.f_layers = floats.size();
  for (int layer = 0; layer < p.layers; ++layer) {
    const std::string name = "layers." + std::to_string(layer) + ".";
    const std::size_t f = floats.size(), w = packer.size();
    const auto matrix = [&](const std::string& part, int n, int depth, int ld) {
      const float* data = tensor(name + part + ".weight", {size(n), size(depth)});
      const std::size_t here = packer.size() - w;
      packer.append(n, depth, ld, [&](int o, int k) { return data[size(o) * size(depth) + size(k)]; });
      return here;
    };
    p.f_norm1_weight = keep(name + "norm1.weight", {h}) - f;
    p.f_norm1_bias = keep(name + "norm1.bias", {h}) - f;
    p.f_qkv_bias = keep(name + "qkv.bias", {3 * h}) - f;
    p.f_out_bias = keep(name + "out.bias", {h}) - f;
    p.f_norm2_weight = keep(name + "norm2.weight", {h}) - f;
    p.f_norm2_bias = keep(name + "norm2.bias", {h}) - f;
    p.f_up_bias = keep(name + "up.bias", {mlp}) - f;
    p.f_down_bias = keep(name + "down.bias", {h}) - f;
    p.f_layer_stride = floats.size() - f;
    matrix("qkv", 3 * p.hidden, p.hidden, p.ld_hidden);
    p.w_out = matrix("out", p.hidden, p.hidden, p.ld_hidden);
    p.w_up = matrix("up", p.mlp, p.hidden, p.ld_hidden);
    p.w_down = matrix("down", p.hidden, p.mlp, p.ld_mlp);
    p.w_layer_stride = packer.size() - w;
  }

  int begin = 0;
  for (const ModalityShape& modality : modalities) {
    if (modality.categorical) softmax.insert(softmax.end(), {begin, modality.n_outputs});
    begin += modality.n_outputs;
  }
  p.n_softmax = static_cast<int>(softmax.size() / 2);
  ring_floats = size(p.layers) * size(p.heads) * size(p.window) * size(p.ld_head);
  conv_floats = size(p.conv) * size(p.ld_hidden);

  const std::size_t each = bytes_of(precision);
  const auto rows_of = [&](int n) { return size(share_of(n, 0, spread.blocks).count); };
  std::vector<std::size_t> sizes{rows_of(p.hidden) * size(p.ld_units) * each};
  if (p.recurrent) sizes.push_back(6 * rows_of(p.hidden) * size(p.ld_hidden) * each);
  for (int layer = 0; layer < p.layers; ++layer) {
    sizes.push_back((rows_of(p.hidden) + rows_of(2 * p.hidden)) * size(p.ld_hidden) * each);
    sizes.push_back(2 * size(p.window) * size(p.ld_head) * sizeof(float));
    sizes.push_back(rows_of(p.hidden) * size(p.ld_hidden) * each);
    sizes.push_back(rows_of(p.mlp) * size(p.ld_hidden) * each);
    sizes.push_back(rows_of(p.hidden) * size(p.ld_mlp) * each);
  }
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
  first_ = true;
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
  header.flags = (present ? flag_present : 0) | (dry ? flag_dry : 0) | (n_valid_ ? flag_any_valid : 0) |
                 (first_ ? flag_first : 0);
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
  first_ = false;
  ++position_;
}

void StreamState::write_skipped(std::uint8_t* buffer, std::uint32_t sequence) {
  write(buffer, sequence, nullptr, false);
  reinterpret_cast<InputHeader*>(buffer)->flags |= flag_skip;
}

}  // namespace neds::gpu
