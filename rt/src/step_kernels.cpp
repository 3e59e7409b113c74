// The streaming transformer step. Compiled once for every instruction set, see CMakeLists.txt.
#include <math.h>  // expf: a plain C function, safe to share between instruction sets

#include "step_math.hpp"
#include "step_plan.hpp"

#ifndef NEDS_ISA
#define NEDS_ISA baseline
#endif
#define NEDS_JOIN(a, b) a##b
#define NEDS_TABLE(isa) NEDS_JOIN(kernels_, isa)
#define NEDS_TEXT(a) #a
#define NEDS_NAME(isa) NEDS_TEXT(isa)

namespace neds {
namespace {

constexpr int panel_vectors = 2;
constexpr int panel = panel_vectors * lanes;
constexpr int ring_panel = panel < 16 ? panel : 16;
constexpr int ring_vectors = ring_panel / lanes;

static_assert(row_multiple % panel == 0 && row_multiple % ring_panel == 0);

// sums[v] += input . panel over `depth`. One row leaves few independent sums, so `unroll` steps of
// the depth are kept apart to hide the latency of a multiply-add.
template <int VECTORS>
NEDS_INLINE void multiply(const float* weight, int depth, const float* input,
                          vfloat (&sums)[VECTORS]) {
  constexpr int unroll = 8 / VECTORS;
  vfloat part[unroll][VECTORS] = {};
  int k = 0;
  for (; k + unroll <= depth; k += unroll) {
#pragma GCC unroll 8
    for (int u = 0; u < unroll; ++u) {
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) part[u][v] += load(weight + v * lanes) * input[k + u];
      weight += VECTORS * lanes;
    }
  }
  for (; k < depth; ++k) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) part[0][v] += load(weight + v * lanes) * input[k];
    weight += VECTORS * lanes;
  }
#pragma GCC unroll 2
  for (int v = 0; v < VECTORS; ++v)
#pragma GCC unroll 8
    for (int u = 0; u < unroll; ++u) sums[v] += part[u][v];
}

enum class Then { store, add, gelu };

// output = input . weight^T + bias; then stored, added to what is there, or through the GELU.
template <Then THEN>
void linear(const Linear& layer, int depth, int n_outputs, const float* input, float* output) {
  const float* weight = layer.weight;
  for (int first = 0; first < n_outputs; first += panel) {
    vfloat sums[panel_vectors];
    for (int v = 0; v < panel_vectors; ++v) sums[v] = load(layer.bias + first + v * lanes);
    multiply<panel_vectors>(weight, depth, input, sums);
    float* const to = output + first;
    for (int v = 0; v < panel_vectors; ++v) {
      if constexpr (THEN == Then::add) sums[v] += load(to + v * lanes);
      if constexpr (THEN == Then::gelu) sums[v] = gelu(sums[v]);
      store(to + v * lanes, sums[v]);
    }
    weight += static_cast<std::size_t>(depth) * panel;
  }
}

// e = sum over the units that fired of their count times their row, plus the bias.
void embed(const StepPlan& plan, const std::uint16_t* counts, float* e) {
  int n = 0;
  for (int u = 0; u < plan.units; ++u) {
    plan.active[n] = u;
    n += counts[u] != 0;
  }
  for (int i = 0; i < n; ++i) plan.activation[i] = static_cast<float>(counts[plan.active[i]]);
  const int n_padded = (n + 3) / 4 * 4;  // both arrays have room for it
  for (int i = n; i < n_padded; ++i) {
    plan.active[i] = 0;
    plan.activation[i] = 0.0f;
  }
  const std::size_t ld = plan.ld_hidden;
  __builtin_memcpy(e, plan.input_bias, ld * sizeof(float));
  for (int i = 0; i < n_padded; i += 4) {
    const float* row[4];
    for (int j = 0; j < 4; ++j)
      row[j] = plan.input_weight + static_cast<std::size_t>(plan.active[i + j]) * ld;
    const float* a = plan.activation + i;
    for (std::size_t k = 0; k < ld; k += lanes) {
      const vfloat left = load(row[0] + k) * a[0] + load(row[1] + k) * a[1];
      const vfloat right = load(row[2] + k) * a[2] + load(row[3] + k) * a[3];
      store(e + k, load(e + k) + (left + right));
    }
  }
}

// x = e + gelu(bias + taps . ring), e the newest embedding of the ring.
void convolve(const StepPlan& plan, int newest) {
  const std::size_t ld = plan.ld_hidden;
  const float* const e = plan.conv_ring + static_cast<std::size_t>(newest) * ld;
  for (std::size_t k = 0; k < ld; k += lanes) {
    vfloat g = load(plan.conv_bias + k);
    int slot = newest;
    for (int j = 0; j < plan.conv; ++j) {
      g += load(plan.conv_weight + static_cast<std::size_t>(j) * ld + k) *
           load(plan.conv_ring + static_cast<std::size_t>(slot) * ld + k);
      slot = slot == 0 ? plan.conv - 1 : slot - 1;
    }
    store(plan.x + k, load(e + k) + gelu(g));
  }
}

