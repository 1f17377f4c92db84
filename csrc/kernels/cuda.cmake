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

set(code "")
foreach(target IN LISTS SORA_CUDA_TARGETS)
  if("${known}\n" MATCHES "compute_${target}\n")
    list(APPEND code "-gencode=arch=compute_${target},code=sm_${target}")
    set(newest ${target})
  endif()
endforeach()
# nvcc may be a script or a link; where it really lies it says itself.
execute_process(COMMAND ${SORA_NVCC} --dryrun -c ${trial}.cu OUTPUT_VARIABLE said ERROR_VARIABLE said)
string(REGEX MATCH "TOP=([^\n\r]+)" found "${said}")
string(STRIP "${CMAKE_MATCH_1}" top)
find_library(SORA_CUDART cudart_static NO_CACHE HINTS ${top}/lib64 ${top}/lib ${top}/targets/x86_64-linux/lib
  ${top}/targets/sbsa-linux/lib)
if(NOT newest OR NOT SORA_CUDART)
  sora_no_cuda("'${SORA_NVCC}' knows none of the compute capabilities ${SORA_CUDA_TARGETS}, or has no cudart_static")
  return()
endif()
list(APPEND code "-gencode=arch=compute_${newest},code=compute_${newest}") # PTX, for processors that come later

# Not CMake's own language CUDA: whether 3.25 knows C++20 of a newer nvcc depends on what lies in the build folder.
# As on the host there is no contraction to FMA and no fast math.
set(SORA_CUDA_FLAGS -std=c++20 -fmad=false --expt-relaxed-constexpr -Xcompiler=-ffp-contract=off)
set(sources ${PROJECT_SOURCE_DIR}/csrc)
file(GLOB headers ${sources}/kernels/*.h ${sources}/kernels/*.cuh ${sources}/core/*.h)
set(object ${CMAKE_CURRENT_BINARY_DIR}/sora_cuda_kernels.o)
add_custom_command(
  OUTPUT ${object}
  COMMAND ${SORA_NVCC} -c -O3 ${SORA_CUDA_FLAGS} ${code} --threads=0 -Xcompiler=-fPIC,-fvisibility=hidden
          -I${sources} ${sources}/kernels/cuda.cu -o ${object}
  DEPENDS ${sources}/kernels/cuda.cu ${headers}
  COMMENT "Compiling the CUDA kernels"
  VERBATIM)
add_library(sora_cuda STATIC csrc/sampler/device_cuda.cpp ${object})
set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
target_link_libraries(sora_cuda PRIVATE sora_flags PUBLIC ${SORA_CUDART} ${CMAKE_DL_LIBS} Threads::Threads rt)
message(STATUS "CUDA kernels for ${SORA_CUDA_TARGETS} and PTX by ${SORA_NVCC}")
