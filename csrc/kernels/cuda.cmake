# The CUDA kernels as the target sora_cuda, where SORA_CUDA is ON, or AUTO and there is an nvcc that compiles.
#
# An extension with them imports on machines without a driver: CUDA's runtime is linked statically.
set(SORA_CUDA_TARGETS 75 80 86 89 90 100 120) # compute capabilities; what the nvcc at hand does not know is left out

function(sora_no_cuda reason)
  if(SORA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SORA_CUDA is ON and ${reason}; set CUDACXX to an nvcc of CUDA 12 or later, or SORA_CUDA=OFF")
  endif()
  message(STATUS "CUDA kernels are not built: ${reason}")
endfunction()

find_program(SORA_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(DEFINED ENV{CUDACXX})
  set(SORA_NVCC $ENV{CUDACXX})
endif()
if(NOT SORA_NVCC)
  sora_no_cuda("no nvcc was found")
  return()
endif()

# A compiler that cannot work with the host's would end the configuration, so it is tried first.
set(trial ${CMAKE_CURRENT_BINARY_DIR}/cuda_trial)
file(WRITE ${trial}.cu "
#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
__global__ void kernel(float* x) { *x = std::bit_cast<float>(std::max(1, 2)) + static_cast<float>(std::sqrt(2.0)); }
int main() { kernel<<<1, 1>>>(nullptr); }
")
execute_process(
  COMMAND ${SORA_NVCC} -std=c++20 --expt-relaxed-constexpr -fmad=false -o ${trial} ${trial}.cu
  RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
execute_process(COMMAND ${SORA_NVCC} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
if(failed)
  sora_no_cuda("'${SORA_NVCC}' does not compile")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES "")
foreach(target IN LISTS SORA_CUDA_TARGETS)
  if("${known}\n" MATCHES "compute_${target}\n")
    list(APPEND CMAKE_CUDA_ARCHITECTURES ${target}-real)
    set(newest ${target})
  endif()
endforeach()
if(NOT newest)
  sora_no_cuda("'${SORA_NVCC}' knows none of the compute capabilities ${SORA_CUDA_TARGETS}")
  return()
endif()
list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual) # PTX, for processors that come later
set(CMAKE_CUDA_COMPILER ${SORA_NVCC})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

add_library(sora_cuda OBJECT csrc/kernels/cuda.cu csrc/sampler/device_cuda.cpp)
# As on the host: no contraction to FMA, no fast math.
target_compile_options(sora_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-fmad=false;--expt-relaxed-constexpr;-Xcompiler=-ffp-contract=off;--threads=0>")
target_link_libraries(sora_cuda PRIVATE sora_flags)
message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}")
