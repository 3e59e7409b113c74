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

inline constexpr int max_in_flight = 7;  // jobs whose data are on their way to shared memory at once
inline constexpr int phases_per_layer = 5;
inline constexpr int bias_bytes = 16;  // after every row of a matrix: its bias, and padding
inline constexpr int tile_rows = 4;    // that a warp multiplies at once; a block's rows are padded to them

// What a block does in one phase, ready-made by the host, a table for each block: a step has no time
// for arithmetic that comes out the same every time. Its data, rows and what follows them, lie in one
// piece, so that one copy brings them to shared memory.
enum Kind : std::int32_t { memory_gates, input, bin_gates, qkv, attention, residual, up, head };

struct alignas(16) Job {
  std::int32_t kind;
  std::int32_t rows;   // of the matrix, this block's
  std::int32_t first;  // the first of them; the layer (attention)
  std::int32_t ld;     // elements of a row, padded
  std::int32_t from;   // activations that the rows are multiplied with, floats into shared memory
  std::int32_t to;     // where the product with row 0 of the matrix goes, likewise
  std::int32_t x;      // the residual stream, likewise
  std::int32_t extent; // floats from where a meeting's results begin, 0: no meeting
  std::int32_t sent;   // floats that a block gets from all together
  std::int32_t silent; // 1: this block sends none of them
  std::int32_t staged; // bytes into shared memory, < 0: read where they lie
  std::int32_t issue;  // the job after which they may be loaded
  std::int32_t row_bytes;  // of all rows; what follows: norms, constants of the stem
  std::int32_t bytes;      // of everything
  std::int64_t source;     // bytes into weights, or into the rings (attention)
};

// Constants of a block's own features that follow the input's rows, one after the other; the
// convolution's weights come after them, `conv` each.
enum StemField { stem_token, stem_lost, stem_conv_bias, stem_fields };

struct Plan {
  int units, hidden, layers, heads, head_dim, mlp, window, conv;
  bool recurrent;
  int n_outputs;
  int n_softmax;  // ranges of outputs that are probabilities
  int ld_units, ld_hidden, ld_mlp;  // padded to a multiple of 8
  int ld_head;                      // padded to a multiple of 4

  int slot_shift;  // 2^this lanes share a slot's dimensions
  int own_shift, head_shift;  // 2^this threads share what a feature, or a head's output, is sent to
  int n_jobs;      // the last one is the readout
  bool padded;     // some row of activations is longer than what it holds: the rest has to be zero

  const std::uint8_t* weights;  // what the jobs need of them, block by block
  const Job* jobs;              // [blocks][n_jobs]
  const std::int32_t* softmax;  // [n_softmax][2] first output and number of outputs

  float* rings;      // [layers][heads][keys, values][window][ld_head], keys rotated
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
  int s_input, s_jobs, s_softmax, s_barriers, s_nothing, s_counts, s_memory, s_gates, s_conv, s_x, s_x2,
      s_qkv, s_attended, s_inner, s_query, s_own, s_scores, s_parts, s_tops, s_sizes, s_raw, s_stage;
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
