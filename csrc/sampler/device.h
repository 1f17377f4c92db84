// Where a sampler's buffers lie and its kernels run: the host, or a CUDA device's stream.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/aligned.h"
#include "kernels/guidance.h"
#include "kernels/step.h"
#include "sampler/memory.h"

namespace sora::sampler {

// A program's rows as the kernels read them, the same in every run.
struct Table {
  std::vector<kernels::StepCoefficients> rows;  // guidance by sums over the clip fills in what it computes
  std::vector<kernels::RowGuidance> guidance;
};

class Device {
 public:
  virtual ~Device() = default;
  // The next of memory.buffers() buffers of n float32; taken while the sampler is built.
  virtual float* take() = 0;
  virtual void clear(float* buffer) = 0;
  virtual void prepare_input(const kernels::StepBuffers& buffers, float input_scale) = 0;
  // Row `row` of the table; with `by_moments`, its guidance computes with sums over the clip that are taken first.
  virtual void step(std::int64_t row, kernels::StepBuffers buffers, bool by_moments) = 0;
  // What the last step measured; waits for it. Only with memory.norms.
  virtual kernels::StepNorms norms() = 0;
};

using MakeDevice = std::function<std::unique_ptr<Device>(const SamplerMemory&, Table)>;

class HostDevice final : public Device {
 public:
  HostDevice(const SamplerMemory& memory, Table table, int num_threads);
  float* take() override;
  void clear(float* buffer) override;
  void prepare_input(const kernels::StepBuffers& buffers, float input_scale) override;
  void step(std::int64_t row, kernels::StepBuffers buffers, bool by_moments) override;
  kernels::StepNorms norms() override;

 private:
  std::int64_t n_;
  Table table_;
  int num_threads_;
  std::vector<core::AlignedFloats> buffers_;
  std::vector<kernels::GuidanceMoments> moments_;
  std::vector<kernels::StepNorms> norms_;
};

}  // namespace sora::sampler
