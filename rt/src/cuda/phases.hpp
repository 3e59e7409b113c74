// The phases of one streaming step on a team of blocks: a cluster, or a whole grid.
//
//   input       embedding of the counts, convolution
//   GRU         its memory after the bin, the bin's token (without one the input has the token)
//   a layer     qkv | attention | out | up | down
//   readout     heads and softmax, by block 0
//
// Every block holds all activations in its own shared memory and computes its share of a phase's
// output rows; what it computes it publishes to all others, and the team meets between phases.
// Weights do not depend on activations, so they are on their way to shared memory phases before
// they are needed.
#pragma once

#include "plan.hpp"
#include "warp.hpp"

namespace neds::gpu {

// Team gives: index, count (blocks), shared, thread, threads; block_sync(); start(), sync(): every
// block of the team; publish(offset, value, copy, copies): store to all blocks' shared memory;
// fetch(offset, n): make what was published readable here; copy(to, from, bytes), commit(),
// wait(pending): to shared memory while computing goes on; mark(i): take the time.
template <class Weight, class Team>
struct Step {
  const Plan& p;
  Team& team;
  int lane, warp, warps;
  float* s;
  const InputHeader* header;
  bool present, dry;
  int next_chunk = 0;
  int x;  // where the residual stream is: one of two places, since a phase reads one, writes the other

  NEDS_DEVICE Step(const Plan& plan, Team& t)
      : p(plan), team(t), lane(t.thread % lanes), warp(t.thread / lanes), warps(t.threads / lanes),
        s(t.shared), header(reinterpret_cast<const InputHeader*>(t.shared + plan.s_input)), x(plan.s_x) {}

  // From the place of the residual stream to the other.
  NEDS_DEVICE int other_x() const { return x == p.s_x ? p.s_x2 - p.s_x : p.s_x - p.s_x2; }

  NEDS_DEVICE void run() {
    begin();
    input();
    if (p.recurrent) recall();
    if (header->flags & flag_skip) {
      team.wait(0);
      if (team.index == 0) team.finish(p.done, header->sequence);
      return;
    }
    int phase = p.stem_phases();
    for (int layer = 0; layer < p.layers; ++layer, phase += phases_per_layer) run_layer(layer, phase);
    if (team.index == 0) readout();
  }

  // ---- staging -------------------------------------------------------------------------------

  NEDS_DEVICE const Chunk* chunks() const { return reinterpret_cast<const Chunk*>(s + p.s_chunks); }
  NEDS_DEVICE char* stage() const { return reinterpret_cast<char*>(s + p.s_stage); }
  NEDS_DEVICE const Weight* matrices() const { return static_cast<const Weight*>(p.weights); }
  NEDS_DEVICE const Weight* layer_matrices(int layer) const {
    return matrices() + p.w_layers + layer * p.w_layer_stride;
  }

  // Copy this block's rows of a matrix (n, ld) to `to`; returns the bytes.
  NEDS_DEVICE std::size_t copy_rows(char* to, const Weight* matrix, int n, int ld) {
    const Share share = share_of(n, team.index, team.count);
    const std::size_t bytes = static_cast<std::size_t>(share.count) * ld * sizeof(Weight);
    if (bytes)  // a share beyond the end has no address
      team.copy(to, matrix + static_cast<std::size_t>(share.begin) * ld, bytes);
    return bytes;
  }

  // Start loading every chunk whose turn it is at the beginning of `phase`.
  NEDS_DEVICE void prefetch(int phase) {
    while (next_chunk < p.phases() && chunks()[next_chunk].issue <= phase) {
      load_chunk(next_chunk);
      team.commit();
      ++next_chunk;
    }
  }

