// The phases of one streaming step on a team of blocks: a cluster, or a whole grid.
//
//   memory      the GRU's gates of its memory, while the input is on its way
//   input       embedding of the counts, convolution
//   GRU         its gates of the bin, its memory after it, the bin's token
//   a layer     qkv | attention | out | up | down
//   readout     heads and softmax, by block 0
//
// Every block holds all activations in its own shared memory and computes its share of a phase's
// output rows; what it computes it sends to all others, and the team meets between phases. A block
// that has nothing to compute sends that: every block takes part in every meeting, so that none is
// ever two meetings ahead of another. Weights do not depend on activations, so they are on their way
// to shared memory phases before they are needed.
//
// All products go through one loop over phases and not through code of their own each: a step runs
// its code once, and code that is not there need not be fetched.
#pragma once

#include "attention.hpp"
#include "plan.hpp"
#include "warp.hpp"

namespace neds::gpu {

// Team gives: index, count (blocks), shared, thread, threads; block_sync(), warp_sync();
// arrive(), started(): all blocks have cleared their shared memory; send(offset, value, copy,
// copies), send4(offset, values), nothing(): to all blocks' shared memory; meet(offset, n, sent): all
// `sent` floats of the n from `offset` have come from all blocks, after the next block_sync to be read
// by all threads; copy(to, from, bytes), commit(), wait(pending): to shared memory while computing
// goes on; mark(i): take the time.
template <class Weight, class Team>
struct Step {
  enum Kind { memory_gates, input, bin_gates, qkv, attention, out, up, down };

  const Plan& p;
  Team& team;
  int lane, warp, warps;
  float* s;
  const InputHeader* header;
  Share own;  // features of this block
  bool present = false, dry = false;
  int next_chunk = 0;
  int x;  // where the residual stream is: one of two places, since a phase reads one, writes the other

  NEDS_DEVICE Step(const Plan& plan, Team& t)
      : p(plan), team(t), lane(t.thread % lanes), warp(t.thread / lanes), warps(t.threads / lanes),
        s(t.shared), header(reinterpret_cast<const InputHeader*>(t.shared + plan.s_input)),
        own(share_of(plan.hidden, t.index, t.count)), x(plan.s_x) {}

  NEDS_DEVICE int other_x() const { return x == p.s_x ? p.s_x2 : p.s_x; }

  NEDS_DEVICE void run() {
    begin();
    int kind = p.recurrent ? memory_gates : input, layer = 0, chunk = 0, marks = 0;
    while (layer < p.layers) {
      if (kind == input) receive();
      await(kind == memory_gates ? gates_staged_early() : chunk);
      if (kind == attention)
        Attention<Step>{*this, layer, chunk}.run();
      else
        product(kind, layer, chunk);
      if (kind == bin_gates) recall();
      if (kind != memory_gates) {
        prefetch(chunk++);
        meet(kind);
      }
      team.mark(++marks);
      if (kind == (p.recurrent ? bin_gates : input) && skipped()) return;
      kind = kind == input && !p.recurrent ? qkv : kind + 1;
      if (kind > down) kind = qkv, ++layer;
    }
    if (team.index == 0) readout(chunk);
    team.mark(++marks);
  }

  // A lost bin of which nobody wants outputs ends when its stem is done.
  NEDS_DEVICE bool skipped() {
    if (!(header->flags & flag_skip)) return false;
    team.wait(0);
    if (team.index == 0 && team.thread == 0) *p.done = header->sequence;
    return true;
  }

  // ---- staging -------------------------------------------------------------------------------

  NEDS_DEVICE const Chunk* chunks() const { return reinterpret_cast<const Chunk*>(s + p.s_chunks); }
  NEDS_DEVICE char* stage() const { return reinterpret_cast<char*>(s + p.s_stage); }
  NEDS_DEVICE static constexpr int row_of(int ld) {
    return ld + bias_bytes / static_cast<int>(sizeof(Weight));
  }

  // A matrix (n, ld): where its rows are, how they are dealt out, and what they are multiplied with.
  struct Matrix {
    const Weight* weights;
    int ld;
    Share share;
    int from;           // activations
    const float* norm;  // of them, null for none
  };

  NEDS_DEVICE Matrix matrix(int kind, int layer) const {
    const Weight* all = static_cast<const Weight*>(p.weights);
    const Weight* w = all + p.w_layers + layer * p.w_layer_stride;
    const float* f = p.floats + p.f_layers + layer * p.f_layer_stride;
    const Share three{3 * own.begin, 3 * own.count};
    switch (kind) {
      case memory_gates: return {all + p.w_gates_back, p.ld_hidden, three, p.s_memory, nullptr};
      case input: return {all + p.w_input, p.ld_units, own, p.s_counts, nullptr};
      case bin_gates: return {all + p.w_gates, p.ld_hidden, three, p.s_x, nullptr};
      case qkv: return {w, p.ld_hidden, share_of(3 * p.hidden, team.index, team.count), x, f};
      case out: return {w + p.w_out, p.ld_hidden, own, p.s_attended, nullptr};
      case up: return {w + p.w_up, p.ld_hidden, share_of(p.mlp, team.index, team.count), x, f + p.f_norm2};
      default: return {w + p.w_down, p.ld_mlp, own, p.s_inner, nullptr};
    }
  }

