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

  // Rotate the query (scaled by 1 / sqrt(head_dim)) and the new key by the bin's position.
  NEDS_DEVICE void turn(int head) {
    const int half = p.head_dim / 2, ld_q = p.heads * p.ld_head, at = p.s_qkv + head * p.ld_head;
    const float* cosine = step.template section<float>(p.in_cosine);
    const float* sine = step.template section<float>(p.in_sine);
    const float scale = inverse_root(static_cast<float>(p.head_dim));
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

  // This warp's slots: their largest score, the sum of e^(score - largest), and the sum of values so
  // weighted.
  NEDS_DEVICE void weigh(const float* keys, const float* values) {
    const int share = p.lanes_per_slot, each = lanes / share, sub = step.lane % share;
    const int first = step.warp * each, apart = step.warps * each, mine = first + step.lane / share;
    float top = lowest;
    NEDS_UNROLL_TWICE
    for (int begin = first; begin < p.window; begin += apart) {
      const int slot = begin + step.lane / share;
      const int held = slot < p.window ? slot : p.window - 1;
      const float* key = held == step.header->slot ? s + p.s_own : keys + held * p.ld_head;
      float sum = 0;
      NEDS_ROLLED
      for (int i = sub * 4; i < p.ld_head; i += share * 4)
        sum = dot4(load4(key + i), load4(s + p.s_query + i), sum);
      NEDS_ROLLED
      for (int mask = share / 2; mask > 0; mask /= 2) sum += exchange(sum, mask);
      if (slot >= p.window) continue;
      sum = valid(slot) ? sum : -INFINITY;
      if (sub == 0) s[p.s_scores + slot] = sum;
      top = fmaxf(top, sum);
    }
    NEDS_ROLLED
    for (int mask = lanes / 2; mask >= share; mask /= 2) top = fmaxf(top, exchange(top, mask));
    step.team.warp_sync();

    float total = 0;
    NEDS_ROLLED
    for (int base = 0; base < p.ld_head; base += share * 4) {
      const bool inside = base + sub * 4 < p.ld_head;  // all lanes take part in the exchanges
      const int i = inside ? base + sub * 4 : 0;
      vec4 sum = {};
      NEDS_UNROLL_TWICE
      for (int slot = mine; slot < p.window; slot += apart) {
        const float* value = slot == step.header->slot ? s + p.s_own + p.ld_head : values + slot * p.ld_head;
        const vec4 v = load4(value + i);
        const float weight = exponential(s[p.s_scores + slot] - top);
        if (base == 0) total += weight;
        sum.x += weight * v.x;
        sum.y += weight * v.y;
        sum.z += weight * v.z;
        sum.w += weight * v.w;
      }
      NEDS_ROLLED
      for (int mask = lanes / 2; mask >= share; mask /= 2) {
        sum.x += exchange(sum.x, mask);
        sum.y += exchange(sum.y, mask);
        sum.z += exchange(sum.z, mask);
        sum.w += exchange(sum.w, mask);
      }
      if (inside && step.lane < share)
        *reinterpret_cast<vec4*>(s + p.s_parts + step.warp * p.ld_head + i) = sum;
    }
    NEDS_ROLLED
    for (int mask = lanes / 2; mask >= share; mask /= 2) total += exchange(total, mask);
    if (step.lane == 0) {
      s[p.s_tops + 2 * step.warp] = top;
      s[p.s_tops + 2 * step.warp + 1] = total;
    }
  }

  // Zero where nothing is attended to.
  NEDS_DEVICE void gather(int head) {
    step.for_each(p.head_dim, [&](int i, int copy, int copies) {
      const float* tops = s + p.s_tops;
      float top = lowest, total = 0, sum = 0;
      NEDS_UNROLL_TWICE
      for (int part = 0; part < step.warps; ++part) top = fmaxf(top, tops[2 * part]);
      NEDS_UNROLL_TWICE
      for (int part = 0; part < step.warps; ++part) {
        const float size = exponential(tops[2 * part] - top);
        total += size * tops[2 * part + 1];
        sum += size * s[p.s_parts + part * p.ld_head + i];
      }
      const bool some = (step.header->flags & flag_any_valid) != 0;
      step.team.send(p.s_attended + head * p.head_dim + i, some ? sum / total : 0.0f, copy, copies);
    });
  }
};

}  // namespace neds::gpu
