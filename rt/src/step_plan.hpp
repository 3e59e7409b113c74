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
// read once from begin to end by a step, whatever the number of token rows.
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
  int rows;  // 1 + modalities
  std::size_t ld_hidden, ld_mlp, ld_scores;

  float* input_weight;  // [units][ld_hidden]
  float* input_bias;
  float* token;
  float* conv_weight;  // [conv][ld_hidden]
  float* conv_bias;
  float* conv_ring;  // [conv][ld_hidden], embeddings of the last bins
  float* queries;    // [rows - 1][ld_hidden]
  LayerPlan* layers;
  Norm norm;
  Readout* readouts;  // [rows - 1]

  float* slot_bias;  // [ld_scores]: 0 for a slot that holds a bin, minus infinity for one that does not
  float* cosine;     // [head_dim / 2], of this bin's position
  float* sine;

  // Scratch of one step. Activations are [rows][ld].
  std::int32_t* active;  // units that fired
  float* activation;     // square roots of their counts
  float *x, *y, *q, *kv, *attended, *hidden_mlp;
  float* scores;   // [rows][ld_scores]
  float* inverse;  // [rows]
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
  void (*step)(const StepPlan& plan, const StepInput& input, float* outputs);
};

extern const StepKernels kernels_baseline;
#ifdef NEDS_X86_DISPATCH
extern const StepKernels kernels_avx2;
extern const StepKernels kernels_avx512;
#endif

}  // namespace neds
