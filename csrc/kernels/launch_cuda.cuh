// How functors run over memory on a CUDA device: grid-stride maps of 16 bytes a thread, and sums in a fixed order.
//
// Written in the runtime API alone, so that the tests compile it as plain C++ against a host shim that runs every
// block with real threads (tests/cpp/shim/cuda_runtime.h).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "kernels/cuda.h"

namespace sora::kernels::cuda {
namespace {

inline constexpr int kThreads = 256;
inline constexpr int kVector = 4;                 // elements of a thread at once: 16 bytes of float32
inline constexpr std::int64_t kMaxBlocks = 4096;  // of a map: more than any device holds at once

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA refused to ") + what + ": " + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, Stream stream,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), 1, 1);
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launch a kernel");
}

// Whether `bytes` divides every address; null addresses are not read.
inline bool aligned(std::initializer_list<const void*> addresses, std::uintptr_t bytes = 16) {
  return std::all_of(addresses.begin(), addresses.end(),
                     [bytes](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % bytes == 0; });
}

// functor.template run<width>(i) for every i: by vectors, then what is left of n one by one.
template <int kWidth, class Functor>
__global__ void __launch_bounds__(kThreads) map_kernel(Functor functor, std::int64_t n) {
  const std::int64_t vectors = n / kWidth;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + static_cast<std::int64_t>(threadIdx.x);
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t v = first; v < vectors; v += stride) functor.template run<kWidth>(v * kWidth);
  const std::int64_t i = vectors * kWidth + first;
  if (i < n) functor.template run<1>(i);
}

template <int kWidth, class Functor>
void map_by(const Functor& functor, std::int64_t n, Stream stream) {
  if (n == 0) return;
  const std::int64_t blocks = std::min((n / kWidth + kThreads) / kThreads, kMaxBlocks);
  launch(&map_kernel<kWidth, Functor>, blocks, kThreads, stream, functor, n);
}

// Runs a functor over n elements; by vectors where `vectorised`.
template <class Functor>
void map(const Functor& functor, std::int64_t n, bool vectorised, Stream stream) {
  if (vectorised) {
    map_by<kVector>(functor, n, stream);
  } else {
    map_by<1>(functor, n, stream);
  }
}

// values[first] of each group of 2 * width neighbours becomes their sum by a binary tree, as the CPU folds its lanes.
// Every thread of the block calls it; `lane` is the thread's place in its group.
__device__ inline void fold(double* values, int thread, int lane, int width) {
  __syncthreads();
  for (; width > 0; width /= 2) {
    if (lane < width) values[thread] += values[thread + width];
    __syncthreads();
  }
}

}  // namespace
}  // namespace sora::kernels::cuda
