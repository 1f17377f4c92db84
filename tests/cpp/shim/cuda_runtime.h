// As much of CUDA's runtime as the kernels use, on the host: a launch runs block after block, each with as many real
// threads as it has on a device and with a real barrier, so that sanitizers see what a device would do.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
// One for all threads of a block, and blocks run one after the other.
#define __shared__ static

struct CUstream_st {
  std::int64_t launches = 0;
  std::int64_t waits = 0;
};
using cudaStream_t = CUstream_st*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 threadIdx;
inline thread_local dim3 blockIdx;
inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::uint64_t dynamicSmemBytes;
  cudaStream_t stream;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };

inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream != nullptr) ++stream->waits;
  return cudaSuccess;
}

namespace sora::shim {

inline thread_local std::barrier<>* barrier = nullptr;  // of this thread's block
inline thread_local bool waited = false;                // at the barrier, in this block

inline bool allowed(const cudaLaunchConfig_t& config) {
  return config.gridDim.x >= 1 && config.gridDim.x <= 0x7fffffffU && config.blockDim.x >= 1 &&
         config.blockDim.x <= 1024 && config.gridDim.y == 1 && config.gridDim.z == 1 && config.blockDim.y == 1 &&
         config.blockDim.z == 1 && config.dynamicSmemBytes == 0;
}

}  // namespace sora::shim

inline void __syncthreads() {
  sora::shim::barrier->arrive_and_wait();
  sora::shim::waited = true;
}

// Returns when the kernel has ended, as if a stream were waited for.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  if (!sora::shim::allowed(*config)) return cudaErrorInvalidConfiguration;
  if (config->stream != nullptr) ++config->stream->launches;
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(config->blockDim.x));
  const auto run_thread = [&, config, kernel](unsigned thread) {
    threadIdx = {thread, 1, 1};
    blockDim = config->blockDim;
    gridDim = config->gridDim;
    sora::shim::barrier = &barrier;
    for (unsigned block = 0; block < config->gridDim.x; ++block) {
      blockIdx = {block, 1, 1};
      sora::shim::waited = false;
      kernel(arguments...);
      // The next block takes over the shared memory; a kernel that never waits has none.
      if (sora::shim::waited) barrier.arrive_and_wait();
    }
  };
  std::vector<std::jthread> threads;
  threads.reserve(config->blockDim.x);
  for (unsigned thread = 0; thread < config->blockDim.x; ++thread) threads.emplace_back(run_thread, thread);
  return cudaSuccess;
}
