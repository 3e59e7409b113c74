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
// A step is one chain of dependent instructions, most of them executed once. So all phases are
// entries of a table (`Job`) that one loop goes through: few instructions, and few to be fetched.
#pragma once

#include "attention.hpp"
#include "plan.hpp"
#include "warp.hpp"

namespace neds::gpu {

// Team gives: index, count (blocks), shared, thread, threads; block_sync(), warp_sync();
// arrive(), started(): all blocks are there, their shared memory cleared; loads(): this thread has a
// part in load(); send(offset, value, copy,
// copies), send_tile(offset, value, copy) with lanes / tile_rows copies, send4(offset, values),
// nothing(): to all blocks' shared memory; meet(offset, n, sent): the n floats from `offset`, and
// `sent` in all, have come, to be read after the next block_sync; load(i, to, from, bytes) and
// wait(i, loaded): job i's data, the i-th to be loaded, to shared memory while computing goes on;
// mark(i): take the time.
template <class Weight, class Team>
struct Step {
  const Plan& p;
  Team& team;
  int lane, warp, warps;
  float* s;
  const InputHeader* header;
  Share own;  // features of this block
  bool present = false, dry = false;
  int loaded = 0;  // jobs
  int part = 0;    // of the input that this thread has read, and what it is
  vec4 piece = {};

  NEDS_DEVICE Step(const Plan& plan, Team& t)
      : p(plan), team(t), lane(t.thread % lanes), warp(t.thread / lanes), warps(t.threads / lanes),
        s(t.shared), header(reinterpret_cast<const InputHeader*>(t.shared + plan.s_input)),
        own(share_of(plan.hidden, t.index, t.count)) {}

  NEDS_DEVICE void run() {
    begin();
    const int last = p.n_jobs - 1, stem = p.recurrent ? bin_gates : input;
    NEDS_ROLLED
    for (int i = 0; i < last; ++i) {
      const Job& job = jobs()[i];
      if (job.kind == input) receive();
      await(i);
      if (job.kind == attention)
        Attention<Step>{*this, job.first, data_of(i)}.run();
      else
        product(i);
      if (job.kind == bin_gates) recall();
      prefetch(i);
      if (job.extent) meet(job.kind == bin_gates ? job.x : job.to, job.extent, job.sent, job.silent);
      team.mark(i + 1);
      if (job.kind == stem && (header->flags & flag_skip)) return finish_skipped(i);
    }
    if (team.index == 0) readout(last);
    team.mark(last + 1);
  }

  // A lost bin of which nobody wants outputs ends when its stem is done.
  NEDS_DEVICE void finish_skipped(int i) {
    for (++i; i < loaded; ++i) team.wait(i, loaded);
    if (team.index == 0 && team.thread == 0) *p.done = header->sequence;
  }

  // ---- staging -------------------------------------------------------------------------------

  NEDS_DEVICE const Job* jobs() const { return reinterpret_cast<const Job*>(s + p.s_jobs); }

  // Start loading the data of every job whose turn has come in job `now`.
  NEDS_DEVICE void prefetch(int now) {
    if (!team.loads()) return;
    NEDS_ROLLED
    while (loaded < p.n_jobs && jobs()[loaded].issue <= now) {
      const Job& job = jobs()[loaded];
      team.load(loaded, reinterpret_cast<char*>(s) + job.staged, source(job), job.staged < 0 ? 0 : job.bytes);
      ++loaded;
    }
  }

  NEDS_DEVICE const char* source(const Job& job) const {
    const void* base = job.kind == attention ? static_cast<const void*>(p.rings) : p.weights;
    return static_cast<const char*>(base) + job.source;
  }

  NEDS_DEVICE const char* data_of(int i) const {
    const Job& job = jobs()[i];
    return job.staged < 0 ? source(job) : reinterpret_cast<const char*>(s) + job.staged;
  }

  // The job's data are there, and all that was received is there for all threads.
  NEDS_DEVICE void await(int i) {
    if (jobs()[i].issue == i && i > 0) {
      team.block_sync();
      prefetch(i);
    }
    team.wait(i, loaded);
    team.block_sync();
  }

  // ---- between host and blocks ---------------------------------------------------------------

  NEDS_DEVICE void meet(int offset, int n, int sent, int silent) {
    if (silent) team.nothing();
    team.meet(offset, n, sent);
  }

