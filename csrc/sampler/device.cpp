// The host as a device: kernels on threads, memory that is taken when the sampler is built.
#include "sampler/device.h"

#include <algorithm>

namespace sora::sampler {

HostDevice::HostDevice(const SamplerMemory& memory, Table table, int num_threads)
    : n_(memory.n),
      table_(std::move(table)),
      num_threads_(num_threads),
      moments_(static_cast<std::size_t>(memory.moments)),
      norms_(static_cast<std::size_t>(memory.norms)) {
  buffers_.reserve(static_cast<std::size_t>(memory.buffers()));
}

float* HostDevice::take() { return buffers_.emplace_back(core::make_aligned_floats(n_)).get(); }

void HostDevice::clear(float* buffer) { std::fill_n(buffer, n_, 0.0F); }

void HostDevice::prepare_input(const kernels::StepBuffers& buffers, float input_scale) {
  kernels::prepare_input(buffers, input_scale, num_threads_);
}

void HostDevice::step(std::int64_t row, kernels::StepBuffers buffers, bool by_moments) {
  const auto index = static_cast<std::size_t>(row);
  kernels::StepCoefficients k = table_.rows[index];
  if (by_moments) {
    const auto sums = kernels::guidance_moments(buffers, moments_.data(), num_threads_);
    kernels::set_guidance(table_.guidance[index], sums, buffers.n, &k);
  }
  if (!norms_.empty()) buffers.reuse.norms = norms_.data();
  kernels::fused_step(buffers, k, num_threads_);
}

kernels::StepNorms HostDevice::norms() {
  return kernels::sum_norms(norms_.data(), static_cast<std::int64_t>(norms_.size()));
}

}  // namespace sora::sampler