  NEDS_DEVICE void load_chunk(int chunk) {
    if (chunks()[chunk].offset < 0) return;
    char* to = stage() + chunks()[chunk].offset;
    if (chunk == 0) {
      copy_rows(to, matrices(), p.hidden, p.ld_units);
      return;
    }
    if (chunk < p.stem_phases()) {
      to += copy_rows(to, matrices() + p.w_gates, p.hidden, 3 * p.ld_hidden);
      copy_rows(to, matrices() + p.w_gates + gates_size(), p.hidden, 3 * p.ld_hidden);
      return;
    }
    const int layer = (chunk - p.stem_phases()) / phases_per_layer;
    const Weight* w = layer_matrices(layer);
    switch ((chunk - p.stem_phases()) % phases_per_layer) {
      case 0:
        to += copy_rows(to, w, p.hidden, p.ld_hidden);
        copy_rows(to, w + static_cast<std::size_t>(p.hidden) * p.ld_hidden, 2 * p.hidden, p.ld_hidden);
        break;
      case 1: {
        if (team.index >= p.heads) break;
        const std::size_t bytes = static_cast<std::size_t>(p.window) * p.ld_head * sizeof(float);
        team.copy(to, ring(p.keys, layer, team.index), bytes);
        team.copy(to + bytes, ring(p.values, layer, team.index), bytes);
        break;
      }
      case 2: copy_rows(to, w + p.w_out, p.hidden, p.ld_hidden); break;
      case 3: copy_rows(to, w + p.w_up, p.mlp, p.ld_hidden); break;
      default: copy_rows(to, w + p.w_down, p.hidden, p.ld_mlp);
    }
  }

  // Wait for the phase's chunk; a block_sync has to follow before it is read.
  NEDS_DEVICE void await_chunk(int phase) { team.wait(next_chunk - 1 - phase); }

  // This block's rows: where they are staged, or in the matrix itself.
  NEDS_DEVICE const Weight* my_rows(int phase, const Weight* matrix, Share share, int ld,
                                    std::size_t after = 0) const {
    const int offset = chunks()[phase].offset;
    if (offset < 0) return matrix + static_cast<std::size_t>(share.begin) * ld;
    return reinterpret_cast<const Weight*>(stage() + offset + after);
  }

  // ---- input ---------------------------------------------------------------------------------

  NEDS_DEVICE void begin() {
    const vec4* from = reinterpret_cast<const vec4*>(p.input);
    vec4* to = reinterpret_cast<vec4*>(s + p.s_input);
    for (std::size_t i = team.thread; i < p.in_bytes / sizeof(vec4); i += team.threads)
      to[i] = team.read_input(from + i);
    for (int i = team.thread; i < p.phases(); i += team.threads)
      reinterpret_cast<Chunk*>(s + p.s_chunks)[i] = p.chunks[i];
    for (int i = p.s_counts + team.thread; i < p.s_stage; i += team.threads) s[i] = 0;
    team.block_sync();
    present = (header->flags & flag_present) != 0;
    dry = (header->flags & flag_dry) != 0;
    prefetch(0);
    const std::uint16_t* counts = section<std::uint16_t>(p.in_counts);
    for (int u = team.thread; u < p.units; u += team.threads)
      s[p.s_counts + u] = present ? static_cast<float>(counts[u]) : 0.0f;
    // The memory is read before the team meets for the first time, and written after that.
    if (p.recurrent && !(header->flags & flag_first))
      for (int i = team.thread; i < p.hidden; i += team.threads) s[p.s_memory + i] = p.memory[i];
    await_chunk(0);
    team.start();
    team.mark(0);
  }

  template <class T>
  NEDS_DEVICE const T* section(std::size_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(s + p.s_input) + offset);
  }

  NEDS_DEVICE void input() {
    const Share share = share_of(p.hidden, team.index, team.count);
    const Weight* w = my_rows(0, matrices(), share, p.ld_units);
    for (int j = warp * tile_rows; j < share.count; j += warps * tile_rows)
      multiply(w, p.ld_units, j, share.count, s + p.s_counts, lane,
                  [&](int row, float sum, int copy, int copies) {
                    const int o = share.begin + row;
                    const float e = embed(o, sum, copy == 0);
                    team.publish(p.s_x + o, p.recurrent ? e : token(o, e), copy, copies);
                  });
    team.sync();
    team.fetch(p.s_x, p.ld_hidden);
    team.mark(1);
  }

