// The kernels by what they are compiled for, as addresses for cudaLaunchKernelExC.
#pragma once

namespace neds::gpu {

inline constexpr int max_threads = 512;

// The kernel for weights of one type; `rows` token rows at once: 1, 2, 5 or 8.
const void* kernel_float32(bool cluster, int rows);
const void* kernel_bfloat16(bool cluster, int rows);
const void* kernel_float16(bool cluster, int rows);

inline int rows_at_once(int rows) { return rows <= 2 ? rows : rows <= 5 ? 5 : 8; }

// Kernels that only measure: one that says it is done, and `repeats` meetings of the team.
const void* kernel_nothing();
const void* kernel_meetings(bool cluster);

}  // namespace neds::gpu
