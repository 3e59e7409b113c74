# neds_rt._cuda, the GPU step: only where it is asked for and a CUDA compiler is there.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NEDS_CUDA STREQUAL "AUTO")
    message(STATUS "No CUDA compiler found: neds_rt._cuda is left out")
    return()
  endif()
  message(FATAL_ERROR "NEDS_CUDA=${NEDS_CUDA}, but no CUDA compiler was found")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # A100, RTX 30, RTX 40, H100 in machine code; later GPUs compile the last of these on first use.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

# The kernels once for each type of weights, so that they compile side by side.
function(add_kernels name weight)
  add_library(step_cuda_${name} OBJECT rt/src/cuda/kernels.cu)
  set_target_properties(step_cuda_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_definitions(step_cuda_${name} PRIVATE
    NEDS_KERNEL=kernel_${name} NEDS_WEIGHT=${weight})
  target_link_libraries(_cuda PRIVATE step_cuda_${name})
endfunction()

nanobind_add_module(_cuda NB_STATIC rt/src/cuda/bind_cuda.cpp rt/src/cuda/engine.cpp
  rt/src/cuda/layout.cpp rt/src/cuda/probes.cu)
set_source_files_properties(rt/src/cuda/bind_cuda.cpp rt/src/cuda/engine.cpp rt/src/cuda/layout.cpp
  PROPERTIES COMPILE_OPTIONS "${ours}")
target_include_directories(_cuda SYSTEM PRIVATE ${NB_DIR}/include ${Python_INCLUDE_DIRS}
  ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
add_kernels(float32 float)
add_kernels(bfloat16 Bf16)
add_kernels(float16 Half)
install(TARGETS _cuda LIBRARY DESTINATION neds_rt)