  // Feature `o` of the bin's embedding after the convolution, from the product of its counts.
  NEDS_DEVICE float embed(int o, float product, bool keep) {
    const float e = present ? product + p.floats[p.f_input_bias + o] : 0.0f;
    if (!p.conv) return e;
    const std::uint32_t* valid = section<std::uint32_t>(p.in_conv_valid);
    const float* weight = p.floats + p.f_conv_weight + o;
    float g = p.floats[p.f_conv_bias + o] + weight[0] * e;
    for (int tap = 1; tap < p.conv; ++tap) {
      const int slot = (header->conv_slot - tap + p.conv) % p.conv;
      if (valid[slot / 32] >> slot % 32 & 1)
        g += weight[tap * p.hidden] * p.conv_ring[slot * p.ld_hidden + o];
    }
    if (keep && !dry) p.conv_ring[header->conv_slot * p.ld_hidden + o] = e;
    return e + gelu(g);
  }

  // Feature `o` of the bin's token, from what the stem made of its embedding.
  NEDS_DEVICE float token(int o, float e) const {
    return present ? e + p.floats[p.f_token + o] : p.floats[p.f_lost + o];
  }

  // ---- GRU -----------------------------------------------------------------------------------

  NEDS_DEVICE std::size_t gates_size() const {
    return static_cast<std::size_t>(3 * p.hidden) * p.ld_hidden;
  }

  // A block has all gates of its features, so it needs no other block for their memory.
  NEDS_DEVICE void recall() {
    constexpr int phase = 1;
    const Share share = share_of(p.hidden, team.index, team.count);
    const Share gates{3 * share.begin, 3 * share.count};
    prefetch(phase);
    await_chunk(phase);
    team.block_sync();
    const Weight* w = matrices() + p.w_gates;
    const std::size_t after = static_cast<std::size_t>(gates.count) * p.ld_hidden * sizeof(Weight);
    gate(my_rows(phase, w, gates, p.ld_hidden), p.s_x, gates.count, 0);
    gate(my_rows(phase, w + gates_size(), gates, p.ld_hidden, after), p.s_memory, gates.count, gates.count);
    team.block_sync();
    const float *now = s + p.s_gates, *back = now + gates.count;
    const float *bias = p.floats + p.f_gates + gates.begin, *bias_back = bias + 3 * p.hidden;
    for (int j = warp; j < share.count; j += warps) {
      const int o = share.begin + j, i = 3 * j;
      const float reset = logistic(now[i] + bias[i] + back[i] + bias_back[i]);
      const float update = logistic(now[i + 1] + bias[i + 1] + back[i + 1] + bias_back[i + 1]);
      const float candidate = tanhf(now[i + 2] + bias[i + 2] + reset * (back[i + 2] + bias_back[i + 2]));
      const float memory = candidate + update * (s[p.s_memory + o] - candidate);
      if (lane == 0 && !dry) p.memory[o] = memory;
      team.publish(p.s_x2 + o, token(o, s[p.s_x + o] + memory), lane, lanes);
    }
    team.sync();
    x += other_x();
    team.fetch(x, p.ld_hidden);
    team.mark(phase + 1);
  }

  // Products of `n` rows with the vector at `input`, for this block alone.
  NEDS_DEVICE void gate(const Weight* w, int input, int n, int begin) {
    for (int j = warp * tile_rows; j < n; j += warps * tile_rows)
      multiply(w, p.ld_hidden, j, n, s + input, lane,
                  [&](int row, float sum, int copy, int) {
                    if (copy == 0) s[p.s_gates + begin + row] = sum;
                  });
  }

  // ---- one layer -----------------------------------------------------------------------------