  // Each load from device memory takes its time: they are spread over the warps, so that they all wait
  // at once and none after another.
  NEDS_DEVICE void begin() {
    part = team.index + team.count * team.thread;
    if (part < n_parts()) piece = team.read_input(reinterpret_cast<const vec4*>(p.input) + part);
    copy(0, p.s_jobs, p.jobs + static_cast<std::size_t>(team.index) * p.n_jobs,
         p.n_jobs * static_cast<int>(sizeof(Job) / sizeof(vec4)));
    if (p.recurrent) copy(1, p.s_memory, p.memory, p.ld_hidden / 4);
    NEDS_ROLLED
    for (int i = after_quarters(2); i < p.conv * own.count; i += team.threads) {
      const int slot = i / own.count, j = i - slot * own.count;
      s[p.s_conv + i] = p.conv_ring[slot * p.ld_hidden + own.begin + j];
    }
    NEDS_ROLLED
    for (int i = after_quarters(3); i < 2 * p.n_softmax; i += team.threads)
      reinterpret_cast<std::int32_t*>(s + p.s_softmax)[i] = p.softmax[i];
    clear(p.s_counts, p.ld_units);
    if (p.padded) clear(p.s_x, p.s_stage - p.s_x);
    team.arrive();
    team.block_sync();
    prefetch(0);
    team.mark(0);
  }

  // This thread's number when some quarters of all threads are counted last.
  NEDS_DEVICE int after_quarters(int n) const {
    const int first = team.threads * n / 4;
    return team.thread - first + (team.thread < first ? team.threads : 0);
  }

  // n times four floats from device memory.
  NEDS_DEVICE void copy(int quarter, int to, const void* from, int n) {
    NEDS_ROLLED
    for (int i = after_quarters(quarter); i < n; i += team.threads)
      reinterpret_cast<vec4*>(s + to)[i] = static_cast<const vec4*>(from)[i];
  }

  NEDS_DEVICE void clear(int from, int n) {
    NEDS_ROLLED
    for (int i = team.thread; i < n / 4; i += team.threads) reinterpret_cast<vec4*>(s + from)[i] = vec4{};
  }

  NEDS_DEVICE int n_parts() const { return static_cast<int>(p.in_bytes / sizeof(vec4)); }

  // The host's input: each block has read its part of it, and sends it to all.
  NEDS_DEVICE void receive() {
    team.started();
    NEDS_ROLLED
    for (; part < n_parts(); part += team.count * team.threads) {
      if (part >= team.count * team.threads)
        piece = team.read_input(reinterpret_cast<const vec4*>(p.input) + part);
      team.send4(p.s_input + 4 * part, piece);
    }
    const int n = n_parts(), busy = n < team.count ? n : team.count;
    meet(p.s_input, 4 * n, 4 * n + team.count - busy, team.index >= busy);
    team.block_sync();
    present = (header->flags & flag_present) != 0;
    dry = (header->flags & flag_dry) != 0;
    const std::uint16_t* counts = section<std::uint16_t>(p.in_counts);
    NEDS_ROLLED
    for (int u = team.thread; u < p.units; u += team.threads)
      s[p.s_counts + u] = present ? static_cast<float>(counts[u]) : 0.0f;
  }

  template <class T>
  NEDS_DEVICE const T* section(std::size_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(s + p.s_input) + offset);
  }

  // ---- products ------------------------------------------------------------------------------

  NEDS_DEVICE void product(int i) {
    const Job job = jobs()[i];
    const char* data = data_of(i);
    const float* after = reinterpret_cast<const float*>(data + job.row_bytes);
    Norm norm{nullptr, after + p.ld_hidden, 0, 0};
    if (job.kind == qkv || job.kind == up) {
      norm.weight = after;
      measure(s + job.from, p.hidden, p.ld_hidden, lane, norm);
    }
    const Weight* rows = reinterpret_cast<const Weight*>(data);
    const int row = job.ld + bias_bytes / static_cast<int>(sizeof(Weight));
    NEDS_ROLLED
    for (int j = warp * tile_rows; j < job.rows; j += warps * tile_rows)
      multiply(rows + j * row, job.ld, s + job.from, norm, lane, [&](int k, float value, int copy) {
        if (j + k < job.rows) deliver(job, j + k, value, copy, after);
      });
  }

  // What becomes of a product with the block's own `row`.
  NEDS_DEVICE void deliver(const Job& job, int row, float value, int copy, const float* after) {
    const int o = job.first + row;
    int at = job.to + o;
    switch (job.kind) {
      case memory_gates:
      case bin_gates:
        if (copy == 0) s[at] = value;
        return;
      case input:
        value = embed(row, o, value, copy == 0, after);
        if (!p.recurrent) value = token(row, value, after);
        break;
      case qkv:
        if (p.head_dim != p.ld_head) at += o / p.head_dim * (p.ld_head - p.head_dim);
        break;
      case up: value = gelu(value); break;
      default: value += s[job.x + o];
    }
    team.send_tile(at, value, copy);
  }

