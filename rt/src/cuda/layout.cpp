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

// Appends what jobs need: rows of matrices in the type of the weights, each followed by its bias,
// and floats.
class Packer {
 public:
  Packer(std::vector<std::uint8_t>& to, Precision precision) : to_(to), precision_(precision) {}

  // Bytes so far, from where the next job's data begin.
  std::size_t begin() {
    to_.resize(round_up<std::size_t>(to_.size(), 128));
    return to_.size();
  }

  // `at(row, column)` and `bias(row)` for some of the rows of a matrix, padded to `ld` columns and
  // to whole tiles.
  template <class At, class Bias>
  void rows(Share share, int depth, int ld, const At& at, const Bias& bias) {
    for (int j = 0; j < round_up(share.count, tile_rows); ++j) {
      const bool real = j < share.count;
      const int row = share.begin + j;
      for (int k = 0; k < ld; ++k) push(real && k < depth ? at(row, k) : 0.0f);
      floats({real ? bias(row) : 0.0f, 0.0f, 0.0f, 0.0f});
    }
  }

  void floats(const std::vector<float>& values) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    to_.insert(to_.end(), bytes, bytes + values.size() * sizeof(float));
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

struct Place {
  std::int32_t offset, issue;
};

// Places the jobs' data in a ring of `room` bytes: each as early as the bytes it takes are free;
// offset < 0 for those that find no room at all.
std::vector<Place> schedule(const std::vector<std::size_t>& sizes, std::size_t room) {
  struct Live {
    std::size_t begin, end;
    int job;
  };
  std::vector<Place> places;
  std::vector<Live> live;
  std::size_t cursor = 0;
  int issue = 0;
  for (int job = 0; job < static_cast<int>(sizes.size()); ++job) {
    issue = std::max(issue, job + 1 - max_in_flight);
    const std::size_t size = round_up<std::size_t>(sizes[static_cast<std::size_t>(job)], 128);
    if (size == 0 || size > room) {
      places.push_back({-1, issue});
      continue;
    }
    if (cursor + size > room) cursor = 0;
    for (const Live& other : live)
      if (other.begin < cursor + size && cursor < other.end) issue = std::max(issue, other.job + 1);
    std::erase_if(live, [&](const Live& other) { return other.job < issue; });
    live.push_back({cursor, cursor + size, job});
    places.push_back({static_cast<std::int32_t>(cursor), issue});
    cursor += size;
  }
  return places;
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
  p.padded = p.ld_hidden != p.hidden || p.ld_mlp != p.mlp || p.ld_head != p.head_dim;
  for (const ModalityShape& modality : modalities) p.n_outputs += modality.n_outputs;
  p.n_jobs = (p.recurrent ? 3 : 1) + phases_per_layer * p.layers + 1;
}

std::size_t size(int n) { return static_cast<std::size_t>(n); }

// The largest s with 2^s <= n, 0 for n below 1.
int log2_up_to(int n) {
  int s = 0;
  while (2 << s <= n) ++s;
  return s;
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
  p.s_jobs = shared.take(p.n_jobs * static_cast<int>(sizeof(Job) / sizeof(float)));
  p.s_softmax = shared.take(2 * p.n_softmax);
  p.s_barriers = shared.take(2 * (2 + max_in_flight + 1));  // of 8 bytes each
  p.s_nothing = shared.take(1);
  p.s_counts = shared.take(p.ld_units);
  p.s_memory = shared.take(p.recurrent ? p.ld_hidden : 0);
  p.s_gates = shared.take(p.recurrent ? 6 * own : 0);
  p.s_conv = shared.take(p.conv * own);
  p.s_x = shared.take(p.ld_hidden);  // from here on all is zero before the first meeting, if padded
  p.s_x2 = shared.take(p.ld_hidden);
  p.s_qkv = shared.take(3 * ld_q);
  p.s_attended = shared.take(p.ld_hidden);
  p.s_inner = shared.take(p.ld_mlp);
  p.s_query = shared.take(p.ld_head);
  p.s_own = shared.take(2 * p.ld_head);
  p.s_scores = shared.take(p.window);
  p.s_parts = shared.take(warps * p.ld_head);
  p.s_tops = shared.take(2 * warps);
  p.s_sizes = shared.take(warps * warps);
  p.s_raw = shared.take(p.n_outputs);
  p.s_stage = round_up(shared.used(), 32);
}

}  // namespace

std::size_t bytes_of(Precision precision) { return precision == Precision::float32 ? 4 : 2; }

// Builds the jobs of one block and packs what they need.
class Layout::BlockPacker {
 public:
  BlockPacker(Layout& layout, const TensorMap& tensors, Precision precision, int block, int blocks)
      : p_(layout.plan), layout_(layout), tensors_(tensors), packer_(layout.weights, precision),
        block_(block), blocks_(blocks), own_(share_of(p_.hidden, block, blocks)),
        x_(p_.s_x), other_(p_.s_x2) {}

