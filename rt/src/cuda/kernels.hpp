// The kernels by what they are compiled for, as addresses for cudaLaunchKernelExC.
#pragma once

namespace neds::gpu {

inline constexpr int max_threads = 512;

// The kernel for weights of one type.
const void* kernel_float32(bool cluster);
const void* kernel_bfloat16(bool cluster);
const void* kernel_float16(bool cluster);

// Kernels that only measure: one that says it is done, and `repeats` meetings of the team.
const void* kernel_nothing();
const void* kernel_meetings(bool cluster);

}  // namespace neds::gpu
