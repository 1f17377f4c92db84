// A CUDA device as a sampler's: kernels on one stream, memory in a workspace that the caller owns.
//
// A run records its work on the stream and waits for nothing, but where a criterion of step reuse decides by what was
// measured; without one it may be captured as a CUDA graph, and the graph replayed. What may change between replays
// (guidance scale, coefficients) lies in the tables at the head of the workspace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda.h"
#include "sampler/device.h"

namespace sora::sampler {

// Offsets in bytes, each a multiple of 256.
struct Workspace {
  std::int64_t rows, guidance, norms, norm_sum, moments, buffers, bytes;
};

Workspace workspace_of(const SamplerMemory& memory);

class CudaDevice final : public Device {
 public:
  // `workspace` has workspace_of(memory).bytes in the device's memory, aligned to 256.
  CudaDevice(const SamplerMemory& memory, Table table, std::byte* workspace, kernels::cuda::Stream stream);
  float* take() override;
  void clear(float* buffer) override;
  void prepare_input(const kernels::StepBuffers& buffers, float input_scale) override;
  void step(std::int64_t row, kernels::StepBuffers buffers, bool by_moments) override;
  kernels::StepNorms norms() override;

  // What must lie at the head of the workspace before a run.
  std::vector<std::byte> tables() const;

 private:
  template <class T>
  T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(workspace_ + offset);
  }

  SamplerMemory memory_;
  Workspace layout_;
  Table table_;
  std::byte* workspace_;
  kernels::cuda::Stream stream_;
  std::int64_t taken_ = 0;
};

}  // namespace sora::sampler
