// What one streaming step reads and writes: plain pointers into the engine's arena, filled by
// step.cpp and used by the kernels. Sizes count floats unless they say otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace neds {

// Rows of activations and tables are padded with zeros to a multiple of this, so that every
// kernel may work on whole vectors; each panel width divides it.
inline constexpr std::size_t row_multiple = 32;

// What matrices of weights, and the rows of the input, are stored in. All sums are float32.
enum class Precision { float32, bf16, int8 };
inline constexpr Precision precisions[] = {Precision::float32, Precision::bf16, Precision::int8};
inline constexpr const char* precision_names[] = {"float32", "bf16", "int8"};

// Functions here are static: they are compiled for several instruction sets, see step_math.hpp.
static constexpr std::size_t bytes_of(Precision p) {
  return p == Precision::float32 ? 4 : p == Precision::bf16 ? 2 : 1;
}

// Consecutive inputs of one output that lie side by side in a panel.
static constexpr int group_of(Precision p) { return p == Precision::float32 ? 1 : 2; }

// Keys and values: bf16 halves what a step reads of them; int8 would need a scale for each.
static constexpr Precision ring_of(Precision p) {
  return p == Precision::float32 ? Precision::float32 : Precision::bf16;
}

// The float's upper half, rounded to the nearest, ties to even. NaN stays NaN.
static inline std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// A weight matrix (out, in) is stored in panels of `panel` outputs,
// [panel][in / group][outputs of panel][group], read once from begin to end by a step.
struct Linear {
  std::byte* weight;
  float* scale;  // of every output, for int8 weights only; padded to whole panels, as is the bias
  float* bias;
};

struct Norm {
  float* weight;
  float* bias;
};

struct LayerPlan {
  Norm norm1;
  Linear q;      // hidden outputs, already divided by sqrt(head_dim)
  Linear kv;     // 2 x hidden outputs: keys, then values
  // In the ring's precision and groups, as a matrix whose outputs are slots or dimensions.
  std::byte* keys;    // [heads][slot blocks][head_dim / group][ring_panel][group], rotated
  std::byte* values;  // [heads][dim blocks][window / group][ring_panel][group]
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

  std::byte* input_weight;  // [units][ld_hidden], in the weights' precision
  float* input_scale;       // of every unit, for int8 weights only
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
  float* activation;     // their counts, times the scale of their row
  float *gate_in, *gate_back;  // [3][ld_hidden]
  float *x, *y, *q, *kv, *attended, *hidden_mlp;
  float* scores;  // [ld_scores]
  std::int16_t* factors;  // a row as integers, for int8 weights
};

struct StepInput {
  const std::uint16_t* counts;  // [units], null for a lost bin
  int slot;                     // of the ring of keys and values, t % window
  int conv_slot;                // of the ring of embeddings, t % conv
  bool any_valid;               // whether any slot holds a bin
};

// One table for each instruction set that step_kernels.cpp is compiled for.
struct StepKernels {
  struct Functions {
    // One bin. The new memory is in next_memory; whoever calls makes it the memory.
    void (*step)(const StepPlan& plan, const StepInput& input, float* outputs);
    // One lost bin, for the states of convolution and GRU alone.
    void (*lose)(const StepPlan& plan, const StepInput& input, bool again);
  };
  const char* isa;
  int panel;       // outputs interleaved in a weight panel
  int ring_panel;  // slots (keys) or dimensions (values) interleaved in the rings
  Functions of[3];  // indexed by Precision
};

extern const StepKernels kernels_baseline;
#ifdef NEDS_X86_DISPATCH
extern const StepKernels kernels_avx2;
extern const StepKernels kernels_avx512;
extern const StepKernels kernels_avx512vnni;
#endif

}  // namespace neds
