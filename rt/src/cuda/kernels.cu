// The step as a kernel, for one type of weights: this file is compiled once for each.
#include "kernels.hpp"
#include "phases.hpp"
#include "teams.cuh"

namespace neds::gpu {

namespace {

template <class Weight, class Team>
__global__ void __launch_bounds__(max_threads, 1) step_kernel(const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) float shared[];
#if __CUDA_ARCH__ >= 900
  constexpr bool possible = true;
#else
  constexpr bool possible = Team::everywhere;
#endif
  if constexpr (possible) {
    Team team(plan, shared);
    Step<Weight, Team>(plan, team).run();
  }
}

}  // namespace

const void* NEDS_KERNEL(bool cluster) {
  return cluster ? reinterpret_cast<const void*>(step_kernel<NEDS_WEIGHT, ClusterTeam>)
                 : reinterpret_cast<const void*>(step_kernel<NEDS_WEIGHT, GridTeam>);
}

}  // namespace neds::gpu
