// What the GPU step reads and writes: sizes, addresses on the device, and the layout of a block's
// shared memory. Filled by layout.cpp, passed to the kernel by value.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define NEDS_BOTH __host__ __device__
#else
#define NEDS_BOTH
#endif

namespace neds::gpu {

// The head of the input buffer that the host writes for every step. After it come, each aligned to
// 16 bytes: cosines and sines of the bin's rotary phases (head_dim / 2 floats each), validity bits
// of the ring's slots, validity bits of the convolution's slots, and the counts (uint16).
struct InputHeader {
  std::uint32_t sequence;  // written beside every output, or to `done` where there are none
  std::int32_t slot;       // of the ring of keys and values, position % window
  std::int32_t conv_slot;  // of the ring of embeddings, position % conv
  std::uint32_t flags;
};

inline constexpr std::uint32_t flag_present = 1;    // the bin was recorded
inline constexpr std::uint32_t flag_dry = 2;        // leave rings and outputs as they are
inline constexpr std::uint32_t flag_any_valid = 4;  // some slot can be attended to
inline constexpr std::uint32_t flag_skip = 8;       // move the states on, give no outputs

// An output as the host reads it: the value's bits below, the step's sequence number above. Both
// travel in one store, so that no fence has to part them.
using Output = std::uint64_t;

// A piece of weights (or of keys and values) that a block needs in one phase, and where in its
// shared memory it is staged: loaded once phase `issue` is reached, `offset` < 0 if never.
struct Chunk {
  std::int32_t offset;  // bytes into the stage
  std::int32_t issue;
};

inline constexpr int max_in_flight = 7;  // chunks on their way to shared memory at once
inline constexpr int phases_per_layer = 5;
inline constexpr int bias_bytes = 16;  // after every row of a matrix: its bias, and padding

// Of a block's own features, one after the other in shared memory; convolution's weights and its
// earlier embeddings come after them, `conv` each.
enum StemField { stem_token, stem_lost, stem_conv_bias, stem_fields };

struct Plan {
  int units, hidden, layers, heads, head_dim, mlp, window, conv;
  bool recurrent;
  int n_outputs;
  int n_softmax;  // ranges of outputs that are probabilities
  int ld_units, ld_hidden, ld_mlp;  // padded to a multiple of 8
  int ld_head;                      // padded to a multiple of 4

  // Matrices, in elements of their type; a row is followed by its bias: the GRU's of the bin and of
  // the memory, each (hidden, 3 gates, hidden), input (hidden, units), then the layers.
  const void* weights;
  std::size_t w_gates, w_gates_back, w_input, w_layers, w_layer_stride, w_out, w_up, w_down;

  // Everything that stays in float, as offsets from `floats`. Norms: weights, then biases.
  const float* floats;
  std::size_t f_token, f_lost, f_conv_weight, f_conv_bias, f_norm, f_head, f_layers, f_layer_stride;
  std::size_t f_norm2;  // from the layer's begin, where the first norm is; the head is after `f_norm`

  const std::int32_t* softmax;  // [n_softmax][2] first output and number of outputs
  const Chunk* chunks;          // [n_chunks()]

  float* keys;       // [layers][heads][window][ld_head], rotated
  float* values;     // likewise
  float* conv_ring;  // [conv][ld_hidden], embeddings of the last bins
  float* memory;     // [ld_hidden] of the GRU

  const std::uint8_t* input;  // InputHeader and what follows
  std::size_t in_cosine, in_sine, in_valid, in_conv_valid, in_counts, in_bytes;
  volatile Output* outputs;      // [n_outputs] where the host reads them
  volatile std::uint32_t* done;  // the sequence number of the last step without outputs
  float* exchange;               // activations that blocks give each other, unless in a cluster
  unsigned* barrier;             // of the whole grid, likewise
  long long* marks;              // clock at the end of each phase of block 0, or null

  // Offsets in a block's shared memory, in floats.
  int s_input, s_chunks, s_softmax, s_barriers, s_nothing, s_counts, s_memory, s_gates, s_stem, s_x,
      s_x2, s_qkv, s_attended, s_inner, s_query, s_own, s_scores, s_parts, s_tops, s_raw, s_stage;

  NEDS_BOTH int stem_chunks() const { return recurrent ? 2 : 1; }  // GRU, input
  NEDS_BOTH int n_chunks() const { return stem_chunks() + phases_per_layer * layers + 1; }
};

// The share of block `block` of `n` rows that are dealt out in runs of equal length.
struct Share {
  int begin, count;
};

NEDS_BOTH inline Share share_of(int n, int block, int n_blocks) {
  const int each = (n + n_blocks - 1) / n_blocks;
  const int begin = block * each < n ? block * each : n;
  return {begin, n - begin < each ? n - begin : each};
}

// How many of the blocks have a share.
NEDS_BOTH inline int sharers(int n, int n_blocks) {
  const int each = (n + n_blocks - 1) / n_blocks;
  return (n + each - 1) / each;
}

}  // namespace neds::gpu