  NEDS_DEVICE void run_layer(int layer, int phase) {
    const Weight* w = layer_matrices(layer);
    const float* f = p.floats + p.f_layers + layer * p.f_layer_stride;
    const int x_size = p.ld_hidden;

    prefetch(phase);
    norm(f + p.f_norm1_weight, f + p.f_norm1_bias, phase);
    project(w, f, phase);
    team.sync();
    team.mark(phase + 1);

    prefetch(++phase);
    await_chunk(phase);
    attend(layer, phase);
    team.sync();
    team.fetch(p.s_attended, x_size);
    team.mark(phase + 1);

    prefetch(++phase);
    await_chunk(phase);
    team.block_sync();
    linear(w + p.w_out, p.hidden, p.ld_hidden, p.s_attended, phase,
           [&](int o, float sum, int copy, int copies) {
             const int at = x + o;
             team.publish(at + other_x(), s[at] + (sum + f[p.f_out_bias + o]), copy, copies);
           });
    team.sync();
    x += other_x();
    team.fetch(x, x_size);
    team.mark(phase + 1);

    prefetch(++phase);
    norm(f + p.f_norm2_weight, f + p.f_norm2_bias, phase);
    linear(w + p.w_up, p.mlp, p.ld_hidden, p.s_y, phase,
           [&](int o, float sum, int copy, int copies) {
             const float inner = gelu(sum + f[p.f_up_bias + o]);
             team.publish(p.s_inner + o, inner, copy, copies);
           });
    team.sync();
    team.fetch(p.s_inner, p.ld_mlp);
    team.mark(phase + 1);

    prefetch(++phase);
    await_chunk(phase);
    team.block_sync();
    linear(w + p.w_down, p.hidden, p.ld_mlp, p.s_inner, phase,
           [&](int o, float sum, int copy, int copies) {
             const int at = x + o;
             team.publish(at + other_x(), s[at] + (sum + f[p.f_down_bias + o]), copy, copies);
           });
    team.sync();
    x += other_x();
    team.fetch(x, x_size);
    team.mark(phase + 1);
  }

  // y = norm(x); the phase's chunk is there afterwards.
  NEDS_DEVICE void norm(const float* weight, const float* bias, int phase) {
    if (warp == 0) layer_norm(s + x, weight, bias, p.hidden, lane, s + p.s_y);
    await_chunk(phase);
    team.block_sync();
  }

  // This block's rows of a matrix (n, ld) times the vector at `from`.
  template <class F>
  NEDS_DEVICE void linear(const Weight* matrix, int n, int ld, int from, int phase, const F& f) {
    const Share share = share_of(n, team.index, team.count);
    const Weight* w = my_rows(phase, matrix, share, ld);
    for (int j = warp * tile_rows; j < share.count; j += warps * tile_rows)
      multiply(w, ld, j, share.count, s + from, lane,
                  [&](int row, float sum, int copy, int copies) {
                    f(share.begin + row, sum, copy, copies);
                  });
  }

  // Query, key and value. Heads are padded to ld_head.
  NEDS_DEVICE void project(const Weight* w, const float* f, int phase) {
    const Share q = share_of(p.hidden, team.index, team.count);
    const Share kv = share_of(2 * p.hidden, team.index, team.count);
    const int ld = p.ld_hidden, ld_q = p.heads * p.ld_head;
    const Weight* w_q = my_rows(phase, w, q, ld);
    const std::size_t after = static_cast<std::size_t>(q.count) * ld * sizeof(Weight);
    const Weight* w_kv = my_rows(phase, w + static_cast<std::size_t>(p.hidden) * ld, kv, ld, after);
    const int tasks_q = (q.count + tile_rows - 1) / tile_rows;
    const int tasks_kv = (kv.count + tile_rows - 1) / tile_rows;
    for (int task = warp; task < tasks_q + tasks_kv; task += warps) {
      if (task >= tasks_q)
        multiply(w_kv, ld, (task - tasks_q) * tile_rows, kv.count, s + p.s_y, lane,
                    [&](int row, float sum, int copy, int copies) {
                      const int o = kv.begin + row;
                      const int at = o < p.hidden ? padded(o) : ld_q + padded(o - p.hidden);
                      const float bias = f[p.f_qkv_bias + p.hidden + o];
                      team.publish(p.s_kv + at, sum + bias, copy, copies);
                    });
      else
        multiply(w_q, ld, task * tile_rows, q.count, s + p.s_y, lane,
                    [&](int row, float sum, int copy, int copies) {
                      const int o = q.begin + row;
                      team.publish(p.s_q + padded(o), sum + f[p.f_qkv_bias + o], copy, copies);
                    });
    }
  }

  NEDS_DEVICE int padded(int o) const { return o / p.head_dim * p.ld_head + o % p.head_dim; }

  // ---- attention -----------------------------------------------------------------------------

