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
constexpr int max_tile_rows = 6;  // 6 x 2 sums, 2 weights and 1 input fit 16 registers

static_assert(row_multiple % panel == 0 && row_multiple % ring_panel == 0);

template <int N>
struct Rows {
  static constexpr int count = N;
};

// Call f(Rows<n>, first) for tiles that cover `rows` rows, each as large as registers allow.
template <typename F>
NEDS_INLINE void for_tiles(int rows, const F& f) {
  const int n_tiles = (rows + max_tile_rows - 1) / max_tile_rows;
  for (int tile = 0, first = 0; tile < n_tiles; ++tile) {
    const int n = (rows - first) / (n_tiles - tile);
    switch (n) {
      case 1: f(Rows<1>{}, first); break;
      case 2: f(Rows<2>{}, first); break;
      case 3: f(Rows<3>{}, first); break;
      case 4: f(Rows<4>{}, first); break;
      case 5: f(Rows<5>{}, first); break;
      default: f(Rows<6>{}, first); break;
    }
    first += n;
  }
}

// sums[r][v] += input[r] . panel over `depth`. Few rows leave few independent sums, so `UNROLL`
// steps of the depth are kept apart to hide the latency of a multiply-add.
template <int ROWS, int VECTORS>
NEDS_INLINE void multiply(const float* weight, int depth, const float* input, std::size_t ld,
                          vfloat (&sums)[ROWS][VECTORS]) {
  constexpr int tile = ROWS * VECTORS;
  constexpr int UNROLL = tile <= 1 ? 8 : tile <= 2 ? 4 : tile <= 4 ? 2 : 1;
  vfloat part[UNROLL][ROWS][VECTORS] = {};
  int k = 0;
  for (; k + UNROLL <= depth; k += UNROLL) {
#pragma GCC unroll 8
    for (int u = 0; u < UNROLL; ++u) {
      vfloat w[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) w[v] = load(weight + v * lanes);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; ++r) {
        const float a = input[static_cast<std::size_t>(r) * ld + static_cast<std::size_t>(k + u)];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) part[u][r][v] += w[v] * a;
      }
      weight += VECTORS * lanes;
    }
  }
  for (; k < depth; ++k) {
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v)
        part[0][r][v] += load(weight + v * lanes) *
                         input[static_cast<std::size_t>(r) * ld + static_cast<std::size_t>(k)];
    weight += VECTORS * lanes;
  }
#pragma GCC unroll 6
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v)
#pragma GCC unroll 8
      for (int u = 0; u < UNROLL; ++u) sums[r][v] += part[u][r][v];
}

enum class Then { store, add, gelu };

// output = input . weight^T + bias for `rows` rows; then stored, added to what is there, or through
// the GELU. Each panel of weights is read once and used for all rows.
template <Then THEN>
void linear(const Linear& layer, int depth, int n_outputs, int rows, const float* input,
            std::size_t ld_input, float* output, std::size_t ld_output) {
  const float* weight = layer.weight;
  for (int output_0 = 0; output_0 < n_outputs; output_0 += panel) {
    const float* const bias = layer.bias + output_0;
    for_tiles(rows, [=](auto tile, int first) __attribute__((always_inline)) {
      constexpr int n = decltype(tile)::count;
      vfloat sums[n][panel_vectors];
      for (int r = 0; r < n; ++r)
        for (int v = 0; v < panel_vectors; ++v) sums[r][v] = load(bias + v * lanes);
      const std::size_t row = static_cast<std::size_t>(first);
      multiply<n, panel_vectors>(weight, depth, input + row * ld_input, ld_input, sums);
      float* to = output + row * ld_output + output_0;
      for (int r = 0; r < n; ++r, to += ld_output)
        for (int v = 0; v < panel_vectors; ++v) {
          if constexpr (THEN == Then::add) sums[r][v] += load(to + v * lanes);
          if constexpr (THEN == Then::gelu) sums[r][v] = gelu(sums[r][v]);
          store(to + v * lanes, sums[r][v]);
        }
    });
    weight += static_cast<std::size_t>(depth) * panel;
  }
}