  void pack() {
    const std::size_t h = size(p_.hidden);
    if (p_.recurrent) gates(memory_gates, "hh");
    const float* weight = find(tensors_, "input.weight", {size(p_.units), h});
    matrix(input, p_.hidden, p_.units, p_.ld_units, p_.s_counts, p_.s_x, p_.ld_hidden, "input.bias",
           [&](int o, int u) { return weight[size(u) * h + size(o)]; });
    stem_constants();
    if (p_.recurrent) {
      gates(bin_gates, "ih");
      stem_constants();
      std::swap(x_, other_);
    }
    for (int layer = 0; layer < p_.layers; ++layer) pack_layer(layer);
    pack_head();
  }

 private:
  Job& begin(Kind kind, Share share, int ld, int from, int to) {
    Job job{};
    job.kind = kind;
    job.rows = share.count;
    job.first = share.begin;
    job.ld = ld;
    job.from = from;
    job.to = to;
    job.x = x_;
    job.source = static_cast<std::int64_t>(packer_.begin());
    layout_.jobs.push_back(job);
    return layout_.jobs.back();
  }

  void end_rows() { last().row_bytes = last().bytes = packed(); }
  void end() { last().bytes = last().rows ? packed() : 0; }
  Job& last() { return layout_.jobs.back(); }
  int packed() const {
    return static_cast<int>(layout_.weights.size()) - static_cast<int>(layout_.jobs.back().source);
  }

  // `values` are sent by the first `busy` blocks, to a run of `extent`.
  void meeting(int values, int extent, int busy) {
    last().extent = extent;
    last().sent = values + blocks_ - busy;
    last().silent = block_ >= busy;
  }

  template <class At>
  void matrix(Kind kind, int n, int depth, int ld, int from, int to, int extent, const std::string& bias,
              const At& at) {
    const float* biases = find(tensors_, bias, {size(n)});
    const Share share = share_of(n, block_, blocks_);
    begin(kind, share, ld, from, to);
    packer_.rows(share, depth, ld, at, [&](int o) { return biases[o]; });
    end_rows();
    meeting(n, extent, sharers(n, blocks_));
  }

  // One gate after the other in the tensors; here, by feature.
  void gates(Kind kind, const std::string& which) {
    const std::size_t h = size(p_.hidden);
    const float* weight = find(tensors_, "gru.weight_" + which, {3 * h, h});
    const float* bias = find(tensors_, "gru.bias_" + which, {3 * h});
    const auto row_of = [&](int row) { return size(row % 3) * h + size(row / 3); };
    const Share three{3 * own_.begin, 3 * own_.count};
    const bool back = kind == memory_gates;
    const int to = p_.s_gates + (back ? 3 * share_of(p_.hidden, 0, blocks_).count : 0) - three.begin;
    Job& job = begin(kind, three, p_.ld_hidden, back ? p_.s_memory : p_.s_x, to);
    job.x = other_;
    packer_.rows(three, p_.hidden, p_.ld_hidden,
                 [&](int row, int k) { return weight[row_of(row) * h + size(k)]; },
                 [&](int row) { return bias[row_of(row)]; });
    end_rows();
    if (!back) meeting(p_.hidden, p_.ld_hidden, sharers(p_.hidden, blocks_));
  }

  void stem_constants() {
    const std::size_t h = size(p_.hidden);
    std::vector<float> values;
    const auto add = [&](const float* from) {
      values.insert(values.end(), from + own_.begin, from + own_.begin + own_.count);
    };
    add(find(tensors_, "input.token", {h}));
    add(find(tensors_, "input.lost", {h}));
    if (p_.conv) {
      const float* weight = find(tensors_, "conv.weight", {size(p_.conv), h});
      add(find(tensors_, "conv.bias", {h}));
      for (int tap = 0; tap < p_.conv; ++tap) add(weight + size(tap) * h);
    }
    values.resize(round_up<std::size_t>(values.size(), 4), 0.0f);
    packer_.floats(values);
    end();
  }

  // Weights, then biases, each padded with zeros to ld_hidden: what is padding stays zero.
  void norm(const std::string& name) {
    const std::size_t h = size(p_.hidden), ld = size(p_.ld_hidden);
    std::vector<float> values(2 * ld, 0.0f);
    std::copy_n(find(tensors_, name + ".weight", {h}), h, values.data());
    std::copy_n(find(tensors_, name + ".bias", {h}), h, values.data() + ld);
    packer_.floats(values);
    end();
  }