  NEDS_DEVICE std::size_t bytes_of(const Matrix& m) const {
    return static_cast<std::size_t>(m.share.count) * row_of(m.ld) * sizeof(Weight);
  }

  // The GRU's gates are one chunk for two phases, of which the first comes before the input; 0, and
  // read where they lie, if there is no room for them until the second.
  NEDS_DEVICE int gates_staged_early() const { return chunks()[1].issue == 0; }

  // Start loading every chunk whose turn has come in `phase`.
  NEDS_DEVICE void prefetch(int phase) {
    while (next_chunk < p.n_chunks() && chunks()[next_chunk].issue <= phase) {
      if (chunks()[next_chunk].offset >= 0) load_chunk(next_chunk, stage() + chunks()[next_chunk].offset);
      team.commit();
      ++next_chunk;
    }
  }

  // Copy this block's rows of a matrix to `to`, and the norm after them; returns where they end.
  NEDS_DEVICE char* load(char* to, int kind, int layer) {
    const Matrix m = matrix(kind, layer);
    if (m.share.count == 0) return to;  // a share beyond the end has no address
    team.copy(to, m.weights + static_cast<std::size_t>(m.share.begin) * row_of(m.ld), bytes_of(m));
    if (m.norm) team.copy(to + bytes_of(m), m.norm, 2 * p.ld_hidden * sizeof(float));
    return to + bytes_of(m);
  }

  NEDS_DEVICE void load_chunk(int chunk, char* to) {
    if (chunk == p.n_chunks() - 1) {
      const int floats = 2 * p.ld_hidden + p.n_outputs * (p.ld_hidden + 4);
      if (team.index == 0) team.copy(to, p.floats + p.f_norm, floats * sizeof(float));
      return;
    }
    const int after = chunk - p.stem_chunks(), layer = after < 0 ? 0 : after / phases_per_layer;
    const int kind = after >= 0 ? qkv + after % phases_per_layer : chunk == 0 ? input : bin_gates;
    if (kind == attention) {
      if (team.index >= p.heads) return;
      const std::size_t bytes = static_cast<std::size_t>(p.window) * p.ld_head * sizeof(float);
      team.copy(to, ring(p.keys, layer, team.index), bytes);
      team.copy(to + bytes, ring(p.values, layer, team.index), bytes);
      return;
    }
    to = load(to, kind, layer);
    if (kind == bin_gates) load(to, memory_gates, layer);
  }

  // The chunk is there, and all that was received is there for all threads.
  NEDS_DEVICE void await(int chunk) {
    if (next_chunk <= chunk) {
      team.block_sync();
      prefetch(chunk);
    }
    team.wait(next_chunk - 1 - chunk);
    team.block_sync();
  }

  // ---- between blocks ------------------------------------------------------------------------

  // All have what a phase computed.
  NEDS_DEVICE void meet(int kind) {
    const int busy = sharers(p.hidden, team.count);
    switch (kind) {
      case input: return meet(p.s_x, p.ld_hidden, p.hidden, busy);
      case qkv: return meet(p.s_qkv, 3 * p.heads * p.ld_head, 3 * p.hidden, sharers(3 * p.hidden, team.count));
      case attention:
        return meet(p.s_attended, p.ld_hidden, p.hidden, p.heads < team.count ? p.heads : team.count);
      case up: return meet(p.s_inner, p.ld_mlp, p.mlp, sharers(p.mlp, team.count));
      default: x = other_x(); return meet(x, p.ld_hidden, p.hidden, busy);
    }
  }

  // The first `busy` blocks have sent `values` of the n floats from `offset`.
  NEDS_DEVICE void meet(int offset, int n, int values, int busy) {
    if (team.index >= busy) team.nothing();
    team.meet(offset, n, values + team.count - busy);
  }

