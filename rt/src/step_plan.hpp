// What one streaming step reads and writes: plain pointers into the engine's arena, filled by
// step.cpp and used by the kernels. Sizes count floats unless they say otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace neds {

// Rows of activations and tables are padded with zeros to a multiple of this, so that every
// kernel may work on whole vectors; each panel width divides it.
inline constexpr std::size_t row_multiple = 32;

// A weight matrix (out, in) is stored in panels of `panel` outputs: [panel][in][outputs of panel],
// read once from begin to end by a step.
struct Linear {
  float* weight;
  float* bias;  // padded to whole panels
};

struct Norm {
  float* weight;
  float* bias;
};

struct LayerPlan {
  Norm norm1;
  Linear q;      // hidden outputs, already divided by sqrt(head_dim)
  Linear kv;     // 2 x hidden outputs: keys, then values
  float* keys;   // [heads][slot blocks][head_dim][ring_panel], rotated
  float* values;  // [heads][dim blocks][window][ring_panel]
  Linear out;
  Norm norm2;
  Linear up;
  Linear down;
};

// The readout of one modality: rows of `ld_hidden` floats, one an output.
struct Readout {
  float* weight;
  float* bias;
  int n_outputs;
  bool categorical;
};

struct StepPlan {
  int units, hidden, n_layers, heads, head_dim, mlp, window, conv;
  bool recurrent;
  int n_readouts;
  std::size_t ld_hidden, ld_mlp, ld_scores;

  float* input_weight;  // [units][ld_hidden]
  float* input_bias;
  float* conv_weight;  // [conv][ld_hidden]
  float* conv_bias;
  float* conv_ring;    // [conv][ld_hidden], embeddings of the last bins
  Linear gates_in;     // 3 x ld_hidden outputs: reset, update, candidate; of this bin
  Linear gates_back;   // the same of the memory
  float* memory;       // of the GRU, after the last bin
  float* next_memory;  // after this one
  float* token;        // what a bin that is there adds to its embedding
  float* lost;         // the whole token of a lost bin
  LayerPlan* layers;
  Norm norm;
  Readout* readouts;  // [n_readouts]

  float* slot_bias;  // [ld_scores]: 0 for a slot that holds a bin, minus infinity for one that does not
  float* cosine;     // [head_dim / 2], of this bin's position
  float* sine;

  // Scratch of one step.
  std::int32_t* active;  // units that fired
  float* activation;     // their counts
  float *gate_in, *gate_back;  // [3][ld_hidden]
  float *x, *y, *q, *kv, *attended, *hidden_mlp;
  float* scores;  // [ld_scores]
};

struct StepInput {
  const std::uint16_t* counts;  // [units], null for a lost bin
  int slot;                     // of the ring of keys and values, t % window
  int conv_slot;                // of the ring of embeddings, t % conv
  bool any_valid;               // whether any slot holds a bin
};

// One table for each instruction set that step_kernels.cpp is compiled for.
struct StepKernels {
  const char* isa;
  int panel;       // outputs interleaved in a weight panel
  int ring_panel;  // slots (keys) or dimensions (values) interleaved in the rings
  // One bin. The new memory is in next_memory; whoever calls makes it the memory.
  void (*step)(const StepPlan& plan, const StepInput& input, float* outputs);
  // One lost bin, for the states of convolution and GRU alone.
  void (*lose)(const StepPlan& plan, const StepInput& input, bool again);
};

extern const StepKernels kernels_baseline;
#ifdef NEDS_X86_DISPATCH
extern const StepKernels kernels_avx2;
extern const StepKernels kernels_avx512;
#endif

}  // namespace neds