// e = sum over the units that fired of sqrt(count) times their row, plus the bias.
void embed(const StepPlan& plan, const std::uint16_t* counts, float* e) {
  int n = 0;
  for (int u = 0; u < plan.units; ++u) {
    plan.active[n] = u;
    n += counts[u] != 0;
  }
  for (int i = 0; i < n; ++i)
    plan.activation[i] = __builtin_sqrtf(static_cast<float>(counts[plan.active[i]]));
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

// The bin's embedding goes into the ring of the convolution, its token into row 0 of x.
void spike_token(const StepPlan& plan, const StepInput& input) {
  const std::size_t ld = plan.ld_hidden;
  float* e = plan.conv > 0 ? plan.conv_ring + static_cast<std::size_t>(input.conv_slot) * ld : plan.y;
  if (input.counts == nullptr) {
    if (plan.conv > 0) __builtin_memset(e, 0, ld * sizeof(float));
    return;
  }
  embed(plan, input.counts, e);
  for (std::size_t k = 0; k < ld; k += lanes) {
    vfloat token = load(e + k) + load(plan.token + k);
    if (plan.conv > 0) {
      vfloat g = load(plan.conv_bias + k);
      int slot = input.conv_slot;
      for (int j = 0; j < plan.conv; ++j) {
        const std::size_t tap = static_cast<std::size_t>(j) * ld + k;
        g += load(plan.conv_weight + tap) *
             load(plan.conv_ring + static_cast<std::size_t>(slot) * ld + k);
        slot = slot == 0 ? plan.conv - 1 : slot - 1;
      }
      token += gelu(g);
    }
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

// Put the key and value of row 0 into the ring.
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

// Scores of `rows` queries of one head against all slots, then the weights and their sums.
void weigh(const StepPlan& plan, const float* keys, const float* q, int rows) {
  const int depth = plan.head_dim;
  const std::size_t ld_q = plan.ld_hidden, ld = plan.ld_scores;
  const float* const slot_bias = plan.slot_bias;
  float* const scores = plan.scores;
  for (std::size_t slot = 0; slot < ld; slot += ring_panel) {
    for_tiles(rows, [=](auto tile, int first) __attribute__((always_inline)) {
      constexpr int n = decltype(tile)::count;
      vfloat sums[n][ring_vectors];
      for (int r = 0; r < n; ++r)
        for (int v = 0; v < ring_vectors; ++v) sums[r][v] = load(slot_bias + slot + v * lanes);
      const std::size_t row = static_cast<std::size_t>(first);
      multiply<n, ring_vectors>(keys, depth, q + row * ld_q, ld_q, sums);
      float* to = scores + row * ld + slot;
      for (int r = 0; r < n; ++r, to += ld)
        for (int v = 0; v < ring_vectors; ++v) store(to + v * lanes, sums[r][v]);
    });
    keys += static_cast<std::size_t>(depth) * ring_panel;
  }
  float* const inverse = plan.inverse;
  for (int r = 0; r < rows; ++r)
    inverse[r] = 1.0f / soften(scores + static_cast<std::size_t>(r) * ld, ld);
}

// The weighted mean of the values of one head, `width` of whose dimensions are in this block.
void gather(const StepPlan& plan, const float* values, float* to, int width, int rows) {
  const int window = plan.window;
  const std::size_t ld_to = plan.ld_hidden, ld = plan.ld_scores;
  const float* const scores = plan.scores;
  const float* const inverse = plan.inverse;
  for_tiles(rows, [=](auto tile, int first) __attribute__((always_inline)) {
    constexpr int n = decltype(tile)::count;
    vfloat sums[n][ring_vectors] = {};
    const std::size_t first_row = static_cast<std::size_t>(first);
    multiply<n, ring_vectors>(values, window, scores + first_row * ld, ld, sums);
    float* row = to + first_row * ld_to;
    for (int r = 0; r < n; ++r, row += ld_to) {
      float mean[ring_panel];
      for (int v = 0; v < ring_vectors; ++v)
        store(mean + v * lanes, sums[r][v] * inverse[first + r]);
      if (width == ring_panel)
        __builtin_memcpy(row, mean, sizeof mean);
      else
        for (int i = 0; i < width; ++i) row[i] = mean[i];
    }
  });
}

// Attention of rows `first`.. over the valid slots, into plan.attended.
void attend(const StepPlan& plan, const LayerPlan& layer, int first, bool any_valid) {
  const std::size_t ld = plan.ld_hidden;
  const std::size_t offset = static_cast<std::size_t>(first) * ld;
  const int rows = plan.rows - first;
  const int d = plan.head_dim;
  if (!any_valid) {
    __builtin_memset(plan.attended + offset, 0, static_cast<std::size_t>(rows) * ld * sizeof(float));
    return;
  }
  const float* keys = layer.keys;
  const float* values = layer.values;
  for (int h = 0; h < plan.heads; ++h) {
    weigh(plan, keys, plan.q + offset + h * d, rows);
    keys += static_cast<std::size_t>(d) * plan.ld_scores;
    for (int i = 0; i < d; i += ring_panel) {
      const int width = d - i < ring_panel ? d - i : ring_panel;
      gather(plan, values, plan.attended + offset + h * d + i, width, rows);
      values += static_cast<std::size_t>(plan.window) * ring_panel;
    }
  }
}

void normalise(const StepPlan& plan, const Norm& norm, int first) {
  for (int r = first; r < plan.rows; ++r) {
    const std::size_t row = static_cast<std::size_t>(r) * plan.ld_hidden;
    layer_norm(plan.x + row, norm.weight, norm.bias, plan.hidden, plan.y + row);
  }
}

// One layer for rows `first`..; row 0, the bin's own token, exists only if the bin is present, and
// in the last layer nothing reads it but its key and value.
void transform(const StepPlan& plan, const LayerPlan& layer, const StepInput& input, bool last) {
  const std::size_t ld = plan.ld_hidden;
  const bool present = input.counts != nullptr;
  normalise(plan, layer.norm1, present ? 0 : 1);
  const int first = present && !last ? 0 : 1;
  const int rows = plan.rows - first;
  const std::size_t offset = static_cast<std::size_t>(first) * ld;
  linear<Then::store>(layer.q, plan.hidden, plan.hidden, rows, plan.y + offset, ld, plan.q + offset, ld);
  for (int r = first; r < plan.rows; ++r) rotate(plan, plan.q + static_cast<std::size_t>(r) * ld);
  if (present) {
    linear<Then::store>(layer.kv, plan.hidden, 2 * plan.hidden, 1, plan.y, ld, plan.kv, 2 * ld);
    rotate(plan, plan.kv);
    remember(plan, layer, input.slot);
  }
  attend(plan, layer, first, input.any_valid);
  linear<Then::add>(layer.out, plan.hidden, plan.hidden, rows, plan.attended + offset, ld,
                    plan.x + offset, ld);
  normalise(plan, layer.norm2, first);
  linear<Then::gelu>(layer.up, plan.hidden, plan.mlp, rows, plan.y + offset, ld,
                     plan.hidden_mlp, plan.ld_mlp);
  linear<Then::add>(layer.down, plan.mlp, plan.hidden, rows, plan.hidden_mlp, plan.ld_mlp,
                    plan.x + offset, ld);
}

// Outputs of one modality from its normalised row z.
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
  const std::size_t ld = plan.ld_hidden;
  spike_token(plan, input);
  __builtin_memcpy(plan.x + ld, plan.queries,
                   static_cast<std::size_t>(plan.rows - 1) * ld * sizeof(float));
  for (int i = 0; i < plan.n_layers; ++i)
    transform(plan, plan.layers[i], input, i == plan.n_layers - 1);
  normalise(plan, plan.norm, 1);
  for (int m = 1; m < plan.rows; ++m)
    outputs = read_out(plan, plan.readouts[m - 1], plan.y + static_cast<std::size_t>(m) * ld, outputs);
}

}  // namespace

const StepKernels NEDS_TABLE(NEDS_ISA) = {NEDS_NAME(NEDS_ISA), panel, ring_panel, step};

}  // namespace neds
