// The two kinds of team: one thread block cluster, whose blocks write into each other's shared
// memory, and a cooperative grid, whose blocks pass activations through device memory.
#pragma once

#include <cooperative_groups.h>

#include "plan.hpp"
#include "shim.hpp"

namespace neds::gpu {

struct TeamBase {
  const Plan& p;
  float* shared;
  int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int index = static_cast<int>(blockIdx.x), count = static_cast<int>(gridDim.x);

  __device__ TeamBase(const Plan& plan, float* memory) : p(plan), shared(memory) {}

  NEDS_DEVICE void block_sync() { __syncthreads(); }
  NEDS_DEVICE void warp_sync() { __syncwarp(); }

  NEDS_DEVICE vec4 read_input(const vec4* from) { return __ldcv(from); }

  NEDS_DEVICE static unsigned address(const void* of) {
    return static_cast<unsigned>(__cvta_generic_to_shared(of));
  }

  NEDS_DEVICE void mark(int i) {
    if (p.marks && index == 0 && thread == 0) p.marks[i] = clock64();
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Every float sent counts at a barrier in the shared memory that it goes to, and a meeting is over
// when all have been counted: no fence, and nobody waits for an answer. Two barriers take turns. No
// block can be two meetings ahead of another, which it would have to hear from first, so what is
// counted at a barrier is always of the meeting that is next there.
struct ClusterTeam : TeamBase {
  static constexpr bool everywhere = false;
  using TeamBase::TeamBase;
  unsigned meetings = 0;

  unsigned low = 0, high = 0;  // shared memory of the blocks that this lane sends tiles to

  NEDS_DEVICE ClusterTeam(const Plan& plan, float* memory) : TeamBase(plan, memory) {
    low = in_block(address(shared), min(tile_copy(), count - 1));
    high = in_block(address(shared), min(tile_copy() + tile_copies, count - 1));
  }

  static constexpr int tile_copies = lanes / tile_rows;
  NEDS_DEVICE int tile_copy() const { return thread % tile_copies; }

  // Of meetings two, then one for each job in flight; bytes from shared memory's begin.
  NEDS_DEVICE unsigned counter() const { return 4 * p.s_barriers + 8 * (meetings & 1); }
  NEDS_DEVICE unsigned arrival(int i) const {
    return address(shared) + 4 * p.s_barriers + 16 + 8 * (i % (max_in_flight + 1));
  }

  NEDS_DEVICE void arrive() {
    if (thread == 0) {
      NEDS_ROLLED
      for (unsigned i = 0; i < 2 + max_in_flight + 1; ++i)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(shared + p.s_barriers) + 8 * i));
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    // Only what was cleared has to be seen before others write there.
    if (p.padded)
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    else
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  }

  NEDS_DEVICE void started() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

  NEDS_DEVICE static unsigned in_block(unsigned at, int block) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));
    return there;
  }

  NEDS_DEVICE static void store(unsigned at, float value, unsigned counter) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];"
                 ::"r"(at), "f"(value), "r"(counter) : "memory");
  }

  NEDS_DEVICE void send_tile(int offset, float value, int) {
    if (tile_copy() < count) store(low + 4 * offset, value, low + counter());
    if (tile_copy() + tile_copies < count) store(high + 4 * offset, value, high + counter());
  }

  NEDS_DEVICE void send(int offset, float value, int copy, int copies) {
    NEDS_ROLLED
    for (int block = copy; block < count; block += copies) {
      const unsigned there = in_block(address(shared), block);
      store(there + 4 * offset, value, there + counter());
    }
  }

  NEDS_DEVICE void send4(int offset, vec4 v) {
    NEDS_ROLLED
    for (int block = 0; block < count; ++block) {
      const unsigned there = in_block(address(shared), block);
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
                   ::"r"(there + 4 * offset), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w),
                   "r"(there + counter()) : "memory");
    }
  }

  NEDS_DEVICE void nothing() {
    if (thread < count) send(p.s_nothing, 0.0f, thread, count);
  }

  NEDS_DEVICE static void expect(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  }

  NEDS_DEVICE static void until(unsigned barrier, unsigned parity) {
    NEDS_ROLLED
    for (unsigned over = 0; !over;)
      asm volatile("{\n\t.reg .pred over;\n\t"
                   "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n\t"
                   "selp.u32 %0, 1, 0, over;\n\t}" : "=r"(over) : "r"(barrier), "r"(parity) : "memory");
  }

  NEDS_DEVICE void meet(int, int, int sent) {
    const unsigned barrier = address(shared) + counter();
    if (thread == 0) expect(barrier, 4 * sent);
    until(barrier, meetings >> 1 & 1);
    ++meetings;
  }

  // One copy by one thread, of the warp that has the fewest rows to multiply.
  NEDS_DEVICE bool loads() const { return thread == threads - 1; }
  NEDS_DEVICE void load(int i, void* to, const void* from, int bytes) {
    expect(arrival(i), bytes);
    if (bytes)
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                   ::"r"(address(to)), "l"(from), "r"(bytes), "r"(arrival(i)) : "memory");
  }

  NEDS_DEVICE void wait(int i, int) { until(arrival(i), i / (max_in_flight + 1) & 1); }
};
#else  // clusters came with compute capability 9.0
struct ClusterTeam {
  static constexpr bool everywhere = false;
};
#endif

struct GridTeam : TeamBase {
  static constexpr bool everywhere = true;
  using TeamBase::TeamBase;

  NEDS_DEVICE void arrive() {}
  NEDS_DEVICE void started() {}
  NEDS_DEVICE void nothing() {}

  NEDS_DEVICE void send(int offset, float value, int copy, int) {
    if (copy == 0) __stcg(p.exchange + offset, value);
  }

  NEDS_DEVICE void send_tile(int offset, float value, int copy) { send(offset, value, copy, 1); }

  NEDS_DEVICE bool loads() const { return true; }
  NEDS_DEVICE void load(int, void* to, const void* from, int bytes) {
    const char* source = static_cast<const char*>(from);
    const unsigned target = address(to);
    for (int i = thread * 16; i < bytes; i += threads * 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target + i), "l"(source + i));
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  NEDS_DEVICE void wait(int i, int loaded) {
    switch (loaded - 1 - i) {
      case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
      case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
      case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
      case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
      case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
      case 5: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
      default: asm volatile("cp.async.wait_group 6;" ::: "memory");
    }
  }

  NEDS_DEVICE void send4(int offset, vec4 values) {
    __stcg(reinterpret_cast<float4*>(p.exchange + offset), values);
  }

  NEDS_DEVICE void meet(int offset, int n, int) {
    sync();
    const float4* from = reinterpret_cast<const float4*>(p.exchange + offset);
    float4* to = reinterpret_cast<float4*>(shared + offset);
    for (int i = thread; i < n / 4; i += threads) to[i] = __ldcg(from + i);
  }

  // Every block adds one, block 0 what is missing to the highest bit; that bit's change is the
  // signal, and the counter is ready for the next time.
  NEDS_DEVICE void sync() {
    __syncthreads();
    if (thread == 0) {
      const unsigned add = index == 0 ? 0x80000000u - static_cast<unsigned>(count - 1) : 1u;
      __threadfence();
      const unsigned before = atomicAdd(p.barrier, add);
      unsigned now;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(p.barrier) : "memory");
      } while (((before ^ now) & 0x80000000u) == 0);
      __threadfence();
    }
    __syncthreads();
  }
};

}  // namespace neds::gpu
