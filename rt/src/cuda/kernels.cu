// The step as a kernel, for one type of weights: this file is compiled once for each.
#include "kernels.hpp"
#include "phases.hpp"
#include "teams.cuh"

namespace neds::gpu {

namespace {

template <class Weight, int ROWS, class Team>
__global__ void __launch_bounds__(max_threads, 1) step_kernel(const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) float shared[];
#if __CUDA_ARCH__ >= 900
  constexpr bool possible = true;
#else
  constexpr bool possible = Team::everywhere;
#endif
  if constexpr (possible) {
    Team team(plan, shared);
    Step<Weight, ROWS, Team>(plan, team).run();
  }
}

template <class Weight, class Team>
const void* choose(int rows) {
  switch (rows) {
    case 1: return reinterpret_cast<const void*>(step_kernel<Weight, 1, Team>);
    case 2: return reinterpret_cast<const void*>(step_kernel<Weight, 2, Team>);
    case 5: return reinterpret_cast<const void*>(step_kernel<Weight, 5, Team>);
    default: return reinterpret_cast<const void*>(step_kernel<Weight, 8, Team>);
  }
}

}  // namespace

const void* NEDS_KERNEL(bool cluster, int rows) {
  return cluster ? choose<NEDS_WEIGHT, ClusterTeam>(rows) : choose<NEDS_WEIGHT, GridTeam>(rows);
}

}  // namespace neds::gpu