// The bin's embedding, zero for a lost bin, and the convolution of it and the bins before, into x.
void take_in(const StepPlan& plan, const StepInput& input) {
  const std::size_t ld = plan.ld_hidden;
  float* const e =
      plan.conv > 0 ? plan.conv_ring + static_cast<std::size_t>(input.conv_slot) * ld : plan.x;
  if (input.counts == nullptr)
    __builtin_memset(e, 0, ld * sizeof(float));
  else
    embed(plan, input.counts, e);
  if (plan.conv > 0) convolve(plan, input.conv_slot);
}

// What the GRU's gates get of this bin, x.
void gate(const StepPlan& plan) {
  const int n_gates = 3 * static_cast<int>(plan.ld_hidden);
  linear<Then::store>(plan.gates_in, plan.hidden, n_gates, plan.x, plan.gate_in);
}

// The GRU's memory after this bin, from gate() and its memory before. Padding stays zero.
void recall(const StepPlan& plan) {
  const std::size_t ld = plan.ld_hidden;
  linear<Then::store>(plan.gates_back, plan.hidden, 3 * static_cast<int>(ld), plan.memory,
                      plan.gate_back);
  const float *in = plan.gate_in, *back = plan.gate_back;
  for (std::size_t k = 0; k < ld; k += lanes, in += lanes, back += lanes) {
    const vfloat reset = logistic(load(in) + load(back));
    const vfloat update = logistic(load(in + ld) + load(back + ld));
    const vfloat candidate = hyperbolic_tangent(load(in + 2 * ld) + reset * load(back + 2 * ld));
    store(plan.next_memory + k, candidate + update * (load(plan.memory + k) - candidate));
  }
}

// The token of this bin into x; the states of convolution and GRU move on for a lost bin too.
void tokenise(const StepPlan& plan, const StepInput& input) {
  const std::size_t ld = plan.ld_hidden;
  take_in(plan, input);
  if (plan.recurrent) {
    gate(plan);
    recall(plan);
  }
  if (input.counts == nullptr) {
    __builtin_memcpy(plan.x, plan.lost, ld * sizeof(float));
    return;
  }
  for (std::size_t k = 0; k < ld; k += lanes) {
    vfloat token = load(plan.x + k) + load(plan.token + k);
    if (plan.recurrent) token += load(plan.next_memory + k);
    store(plan.x + k, token);
  }
}

// Rotate every head of a row by this bin's position.
void rotate(const StepPlan& plan, float* row) {
  const int half = plan.head_dim / 2;
  const float* __restrict cosine = plan.cosine;
  const float* __restrict sine = plan.sine;
  for (int h = 0; h < plan.heads; ++h) {
    float* __restrict a = row + h * plan.head_dim;
    float* __restrict b = a + half;
    for (int i = 0; i < half; ++i) {
      const float first = a[i], second = b[i];
      a[i] = first * cosine[i] - second * sine[i];
      b[i] = second * cosine[i] + first * sine[i];
    }
  }
}

// Put this bin's key and value into the ring.
void remember(const StepPlan& plan, const LayerPlan& layer, int slot) {
  const int d = plan.head_dim;
  const std::size_t n_blocks = plan.ld_scores / ring_panel;
  const std::size_t dim_blocks = static_cast<std::size_t>((d + ring_panel - 1) / ring_panel);
  const std::size_t block = static_cast<std::size_t>(slot / ring_panel);
  const std::size_t value_block = static_cast<std::size_t>(plan.window) * ring_panel;
  for (int h = 0; h < plan.heads; ++h) {
    const std::size_t head = static_cast<std::size_t>(h);
    const float* key = plan.kv + h * d;
    const float* value = plan.kv + plan.hidden + h * d;
    float* to = layer.keys + (head * n_blocks + block) * static_cast<std::size_t>(d) * ring_panel +
                slot % ring_panel;
    for (int i = 0; i < d; ++i) to[i * ring_panel] = key[i];
    float* values = layer.values + head * dim_blocks * value_block + slot * ring_panel;
    for (int i = 0; i < d; ++i)
      values[static_cast<std::size_t>(i / ring_panel) * value_block + i % ring_panel] = value[i];
  }
}

// Scores of one head's query against all slots, turned into weights; returns 1 / their sum.
float weigh(const StepPlan& plan, const float* keys, const float* q) {
  const std::size_t n_slots = plan.ld_scores;
  for (std::size_t slot = 0; slot < n_slots; slot += ring_panel) {
    vfloat sums[ring_vectors];
    for (int v = 0; v < ring_vectors; ++v) sums[v] = load(plan.slot_bias + slot + v * lanes);
    multiply<ring_vectors>(keys, plan.head_dim, q, sums);
    for (int v = 0; v < ring_vectors; ++v) store(plan.scores + slot + v * lanes, sums[v]);
    keys += static_cast<std::size_t>(plan.head_dim) * ring_panel;
  }
  return 1.0f / soften(plan.scores, n_slots);
}