  NEDS_DEVICE float* ring(float* base, int layer, int head) const {
    return base + (static_cast<std::size_t>(layer) * p.heads + head) * p.window * p.ld_head;
  }

  // The heads are dealt out to the blocks.
  NEDS_DEVICE void attend(int layer, int phase) {
    for (int head = team.index; head < p.heads; head += team.count) {
      const float* keys = ring(p.keys, layer, head);
      const float* values = ring(p.values, layer, head);
      if (head == team.index && chunks()[phase].offset >= 0) {
        keys = reinterpret_cast<const float*>(stage() + chunks()[phase].offset);
        values = keys + static_cast<std::size_t>(p.window) * p.ld_head;
      }
      turn(head);
      remember(layer, head);
      score(keys);
      soften();
      mix(values);
      gather(head);
    }
  }

  // Rotate the query (scaled by 1 / sqrt(head_dim)) and the new key by the bin's position.
  NEDS_DEVICE void turn(int head) {
    const int half = p.head_dim / 2, ld_q = p.heads * p.ld_head, at = head * p.ld_head;
    const float* cosine = section<float>(p.in_cosine);
    const float* sine = section<float>(p.in_sine);
    const float scale = inverse_root(static_cast<float>(p.head_dim));
    team.fetch_part(p.s_kv + at, p.ld_head);
    team.fetch_part(p.s_kv + ld_q + at, p.ld_head);
    team.fetch_part(p.s_q + at, p.ld_head);
    team.block_sync();  // of what was fetched, and of the last head's reading
    for (int i = team.thread; i < 2 * half; i += team.threads) {
      const bool key = i >= half;
      const int j = key ? i - half : i;
      const float* from = s + (key ? p.s_kv : p.s_q) + at;
      float* to = s + (key ? p.s_own : p.s_query);
      const float a = from[j], b = from[j + half], size = key ? 1.0f : scale;
      to[j] = size * (a * cosine[j] - b * sine[j]);
      to[j + half] = size * (b * cosine[j] + a * sine[j]);
    }
    for (int i = team.thread; i < p.head_dim; i += team.threads)
      s[p.s_own + p.ld_head + i] = s[p.s_kv + ld_q + at + i];
    team.block_sync();
  }

  // Keep the new key and value for the bins to come. What was staged of this slot is not used: the
  // new ones are at hand.
  NEDS_DEVICE void remember(int layer, int head) {
    if (!present || dry) return;
    const std::size_t at = static_cast<std::size_t>(header->slot) * p.ld_head;
    float* key = ring(p.keys, layer, head) + at;
    float* value = ring(p.values, layer, head) + at;
    for (int i = team.thread; i < p.head_dim; i += team.threads) {
      key[i] = s[p.s_own + i];
      value[i] = s[p.s_own + p.ld_head + i];
    }
  }

  // Lanes that share one slot: a power of two, each with 4 dimensions at a time.
  NEDS_DEVICE int lanes_per_slot() const {
    int n = 1;
    while (2 * n <= lanes && 2 * n <= p.ld_head / 4) n *= 2;
    return n;
  }

  NEDS_DEVICE bool valid(int slot) const {
    return section<std::uint32_t>(p.in_valid)[slot / 32] >> slot % 32 & 1;
  }

  NEDS_DEVICE void score(const float* keys) {
    const int share = lanes_per_slot(), each = lanes / share, sub = lane % share;
    for (int first = warp * each; first < p.window; first += warps * each) {
      const int slot = first + lane / share;
      const int held = slot < p.window ? slot : p.window - 1;
      const float* key = held == header->slot ? s + p.s_own : keys + held * p.ld_head;
      float sum = 0;
      for (int i = sub * 4; i < p.ld_head; i += share * 4)
        sum = dot4(load4(key + i), load4(s + p.s_query + i), sum);
      for (int mask = share / 2; mask > 0; mask /= 2) sum += exchange(sum, mask);
      if (sub == 0 && slot < p.window) s[p.s_scores + slot] = valid(slot) ? sum : -INFINITY;
    }
    team.block_sync();
  }

