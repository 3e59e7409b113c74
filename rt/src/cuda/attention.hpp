// Attention over the ring of keys and values: the heads are dealt out to the blocks, a head's slots
// to the warps of its block, each of which makes its own softmax; the parts are put together at the
// end.
#pragma once

#include "plan.hpp"
#include "warp.hpp"

namespace neds::gpu {

inline constexpr float lowest = -1e30f;  // below every score, and no trouble to subtract

template <class Step>
struct Attention {
  Step& step;
  int layer;
  const char* staged;  // keys and values of the block's first head
  const Plan& p = step.p;
  float* s = step.s;

  NEDS_DEVICE void run() {
    NEDS_ROLLED
    for (int head = step.team.index; head < p.heads; head += step.team.count) {
      const int each = p.window * p.ld_head;
      float* ring = p.rings + (static_cast<std::size_t>(layer) * p.heads + head) * 2 * each;
      const float* keys = head == step.team.index ? reinterpret_cast<const float*>(staged) : ring;
      turn(head);
      step.team.block_sync();
      remember(ring);
      weigh(keys, keys + each);
      step.team.block_sync();
      gather(head);
    }
  }

  // Rotate the query (scaled by log2(e) / sqrt(head_dim): scores are exponents of two) and the new key
  // by the bin's position.
  NEDS_DEVICE void turn(int head) {
    const int half = p.head_dim / 2, ld_q = p.heads * p.ld_head, at = p.s_qkv + head * p.ld_head;
    const float* cosine = step.template section<float>(p.in_cosine);
    const float* sine = step.template section<float>(p.in_sine);
    const float scale = 1.4426950408889634f * inverse_root(static_cast<float>(p.head_dim));
    NEDS_ROLLED
    for (int i = step.team.thread; i < 2 * half + p.head_dim; i += step.team.threads) {
      if (i >= 2 * half) {
        const int j = i - 2 * half;
        s[p.s_own + p.ld_head + j] = s[at + 2 * ld_q + j];
        continue;
      }
      const bool key = i >= half;
      const int j = key ? i - half : i;
      const float* from = s + at + (key ? ld_q : 0);
      float* to = s + (key ? p.s_own : p.s_query);
      const float a = from[j], b = from[j + half], size = key ? 1.0f : scale;
      to[j] = size * (a * cosine[j] - b * sine[j]);
      to[j + half] = size * (b * cosine[j] + a * sine[j]);
    }
  }

  // Keep the new key and value for the bins to come. What was staged of this slot is not used: the
  // new ones are at hand.
  NEDS_DEVICE void remember(float* ring) {
    if (!step.present || step.dry) return;
    float* key = ring + step.header->slot * p.ld_head;
    float* value = key + p.window * p.ld_head;
    NEDS_ROLLED
    for (int i = step.team.thread; i < p.head_dim; i += step.team.threads) {
      key[i] = s[p.s_own + i];
      value[i] = s[p.s_own + p.ld_head + i];
    }
  }

  NEDS_DEVICE bool valid(int slot) const {
    return step.template section<std::uint32_t>(p.in_valid)[slot / 32] >> slot % 32 & 1;
  }

  // This warp's slots: their largest score, the sum of 2^(score - largest), and the sum of values so
  // weighted. Each group of lanes goes through slots of its own in one pass; what it has so far is
  // scaled down when a larger score comes. Heads of more dimensions than a warp holds take passes.
  NEDS_DEVICE void weigh(const float* keys, const float* values) {
    const int share = 1 << p.slot_shift, sub = step.lane & (share - 1);
    const int group = step.lane >> p.slot_shift, groups = lanes >> p.slot_shift;
    NEDS_ROLLED
    for (int base = 4 * sub; base < p.ld_head + 4 * sub; base += 4 * share) {
      const bool inside = base < p.ld_head;  // all lanes take part in the exchanges
      float top = lowest, total = 0;
      vec4 sum = {};
      NEDS_UNROLL_TWICE
      for (int slot = step.warp * groups + group; slot - group < p.window; slot += step.warps * groups) {
        const bool real = slot < p.window;
        const bool fresh = slot == step.header->slot;
        const float* key = fresh ? s + p.s_own : keys + (real ? slot : 0) * p.ld_head;
        const float* value = fresh ? key + p.ld_head : values + (real ? slot : 0) * p.ld_head;
        const vec4 v = load4(value + (inside ? base : 0));
        float score = 0;
        NEDS_ROLLED
        for (int i = 4 * sub; i < p.ld_head; i += 4 * share)
          score = dot4(load4(key + i), load4(s + p.s_query + i), score);
        NEDS_ROLLED
        for (int mask = share / 2; mask > 0; mask /= 2) score += exchange(score, mask);
        score = real && valid(slot) ? score : -INFINITY;
        const float larger = fmaxf(top, score);
        const float down = power_of_two(top - larger), weight = power_of_two(score - larger);
        top = larger;
        total = total * down + weight;
        add(sum, down, v, weight);
      }
      NEDS_ROLLED
      for (int mask = lanes / 2; mask >= share; mask /= 2) {
        const float theirs = exchange(top, mask), larger = fmaxf(top, theirs);
        const float down = power_of_two(top - larger), weight = power_of_two(theirs - larger);
        top = larger;
        total = total * down + exchange(total, mask) * weight;
        const vec4 other = make_vec4(exchange(sum.x, mask), exchange(sum.y, mask), exchange(sum.z, mask),
                                     exchange(sum.w, mask));
        add(sum, down, other, weight);
      }
      if (inside && group == 0)
        *reinterpret_cast<vec4*>(s + p.s_parts + step.warp * p.ld_head + base) = sum;
      if (step.lane == 0) {
        s[p.s_tops + 2 * step.warp] = top;
        s[p.s_tops + 2 * step.warp + 1] = total;
      }
    }
  }

  NEDS_DEVICE static void add(vec4& sum, float down, vec4 v, float weight) {
    sum = make_vec4(sum.x * down + v.x * weight, sum.y * down + v.y * weight, sum.z * down + v.z * weight,
                    sum.w * down + v.w * weight);
  }

  // The head's output, zero where nothing is attended to.
  NEDS_DEVICE void gather(int head) {
    float* sizes = s + p.s_sizes + step.warp * step.warps;  // of the parts, for this warp alone
    float top = lowest, total = 0;
    NEDS_ROLLED
    for (int part = step.lane; part < step.warps; part += lanes) top = fmaxf(top, s[p.s_tops + 2 * part]);
    top = warp_max(top);
    NEDS_ROLLED
    for (int part = step.lane; part < step.warps; part += lanes) {
      sizes[part] = power_of_two(s[p.s_tops + 2 * part] - top);
      total += sizes[part] * s[p.s_tops + 2 * part + 1];
    }
    total = warp_sum(total);
    step.team.warp_sync();
    const bool some = (step.header->flags & flag_any_valid) != 0;
    step.for_each(p.head_dim, p.head_shift, [&](int i, int copy, int copies) {
      float sum = 0;
      NEDS_UNROLL_FOUR
      for (int part = 0; part < step.warps; ++part) sum += sizes[part] * s[p.s_parts + part * p.ld_head + i];
      step.team.send(p.s_attended + head * p.head_dim + i, some ? sum / total : 0.0f, copy, copies);
    });
  }
};

}  // namespace neds::gpu