// The weighted mean of the values of one head, `width` of whose dimensions are in this block.
void gather(const StepPlan& plan, const float* values, float inverse, float* to, int width) {
  vfloat sums[ring_vectors] = {};
  multiply<ring_vectors>(values, plan.window, plan.scores, sums);
  float mean[ring_panel];
  for (int v = 0; v < ring_vectors; ++v) store(mean + v * lanes, sums[v] * inverse);
  if (width == ring_panel)
    __builtin_memcpy(to, mean, sizeof mean);
  else
    for (int i = 0; i < width; ++i) to[i] = mean[i];
}

// Attention over the valid slots, into plan.attended.
void attend(const StepPlan& plan, const LayerPlan& layer, bool any_valid) {
  const int d = plan.head_dim;
  if (!any_valid) {
    __builtin_memset(plan.attended, 0, plan.ld_hidden * sizeof(float));
    return;
  }
  const float* keys = layer.keys;
  const float* values = layer.values;
  for (int h = 0; h < plan.heads; ++h) {
    const float inverse = weigh(plan, keys, plan.q + h * d);
    keys += static_cast<std::size_t>(d) * plan.ld_scores;
    for (int i = 0; i < d; i += ring_panel) {
      const int width = d - i < ring_panel ? d - i : ring_panel;
      gather(plan, values, inverse, plan.attended + h * d + i, width);
      values += static_cast<std::size_t>(plan.window) * ring_panel;
    }
  }
}

// One layer on x. A lost bin only asks: no key and value of it go into the ring.
void transform(const StepPlan& plan, const LayerPlan& layer, const StepInput& input) {
  const int hidden = plan.hidden;
  layer_norm(plan.x, layer.norm1.weight, layer.norm1.bias, hidden, plan.y);
  linear<Then::store>(layer.q, hidden, hidden, plan.y, plan.q);
  rotate(plan, plan.q);
  if (input.counts != nullptr) {
    linear<Then::store>(layer.kv, hidden, 2 * hidden, plan.y, plan.kv);
    rotate(plan, plan.kv);
    remember(plan, layer, input.slot);
  }
  attend(plan, layer, input.any_valid);
  linear<Then::add>(layer.out, hidden, hidden, plan.attended, plan.x);
  layer_norm(plan.x, layer.norm2.weight, layer.norm2.bias, hidden, plan.y);
  linear<Then::gelu>(layer.up, hidden, plan.mlp, plan.y, plan.hidden_mlp);
  linear<Then::add>(layer.down, plan.mlp, hidden, plan.hidden_mlp, plan.x);
}

// Outputs of one modality from the normalised row z.
float* read_out(const StepPlan& plan, const Readout& readout, const float* z, float* outputs) {
  float top = -INFINITY;
  for (int o = 0; o < readout.n_outputs; ++o) {
    const float* weight = readout.weight + static_cast<std::size_t>(o) * plan.ld_hidden;
    vfloat sums = {};
    for (std::size_t k = 0; k < plan.ld_hidden; k += lanes) sums += load(weight + k) * load(z + k);
    outputs[o] = reduce<false>(sums) + readout.bias[o];
    top = outputs[o] > top ? outputs[o] : top;
  }
  if (readout.categorical) {
    float sum = 0.0f;
    for (int o = 0; o < readout.n_outputs; ++o) sum += outputs[o] = expf(outputs[o] - top);
    for (int o = 0; o < readout.n_outputs; ++o) outputs[o] /= sum;
  }
  return outputs + readout.n_outputs;
}

void step(const StepPlan& plan, const StepInput& input, float* outputs) {
  tokenise(plan, input);
  for (int i = 0; i < plan.n_layers; ++i) transform(plan, plan.layers[i], input);
  layer_norm(plan.x, plan.norm.weight, plan.norm.bias, plan.hidden, plan.y);
  for (int m = 0; m < plan.n_readouts; ++m)
    outputs = read_out(plan, plan.readouts[m], plan.y, outputs);
}

// `again`: this bin is lost like the one before, and the taps hold nothing but lost bins.
void lose(const StepPlan& plan, const StepInput& input, bool again) {
  if (!again) take_in(plan, input);
  if (!plan.recurrent) return;
  if (!again) gate(plan);
  recall(plan);
}

}  // namespace

const StepKernels NEDS_TABLE(NEDS_ISA) = {NEDS_NAME(NEDS_ISA), panel, ring_panel, step, lose};

}  // namespace neds