  // Scores become e^(score - largest); their sum's inverse is kept, 0 where nothing is attended to.
  NEDS_DEVICE void soften() {
    const bool some = (header->flags & flag_any_valid) != 0;
    if (warp == 0) {
      float* scores = s + p.s_scores;
      float largest = -INFINITY;
      for (int i = lane; i < p.window; i += lanes) largest = fmaxf(largest, scores[i]);
      largest = some ? warp_max(largest) : 0.0f;
      float sum = 0;
      for (int i = lane; i < p.window; i += lanes) {
        scores[i] = exponential(scores[i] - largest);
        sum += scores[i];
      }
      sum = warp_sum(sum);
      if (lane == 0) s[p.s_inverse] = some ? 1.0f / sum : 0.0f;
    }
    team.block_sync();
  }

  // Each warp's part of the weighted sum of values, [warp][ld_head].
  NEDS_DEVICE void mix(const float* values) {
    const int share = lanes_per_slot(), each = lanes / share, sub = lane % share;
    for (int base = 0; base < p.ld_head; base += share * 4) {
      const bool inside = base + sub * 4 < p.ld_head;  // all lanes take part in the exchanges
      const int i = inside ? base + sub * 4 : 0;
      vec4 sum = {};
      for (int slot = warp * each + lane / share; slot < p.window; slot += warps * each) {
        const float* value = slot == header->slot ? s + p.s_own + p.ld_head : values + slot * p.ld_head;
        const vec4 v = load4(value + i);
        const float weight = s[p.s_scores + slot];
        sum.x += weight * v.x;
        sum.y += weight * v.y;
        sum.z += weight * v.z;
        sum.w += weight * v.w;
      }
      for (int mask = lanes / 2; mask >= share; mask /= 2) {
        sum.x += exchange(sum.x, mask);
        sum.y += exchange(sum.y, mask);
        sum.z += exchange(sum.z, mask);
        sum.w += exchange(sum.w, mask);
      }
      if (inside && lane < share)
        *reinterpret_cast<vec4*>(s + p.s_parts + warp * p.ld_head + i) = sum;
    }
    team.block_sync();
  }

  NEDS_DEVICE void gather(int head) {
    for (int i = team.thread; i < p.head_dim; i += team.threads) {
      float sum = 0;
      for (int part = 0; part < warps; ++part) sum += s[p.s_parts + part * p.ld_head + i];
      team.publish(p.s_attended + head * p.head_dim + i, sum * s[p.s_inverse], 0, 1);
    }
  }

  // ---- readout -------------------------------------------------------------------------------

  NEDS_DEVICE void readout() {
    const float* f = p.floats;
    team.block_sync();
    if (warp == 0) layer_norm(s + x, f + p.f_norm_weight, f + p.f_norm_bias, p.hidden, lane, s + p.s_y);
    team.block_sync();
    for (int o = warp; o < p.n_outputs; o += warps) {
      const float* w = f + p.f_head_weight + static_cast<std::size_t>(o) * p.ld_hidden;
      const float* y = s + p.s_y;
      float sum = 0;
      for (int k = lane * 4; k < p.ld_hidden; k += lanes * 4) sum = dot4(load4(w + k), load4(y + k), sum);
      sum = warp_sum(sum);
      if (lane == 0) p.raw[o] = sum + f[p.f_head_bias + o];
    }
    team.block_sync();
    for (int i = warp; i < p.n_softmax; i += warps)
      make_probabilities(p.raw + p.softmax[2 * i], p.softmax[2 * i + 1]);
    team.block_sync();
    if (!dry)
      for (int o = team.thread; o < p.n_outputs; o += team.threads) p.outputs[o] = p.raw[o];
    team.finish(p.done, header->sequence);
    team.mark(1 + p.phases());
  }

  NEDS_DEVICE void make_probabilities(float* x, int n) {
    float largest = -INFINITY;
    for (int i = lane; i < n; i += lanes) largest = fmaxf(largest, x[i]);
    largest = warp_max(largest);
    float sum = 0;
    for (int i = lane; i < n; i += lanes) sum += exponential(x[i] - largest);
    sum = warp_sum(sum);
    for (int i = lane; i < n; i += lanes) x[i] = exponential(x[i] - largest) / sum;
  }
};

}  // namespace neds::gpu