  // Feature `o` of the bin's embedding after the convolution.
  NEDS_DEVICE float embed(int row, int o, float product, bool keep, const float* stem) {
    const float e = present ? product : 0.0f;
    if (!p.conv) return e;
    const std::uint32_t* valid = section<std::uint32_t>(p.in_conv_valid);
    float g = stem[stem_conv_bias * own.count + row] + stem[stem_fields * own.count + row] * e;
    NEDS_ROLLED
    for (int tap = 1; tap < p.conv; ++tap) {
      const int slot = header->conv_slot - tap + (tap > header->conv_slot ? p.conv : 0);
      if (valid[slot / 32] >> slot % 32 & 1)
        g += stem[(stem_fields + tap) * own.count + row] * s[p.s_conv + slot * own.count + row];
    }
    if (keep && !dry) p.conv_ring[header->conv_slot * p.ld_hidden + o] = e;
    return e + gelu(g);
  }

  // Feature `row` of the bin's token, from what the stem made of its embedding.
  NEDS_DEVICE float token(int row, float e, const float* stem) const {
    return present ? e + stem[stem_token * own.count + row] : stem[stem_lost * own.count + row];
  }

  // The GRU's memory after the bin. A block has all gates of its features, so it asks no other.
  NEDS_DEVICE void recall() {
    const Job& of_memory = jobs()[memory_gates];
    const Job& of_bin = jobs()[bin_gates];
    const float* constants = reinterpret_cast<const float*>(data_of(bin_gates) + of_bin.row_bytes);
    team.block_sync();
    const float *now = s + p.s_gates, *back = s + of_memory.to + of_memory.first;
    for_each(own.count, p.own_shift, [&](int j, int copy, int copies) {
      const int o = own.begin + j, i = 3 * j;
      const float reset = logistic(now[i] + back[i]), update = logistic(now[i + 1] + back[i + 1]);
      const float candidate = tanhf(now[i + 2] + reset * back[i + 2]);
      const float memory = candidate + update * (s[p.s_memory + o] - candidate);
      if (copy == 0 && !dry) p.memory[o] = memory;
      team.send(of_bin.x + o, token(j, s[p.s_x + o] + memory, constants), copy, copies);
    });
  }

  // Call f(i, copy, copies) for each i < n, by 2^shift threads that share what it sends.
  template <class F>
  NEDS_DEVICE void for_each(int n, int shift, const F& f) {
    const int copies = 1 << shift;
    NEDS_ROLLED
    for (int i = team.thread; i < n << shift; i += team.threads) f(i >> shift, i & (copies - 1), copies);
  }

  // ---- readout -------------------------------------------------------------------------------

  NEDS_DEVICE void readout(int i) {
    await(i);
    const Job job = jobs()[i];
    const float* rows = reinterpret_cast<const float*>(data_of(i));
    const float* after = rows + job.row_bytes / sizeof(float);
    Norm norm{after, after + p.ld_hidden, 0, 0};
    measure(s + job.from, p.hidden, p.ld_hidden, lane, norm);
    NEDS_ROLLED
    for (int o = warp; o < p.n_outputs; o += warps) {
      const float* w = rows + o * (p.ld_hidden + bias_bytes / static_cast<int>(sizeof(float)));
      float sum = 0;
      NEDS_ROLLED
      for (int k = lane * 4; k < p.ld_hidden; k += lanes * 4)
        sum = dot4(load4(w + k), normed(load4(s + job.from + k), norm, k), sum);
      sum = warp_sum(sum);
      if (lane == 0) s[p.s_raw + o] = sum + bias_of(w, p.ld_hidden);
    }
    team.block_sync();
    const std::int32_t* softmax = reinterpret_cast<const std::int32_t*>(s + p.s_softmax);
    NEDS_ROLLED
    for (int k = warp; k < p.n_softmax; k += warps)
      make_probabilities(s + p.s_raw + softmax[2 * k], softmax[2 * k + 1]);
    team.block_sync();
    if (dry) {
      if (team.thread == 0) *p.done = header->sequence;
      return;
    }
    NEDS_ROLLED
    for (int o = team.thread; o < p.n_outputs; o += team.threads)
      p.outputs[o] = static_cast<Output>(header->sequence) << 32 | bits_of(s[p.s_raw + o]);
  }

  NEDS_DEVICE void make_probabilities(float* values, int n) {
    float largest = -INFINITY, sum = 0;
    NEDS_ROLLED
    for (int i = lane; i < n; i += lanes) largest = fmaxf(largest, values[i]);
    largest = warp_max(largest);
    NEDS_ROLLED
    for (int i = lane; i < n; i += lanes) sum += exponential(values[i] - largest);
    sum = warp_sum(sum);
    NEDS_ROLLED
    for (int i = lane; i < n; i += lanes) values[i] = exponential(values[i] - largest) / sum;
  }
};

}  // namespace neds::gpu
