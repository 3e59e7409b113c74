// What the GPU step reads and writes: sizes, addresses on the device, and the layout of a block's
// shared memory. Filled by layout.cpp, passed to the kernel by value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace neds::gpu {

// The head of the input buffer that the host writes for every step. After it come, each aligned to
// 16 bytes: cosines and sines of the bin's rotary phases (head_dim / 2 floats each), validity bits
// of the ring's slots, validity bits of the convolution's slots, and the counts (uint16).
struct InputHeader {
  std::uint32_t sequence;  // written to `done` when the outputs are there
  std::int32_t slot;       // of the ring of keys and values, position % window
  std::int32_t conv_slot;  // of the ring of embeddings, position % conv
  std::uint32_t flags;
};

inline constexpr std::uint32_t flag_present = 1;    // the bin was recorded
inline constexpr std::uint32_t flag_dry = 2;        // leave rings and outputs as they are
inline constexpr std::uint32_t flag_any_valid = 4;  // some slot can be attended to
inline constexpr std::uint32_t flag_first = 8;      // the GRU's memory is still zero
inline constexpr std::uint32_t flag_skip = 16;      // move the states on, give no outputs

// A piece of weights (or of keys and values) that a block needs in one phase, and where in its
// shared memory it is staged: loaded at the beginning of phase `issue`, `offset` < 0 if never.
struct Chunk {
  std::int32_t offset;  // bytes into the stage
  std::int32_t issue;
};

inline constexpr int max_in_flight = 7;  // chunks on their way to shared memory at once
inline constexpr int phases_per_layer = 5;

struct Plan {
  int units, hidden, layers, heads, head_dim, mlp, window, conv;
  bool recurrent;
  int n_outputs;
  int n_softmax;  // ranges of outputs that are probabilities
  int ld_units, ld_hidden, ld_mlp;  // padded to a multiple of 8
  int ld_head;                      // padded to a multiple of 4

  // Matrices, in elements of their type: input (hidden, units), the GRU's of the bin and of the
  // memory, each (hidden, 3 gates, hidden), then the layers.
  const void* weights;
  std::size_t w_gates, w_layers, w_layer_stride, w_out, w_up, w_down;  // qkv is at the layer's begin

  // Everything that stays in float, as offsets from `floats`.
  const float* floats;
  std::size_t f_input_bias, f_token, f_lost, f_conv_weight, f_conv_bias, f_gates, f_norm_weight,
      f_norm_bias, f_head_weight, f_head_bias, f_layers, f_layer_stride;
  std::size_t f_norm1_weight, f_norm1_bias, f_qkv_bias, f_out_bias, f_norm2_weight, f_norm2_bias,
      f_up_bias, f_down_bias;  // from the layer's begin

  const std::int32_t* softmax;  // [n_softmax][2] first output and number of outputs
  const Chunk* chunks;          // [phases()]

  float* keys;       // [layers][heads][window][ld_head], rotated
  float* values;     // likewise
  float* conv_ring;  // [conv][ld_hidden], embeddings of the last bins
  float* memory;     // [ld_hidden] of the GRU
  float* raw;        // [n_outputs] scratch

  const std::uint8_t* input;  // InputHeader and what follows
  std::size_t in_cosine, in_sine, in_valid, in_conv_valid, in_counts, in_bytes;
  float* outputs;                // [n_outputs] where the host reads them
  volatile std::uint32_t* done;  // the sequence number of the last step that is complete
  float* exchange;               // activations that blocks give each other, unless in a cluster
  unsigned* barrier;             // of the whole grid, likewise
  long long* marks;              // clock at the end of each phase of block 0, or null

  // Offsets in a block's shared memory, in floats.
  int s_input, s_chunks, s_counts, s_memory, s_gates, s_x, s_x2, s_y, s_q, s_kv, s_attended, s_inner, s_query, s_own,
      s_scores, s_parts, s_inverse, s_stage;
  int ld_scores;

#ifdef __CUDACC__
  __host__ __device__
#endif
  int phases() const { return stem_phases() + phases_per_layer * layers; }  // with weights

#ifdef __CUDACC__
  __host__ __device__
#endif
  int stem_phases() const { return recurrent ? 2 : 1; }  // input, GRU
};

// The share of block `block` of `n` rows that are dealt out in runs of equal length.
struct Share {
  int begin, count;
};

#ifdef __CUDACC__
__host__ __device__
#endif
inline Share share_of(int n, int block, int n_blocks) {
  const int each = (n + n_blocks - 1) / n_blocks;
  const int begin = block * each < n ? block * each : n;
  return {begin, n - begin < each ? n - begin : each};
}

}  // namespace neds::gpu