  NEDS_DEVICE void begin() {
    // The input: each block reads its part from the host and sends it to all.
    const vec4* from = reinterpret_cast<const vec4*>(p.input);
    const int n = static_cast<int>(p.in_bytes / sizeof(vec4));
    int part = team.index + team.count * team.thread;
    vec4 piece = {};
    if (part < n) piece = team.read_input(from + part);
    for (int i = p.s_counts / 4 + team.thread; i < p.s_stage / 4; i += team.threads)
      reinterpret_cast<vec4*>(s)[i] = vec4{};
    for (int i = team.thread; i < p.n_chunks(); i += team.threads)
      reinterpret_cast<Chunk*>(s + p.s_chunks)[i] = p.chunks[i];
    for (int i = team.thread; i < 2 * p.n_softmax; i += team.threads)
      reinterpret_cast<std::int32_t*>(s + p.s_softmax)[i] = p.softmax[i];
    team.arrive();
    team.block_sync();
    prefetch(0);
    if (p.recurrent)
      for (int i = team.thread; i < p.hidden; i += team.threads) s[p.s_memory + i] = p.memory[i];
    load_stem();
    team.started();
    for (; part < n; part += team.count * team.threads) {
      if (part >= team.count * team.threads) piece = team.read_input(from + part);
      team.send4(p.s_input + 4 * part, piece);
    }
    team.mark(0);
  }

  // What the convolution needs of this block's features.
  NEDS_DEVICE void load_stem() {
    const int fields = stem_fields + (p.conv ? 2 * p.conv : 0);
    for (int i = team.thread; i < fields * own.count; i += team.threads) {
      const int field = i / own.count, o = own.begin + i % own.count, tap = field - stem_fields;
      const float* f = p.floats + o;
      float& to = s[p.s_stem + i];
      if (field == stem_token) to = f[p.f_token];
      else if (field == stem_lost) to = f[p.f_lost];
      else if (field == stem_conv_bias) to = p.conv ? f[p.f_conv_bias] : 0.0f;
      else if (tap < p.conv) to = f[p.f_conv_weight + static_cast<std::size_t>(tap) * p.hidden];
      else to = p.conv_ring[(tap - p.conv) * p.ld_hidden + o];
    }
  }

  // The host's input has come.
  NEDS_DEVICE void receive() {
    const int n = static_cast<int>(p.in_bytes / sizeof(vec4)), busy = n < team.count ? n : team.count;
    meet(p.s_input, 4 * n, 4 * n, busy);
    team.block_sync();
    present = (header->flags & flag_present) != 0;
    dry = (header->flags & flag_dry) != 0;
    const std::uint16_t* counts = section<std::uint16_t>(p.in_counts);
    for (int u = team.thread; u < p.units; u += team.threads)
      s[p.s_counts + u] = present ? static_cast<float>(counts[u]) : 0.0f;
  }

  template <class T>
  NEDS_DEVICE const T* section(std::size_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(s + p.s_input) + offset);
  }

  // ---- products ------------------------------------------------------------------------------

  NEDS_DEVICE void product(int kind, int layer, int chunk) {
    const Matrix m = matrix(kind, layer);
    const Weight* rows = m.weights + static_cast<std::size_t>(m.share.begin) * row_of(m.ld);
    Norm norm{m.norm, m.norm, 0, 0};
    const char* staged = staged_for(kind, chunk);
    if (staged) {
      rows = reinterpret_cast<const Weight*>(staged + (kind == memory_gates ? bytes_of(m) : 0));
      if (m.norm) norm.weight = reinterpret_cast<const float*>(staged + bytes_of(m));
    }
    if (m.norm) norm.bias = norm.weight + p.ld_hidden;
    if (m.norm) measure(s + m.from, p.hidden, p.ld_hidden, lane, norm);
    for (int j = warp * tile_rows; j < m.share.count; j += warps * tile_rows)
      multiply(rows, m.ld, j, m.share.count, s + m.from, norm, lane,
               [&](int row, float sum, float bias, int copy, int copies) {
                 deliver(kind, m.share.begin + row, row, sum, bias, copy, copies);
               });
  }

  // Where the phase's chunk is staged, null if it is not.
  NEDS_DEVICE const char* staged_for(int kind, int chunk) const {
    if (kind == memory_gates) chunk = 1;
    if (chunks()[chunk].offset < 0 || (kind == memory_gates && !gates_staged_early())) return nullptr;
    return stage() + chunks()[chunk].offset;
  }

  // What becomes of a product with row `o` of a matrix, the block's own `row`.
  NEDS_DEVICE void deliver(int kind, int o, int row, float sum, float bias, int copy, int copies) {
    if (kind == memory_gates || kind == bin_gates) {
      const int at = p.s_gates + row + (kind == memory_gates ? 3 * own.count : 0);
      if (copy == 0) s[at] = sum + bias;
      return;
    }
    float value = sum + bias;
    int at;
    switch (kind) {
      case input:
        at = p.s_x + o;
        value = embed(row, o, value, copy == 0);
        if (!p.recurrent) value = token(row, value);
        break;
      case qkv: at = p.s_qkv + padded(o); break;
      case up:
        at = p.s_inner + o;
        value = gelu(value);
        break;
      default:
        at = other_x() + o;
        value += s[x + o];
    }
    team.send(at, value, copy, copies);
  }