  void pack_layer(int layer) {
    const std::string name = "layers." + std::to_string(layer) + ".";
    const int h = p_.hidden, ld = p_.ld_hidden;
    const auto linear = [&](Kind kind, const std::string& part, int n, int depth, int ld_row, int from,
                            int to, int extent) {
      const float* data = find(tensors_, name + part + ".weight", {size(n), size(depth)});
      matrix(kind, n, depth, ld_row, from, to, extent, name + part + ".bias",
             [&](int o, int k) { return data[size(o) * size(depth) + size(k)]; });
    };
    linear(qkv, "qkv", 3 * h, h, ld, x_, p_.s_qkv, 3 * p_.heads * p_.ld_head);
    norm(name + "norm1");
    attend(layer);
    linear(residual, "out", h, h, ld, p_.s_attended, other_, ld);
    std::swap(x_, other_);
    linear(up, "up", p_.mlp, h, ld, x_, p_.s_inner, p_.ld_mlp);
    norm(name + "norm2");
    linear(residual, "down", h, p_.mlp, p_.ld_mlp, p_.s_inner, other_, ld);
    std::swap(x_, other_);
  }

  // What it needs are the keys and values of the block's first head.
  void attend(int layer) {
    Job& job = begin(attention, {layer, 0}, p_.ld_head, p_.s_qkv, p_.s_attended);
    const std::int64_t bytes = static_cast<std::int64_t>(sizeof(float)) * 2 * p_.window * p_.ld_head;
    job.bytes = block_ < p_.heads ? static_cast<int>(bytes) : 0;
    job.source = (std::int64_t{layer} * p_.heads + std::min(block_, p_.heads - 1)) * bytes;
    meeting(p_.hidden, p_.ld_hidden, std::min(p_.heads, blocks_));
  }

  // Of block 0, and in floats whatever the weights are.
  void pack_head() {
    const std::size_t h = size(p_.hidden), n = size(p_.n_outputs);
    const float* weight = find(tensors_, "head.weight", {n, h});
    const float* bias = find(tensors_, "head.bias", {n});
    begin(head, {0, block_ ? 0 : p_.n_outputs}, p_.ld_hidden, x_, p_.s_raw);
    if (block_) return;
    for (std::size_t o = 0; o < n; ++o) {
      std::vector<float> row(size(p_.ld_hidden) + bias_bytes / sizeof(float), 0.0f);
      std::copy_n(weight + o * h, h, row.data());
      row[size(p_.ld_hidden)] = bias[o];
      packer_.floats(row);
    }
    end_rows();
    norm("norm");
  }

  Plan& p_;
  Layout& layout_;
  const TensorMap& tensors_;
  Packer packer_;
  int block_, blocks_;
  Share own_;
  int x_, other_;  // where the residual stream is, and where it goes next
};

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
  p.slot_shift = log2_up_to(std::min(spread.lanes, p.ld_head / 4));
  const auto shift = [&](int n) { return log2_up_to(std::min(spread.threads / n, spread.blocks)); };
  p.own_shift = shift(share_of(p.hidden, 0, spread.blocks).count);
  p.head_shift = shift(p.head_dim);
  lay_out_input(p);
  lay_out_shared(p, spread);
  const std::size_t fixed = static_cast<std::size_t>(p.s_stage) * sizeof(float);
  if (fixed > spread.shared)
    throw std::invalid_argument("activations of " + std::to_string(fixed) + " bytes, of which a "
                                "block holds " + std::to_string(spread.shared));
  for (int block = 0; block < spread.blocks; ++block)
    BlockPacker(*this, tensors, precision, block, spread.blocks).pack();
  ring_floats = 2 * size(p.layers) * size(p.heads) * size(p.window) * size(p.ld_head);
  conv_floats = size(p.conv) * size(p.ld_hidden);
  stage(spread.shared - fixed, spread.blocks);
}

// Where each job's data are staged: in all blocks where block 0, which has the most, needs them.
void Layout::stage(std::size_t room, int blocks) {
  std::vector<std::size_t> sizes;
  for (int i = 0; i < plan.n_jobs; ++i) sizes.push_back(size(jobs[size(i)].bytes));
  const std::vector<Place> places = schedule(sizes, room);
  const std::size_t fixed = static_cast<std::size_t>(plan.s_stage) * sizeof(float);
  std::size_t end = 0;
  for (int i = 0; i < plan.n_jobs; ++i) {
    const Place& place = places[size(i)];
    for (int block = 0; block < blocks; ++block) {
      Job& job = jobs[size(block * plan.n_jobs + i)];
      job.staged = place.offset < 0 ? -1 : static_cast<std::int32_t>(fixed) + place.offset;
      job.issue = place.issue;
    }
    if (place.offset < 0) continue;
    end = std::max(end, size(place.offset) + round_up<std::size_t>(sizes[size(i)], 128));
    staged += place.issue < i;
    staged_bytes += sizes[size(i)];
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
