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

  NEDS_DEVICE vec4 read_input(const vec4* from) { return __ldcv(from); }

  NEDS_DEVICE void copy(void* to, const void* from, std::size_t bytes) {
    const char* source = static_cast<const char*>(from);
    const auto target = static_cast<unsigned>(__cvta_generic_to_shared(to));
    // Rows are padded to 16 bytes, so every piece is a whole number of them.
    for (unsigned i = thread * 16u; i < bytes; i += threads * 16u)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target + i), "l"(source + i));
  }

  NEDS_DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

  NEDS_DEVICE void wait(int pending) {
    switch (pending) {
      case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
      case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
      case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
      case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
      case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
      case 5: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
      default: asm volatile("cp.async.wait_group 6;" ::: "memory");
    }
  }

  NEDS_DEVICE void mark(int i) {
    if (p.marks && index == 0 && thread == 0) p.marks[i] = clock64();
  }

  // Tell the host that the outputs are there, after all of the block's stores.
  NEDS_DEVICE void finish(volatile std::uint32_t* done, std::uint32_t sequence) {
    __threadfence_system();
    __syncthreads();
    if (thread == 0) *done = sequence;
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
struct ClusterTeam : TeamBase {
  static constexpr bool everywhere = false;
  using TeamBase::TeamBase;

  NEDS_DEVICE void start() { sync(); }
  NEDS_DEVICE void sync() { cooperative_groups::this_cluster().sync(); }

  NEDS_DEVICE void publish(int offset, float value, int copy, int copies) {
    const auto cluster = cooperative_groups::this_cluster();
    for (int block = copy; block < count; block += copies)
      *cluster.map_shared_rank(shared + offset, static_cast<unsigned>(block)) = value;
  }

  NEDS_DEVICE void fetch(int, int) {}
  NEDS_DEVICE void fetch_part(int, int) {}
};
#else  // clusters came with compute capability 9.0
struct ClusterTeam {
  static constexpr bool everywhere = false;
};
#endif

struct GridTeam : TeamBase {
  static constexpr bool everywhere = true;
  using TeamBase::TeamBase;

  NEDS_DEVICE void start() { __syncthreads(); }

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

  NEDS_DEVICE void publish(int offset, float value, int copy, int) {
    if (copy == 0) __stcg(p.exchange + offset, value);
  }

  NEDS_DEVICE void fetch(int offset, int n) {
    fetch_part(offset, n);
    __syncthreads();
  }

  NEDS_DEVICE void fetch_part(int offset, int n) {
    const float4* from = reinterpret_cast<const float4*>(p.exchange + offset);
    float4* to = reinterpret_cast<float4*>(shared + offset);
    for (int i = thread; i < n / 4; i += threads) to[i] = __ldcg(from + i);
  }
};

}  // namespace neds::gpu