  NEDS_DEVICE int padded(int o) const { return o + o / p.head_dim * (p.ld_head - p.head_dim); }

  NEDS_DEVICE float stem(int field, int row) const { return s[p.s_stem + field * own.count + row]; }

  // Feature `o` of the bin's embedding after the convolution.
  NEDS_DEVICE float embed(int row, int o, float product, bool keep) {
    const float e = present ? product : 0.0f;
    if (!p.conv) return e;
    const std::uint32_t* valid = section<std::uint32_t>(p.in_conv_valid);
    float g = stem(stem_conv_bias, row) + stem(stem_fields, row) * e;
    for (int tap = 1; tap < p.conv; ++tap) {
      const int slot = header->conv_slot - tap + (tap > header->conv_slot ? p.conv : 0);
      if (valid[slot / 32] >> slot % 32 & 1)
        g += stem(stem_fields + tap, row) * stem(stem_fields + p.conv + slot, row);
    }
    if (keep && !dry) p.conv_ring[header->conv_slot * p.ld_hidden + o] = e;
    return e + gelu(g);
  }

  // Feature `row` of the bin's token, from what the stem made of its embedding.
  NEDS_DEVICE float token(int row, float e) const {
    return present ? e + stem(stem_token, row) : stem(stem_lost, row);
  }

  // The GRU's memory after the bin. A block has all gates of its features, so it asks no other.
  NEDS_DEVICE void recall() {
    team.block_sync();
    const float *now = s + p.s_gates, *back = now + 3 * own.count;
    for_each(own.count, [&](int j, int copy, int copies) {
      const int o = own.begin + j, i = 3 * j;
      const float reset = logistic(now[i] + back[i]), update = logistic(now[i + 1] + back[i + 1]);
      const float candidate = tanhf(now[i + 2] + reset * back[i + 2]);
      const float memory = candidate + update * (s[p.s_memory + o] - candidate);
      if (copy == 0 && !dry) p.memory[o] = memory;
      team.send(p.s_x2 + o, token(j, s[p.s_x + o] + memory), copy, copies);
    });
  }

  // Call f(i, copy, copies) for each i < n, by as many threads as there are to share what it sends.
  template <class F>
  NEDS_DEVICE void for_each(int n, const F& f) {
    int copies = n > 0 ? team.threads / n : 1;
    copies = copies < 1 ? 1 : copies > team.count ? team.count : copies;
    for (int i = team.thread; i < n * copies; i += team.threads) f(i % n, i / n, copies);
  }

  NEDS_DEVICE float* ring(float* base, int layer, int head) const {
    return base + (static_cast<std::size_t>(layer) * p.heads + head) * p.window * p.ld_head;
  }

  // ---- readout -------------------------------------------------------------------------------

  NEDS_DEVICE void readout(int chunk) {
    await(chunk);
    const int offset = chunks()[chunk].offset;
    const float* f = p.floats + p.f_norm;
    if (offset >= 0) f = reinterpret_cast<const float*>(stage() + offset);
    Norm norm{f, f + p.ld_hidden, 0, 0};
    measure(s + x, p.hidden, p.ld_hidden, lane, norm);
    for (int o = warp; o < p.n_outputs; o += warps) {
      const float* w = f + (2 + static_cast<std::size_t>(o)) * p.ld_hidden + 4 * o;
      float sum = 0;
      for (int k = lane * 4; k < p.ld_hidden; k += lanes * 4)
        sum = dot4(load4(w + k), normed(load4(s + x + k), norm, k), sum);
      sum = warp_sum(sum);
      if (lane == 0) s[p.s_raw + o] = sum + bias_of(w, p.ld_hidden);
    }
    team.block_sync();
    const std::int32_t* softmax = reinterpret_cast<const std::int32_t*>(s + p.s_softmax);
    for (int i = warp; i < p.n_softmax; i += warps)
      make_probabilities(s + p.s_raw + softmax[2 * i], softmax[2 * i + 1]);
    team.block_sync();
    if (dry) {
      if (team.thread == 0) *p.done = header->sequence;
      return;
    }
    for (int o = team.thread; o < p.n_outputs; o += team.threads)
      p.outputs[o] = static_cast<Output>(header->sequence) << 32 | bits_of(s[p.s_raw + o]);
  }

  NEDS_DEVICE void make_probabilities(float* values, int n) {
    float largest = -INFINITY;
    for (int i = lane; i < n; i += lanes) largest = fmaxf(largest, values[i]);
    largest = warp_max(largest);
    float sum = 0;
    for (int i = lane; i < n; i += lanes) sum += exponential(values[i] - largest);
    sum = warp_sum(sum);
    for (int i = lane; i < n; i += lanes) values[i] = exponential(values[i] - largest) / sum;
  }
};

}  // namespace neds::gpu
