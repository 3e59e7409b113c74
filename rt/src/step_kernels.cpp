// The streaming transformer step. Compiled once for every instruction set, see CMakeLists.txt.
#include <math.h>  // expf: a plain C function, safe to share between instruction sets

#include "step_math.hpp"
#include "step_plan.hpp"
#include "step_weights.hpp"

#ifndef NEDS_ISA
#define NEDS_ISA baseline
#endif
#define NEDS_JOIN(a, b) a##b
#define NEDS_TABLE(isa) NEDS_JOIN(kernels_, isa)
#define NEDS_TEXT(a) #a
#define NEDS_NAME(isa) NEDS_TEXT(isa)

namespace neds {
namespace {

constexpr int panel_vectors = lanes < 16 ? 4 : 2;
constexpr int panel = panel_vectors * lanes;
constexpr int ring_panel = panel < 16 ? panel : 16;
constexpr int ring_vectors = ring_panel / lanes;

static_assert(row_multiple % panel == 0 && row_multiple % ring_panel == 0);

enum class Then { store, add, gelu };

// output = input . weight^T + bias; then stored, added to what is there, or through the GELU.
template <class W, Then THEN>
void linear(const StepPlan& plan, const Linear& layer, int depth, int n_outputs,
            const float* input, float* output) {
  const Factor<W> row = factor<W>(input, depth, plan.factors);
  const auto* weight = reinterpret_cast<const typename W::Stored*>(layer.weight);
  const std::size_t panel_size =
      static_cast<std::size_t>((depth + group<W> - 1) / group<W> * group<W>) * panel;
  for (int first = 0; first < n_outputs; first += panel) {
    vfloat sums[panel_vectors] = {};
    multiply<W>(weight, depth, row, sums);
    float* const to = output + first;
    for (int v = 0; v < panel_vectors; ++v) {
      if constexpr (W::precision == Precision::int8)
        sums[v] *= row.scale * load(layer.scale + first + v * lanes);
      sums[v] += load(layer.bias + first + v * lanes);
      if constexpr (THEN == Then::add) sums[v] += load(to + v * lanes);
      if constexpr (THEN == Then::gelu) sums[v] = gelu(sums[v]);
      store(to + v * lanes, sums[v]);
    }
    weight += panel_size;
  }
}

// e = sum over the units that fired of their count times their row, plus the bias.
template <class W>
void embed(const StepPlan& plan, const std::uint16_t* counts, float* e) {
  int n = 0;
  for (int u = 0; u < plan.units; ++u) {
    plan.active[n] = u;
    n += counts[u] != 0;
  }
  for (int i = 0; i < n; ++i) {
    const int u = plan.active[i];
    plan.activation[i] = static_cast<float>(counts[u]);
    if constexpr (W::precision == Precision::int8) plan.activation[i] *= plan.input_scale[u];
  }
  const int n_padded = (n + 3) / 4 * 4;  // both arrays have room for it
  for (int i = n; i < n_padded; ++i) {
    plan.active[i] = 0;
    plan.activation[i] = 0.0f;
  }
  const std::size_t ld = plan.ld_hidden;
  const auto* const table = reinterpret_cast<const typename W::Stored*>(plan.input_weight);
  __builtin_memcpy(e, plan.input_bias, ld * sizeof(float));
  for (int i = 0; i < n_padded; i += 4) {
    const typename W::Stored* row[4];
    for (int j = 0; j < 4; ++j)
      row[j] = table + static_cast<std::size_t>(plan.active[i + j]) * ld;
    const float* a = plan.activation + i;
    for (std::size_t k = 0; k < ld; k += lanes) {
      const vfloat left = W::widen(row[0] + k) * a[0] + W::widen(row[1] + k) * a[1];
      const vfloat right = W::widen(row[2] + k) * a[2] + W::widen(row[3] + k) * a[3];
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
template <class W>
void take_in(const StepPlan& plan, const StepInput& input) {
  const std::size_t ld = plan.ld_hidden;
  float* const e =
      plan.conv > 0 ? plan.conv_ring + static_cast<std::size_t>(input.conv_slot) * ld : plan.x;
  if (input.counts == nullptr)
    __builtin_memset(e, 0, ld * sizeof(float));
  else
    embed<W>(plan, input.counts, e);
  if (plan.conv > 0) convolve(plan, input.conv_slot);
}

// What the GRU's gates get of this bin, x.
template <class W>
void gate(const StepPlan& plan) {
  const int n_gates = 3 * static_cast<int>(plan.ld_hidden);
  linear<W, Then::store>(plan, plan.gates_in, plan.hidden, n_gates, plan.x, plan.gate_in);
}

// The GRU's memory after this bin, from gate() and its memory before. Padding stays zero.
template <class W>
void recall(const StepPlan& plan) {
  const std::size_t ld = plan.ld_hidden;
  linear<W, Then::store>(plan, plan.gates_back, plan.hidden, 3 * static_cast<int>(ld), plan.memory,
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
template <class W>
void tokenise(const StepPlan& plan, const StepInput& input) {
  const std::size_t ld = plan.ld_hidden;
  take_in<W>(plan, input);
  if (plan.recurrent) {
    gate<W>(plan);
    recall<W>(plan);
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

// Sizes of one head's part of the rings, in stored numbers.
struct RingSizes {
  std::size_t key_block, value_block;  // one panel of slots, one panel of dimensions
  std::size_t key_blocks, value_blocks;
};

template <class R>
NEDS_INLINE RingSizes ring_sizes(const StepPlan& plan) {
  const auto whole = [](int n) { return static_cast<std::size_t>((n + group<R> - 1) / group<R> * group<R>); };
  return {whole(plan.head_dim) * ring_panel, whole(plan.window) * ring_panel,
          plan.ld_scores / ring_panel,
          static_cast<std::size_t>((plan.head_dim + ring_panel - 1) / ring_panel)};
}

// Put this bin's key and value into the ring.
template <class R>
void remember(const StepPlan& plan, const LayerPlan& layer, int slot) {
  constexpr int pair = group<R>;
  const int d = plan.head_dim;
  const RingSizes sizes = ring_sizes<R>(plan);
  auto* keys = reinterpret_cast<typename R::Stored*>(layer.keys) +
               static_cast<std::size_t>(slot / ring_panel) * sizes.key_block +
               slot % ring_panel * pair;
  auto* values = reinterpret_cast<typename R::Stored*>(layer.values) +
                 slot / pair * pair * ring_panel + slot % pair;
  const float* key = plan.kv;
  const float* value = plan.kv + plan.hidden;
  for (int h = 0; h < plan.heads; ++h, key += d, value += d) {
    for (int i = 0; i < d; ++i)
      keys[i / pair * pair * ring_panel + i % pair] = R::narrow(key[i]);
    for (int i = 0; i < d; ++i)
      values[static_cast<std::size_t>(i / ring_panel) * sizes.value_block + i % ring_panel * pair] =
          R::narrow(value[i]);
    keys += sizes.key_blocks * sizes.key_block;
    values += sizes.value_blocks * sizes.value_block;
  }
}

// Scores of one head's query against all slots, turned into weights; returns 1 / their sum.
template <class R>
float weigh(const StepPlan& plan, const typename R::Stored* keys, std::size_t block,
            const float* q) {
  for (std::size_t slot = 0; slot < plan.ld_scores; slot += ring_panel, keys += block) {
    vfloat sums[ring_vectors];
    for (int v = 0; v < ring_vectors; ++v) sums[v] = load(plan.slot_bias + slot + v * lanes);
    multiply<R>(keys, plan.head_dim, {q}, sums);
    for (int v = 0; v < ring_vectors; ++v) store(plan.scores + slot + v * lanes, sums[v]);
  }
  return 1.0f / soften(plan.scores, plan.ld_scores);
}

// The weighted mean of the values of one head, `width` of whose dimensions are in this block.
template <class R>
void gather(const StepPlan& plan, const typename R::Stored* values, float inverse, float* to,
            int width) {
  vfloat sums[ring_vectors] = {};
  multiply<R>(values, plan.window, {plan.scores}, sums);
  float mean[ring_panel];
  for (int v = 0; v < ring_vectors; ++v) store(mean + v * lanes, sums[v] * inverse);
  if (width == ring_panel)
    __builtin_memcpy(to, mean, sizeof mean);
  else
    for (int i = 0; i < width; ++i) to[i] = mean[i];
}

// Attention over the valid slots, into plan.attended.
template <class R>
void attend(const StepPlan& plan, const LayerPlan& layer, bool any_valid) {
  const int d = plan.head_dim;
  if (!any_valid) {
    __builtin_memset(plan.attended, 0, plan.ld_hidden * sizeof(float));
    return;
  }
  const RingSizes sizes = ring_sizes<R>(plan);
  const auto* keys = reinterpret_cast<const typename R::Stored*>(layer.keys);
  const auto* values = reinterpret_cast<const typename R::Stored*>(layer.values);
  for (int h = 0; h < plan.heads; ++h) {
    const float inverse = weigh<R>(plan, keys, sizes.key_block, plan.q + h * d);
    keys += sizes.key_blocks * sizes.key_block;
    for (int i = 0; i < d; i += ring_panel, values += sizes.value_block) {
      const int width = d - i < ring_panel ? d - i : ring_panel;
      gather<R>(plan, values, inverse, plan.attended + h * d + i, width);
    }
  }
}

// One layer on x. A lost bin only asks: no key and value of it go into the ring.
template <class W>
void transform(const StepPlan& plan, const LayerPlan& layer, const StepInput& input) {
  using R = typename W::Ring;
  const int hidden = plan.hidden;
  layer_norm(plan.x, layer.norm1.weight, layer.norm1.bias, hidden, plan.y);
  linear<W, Then::store>(plan, layer.q, hidden, hidden, plan.y, plan.q);
  rotate(plan, plan.q);
  if (input.counts != nullptr) {
    linear<W, Then::store>(plan, layer.kv, hidden, 2 * hidden, plan.y, plan.kv);
    rotate(plan, plan.kv);
    remember<R>(plan, layer, input.slot);
  }
  attend<R>(plan, layer, input.any_valid);
  linear<W, Then::add>(plan, layer.out, hidden, hidden, plan.attended, plan.x);
  layer_norm(plan.x, layer.norm2.weight, layer.norm2.bias, hidden, plan.y);
  linear<W, Then::gelu>(plan, layer.up, hidden, plan.mlp, plan.y, plan.hidden_mlp);
  linear<W, Then::add>(plan, layer.down, plan.mlp, hidden, plan.hidden_mlp, plan.x);
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

template <class W>
void step(const StepPlan& plan, const StepInput& input, float* outputs) {
  tokenise<W>(plan, input);
  for (int i = 0; i < plan.n_layers; ++i) transform<W>(plan, plan.layers[i], input);
  layer_norm(plan.x, plan.norm.weight, plan.norm.bias, plan.hidden, plan.y);
  for (int m = 0; m < plan.n_readouts; ++m)
    outputs = read_out(plan, plan.readouts[m], plan.y, outputs);
}

// `again`: this bin is lost like the one before, and the taps hold nothing but lost bins.
template <class W>
void lose(const StepPlan& plan, const StepInput& input, bool again) {
  if (!again) take_in<W>(plan, input);
  if (!plan.recurrent) return;
  if (!again) gate<W>(plan);
  recall<W>(plan);
}

}  // namespace

const StepKernels NEDS_TABLE(NEDS_ISA) = {
    NEDS_NAME(NEDS_ISA), panel, ring_panel,
    {{step<Float32>, lose<Float32>}, {step<Bf16>, lose<Bf16>}, {step<Int8>, lose<Int8>}}};

}  // namespace neds
