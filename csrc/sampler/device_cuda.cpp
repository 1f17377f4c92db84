// The sampler's work on a CUDA stream.
#include "sampler/device_cuda.h"

#include <cstring>

namespace sora::sampler {

namespace {

constexpr std::int64_t kAligned = 256;  // bytes, as cudaMalloc aligns

std::int64_t aligned(std::int64_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

std::int64_t buffer_bytes(const SamplerMemory& memory) {
  return aligned(memory.n * static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace

Workspace workspace_of(const SamplerMemory& memory) {
  std::int64_t end = 0;
  const auto place = [&end](std::int64_t count, std::size_t bytes) {
    const std::int64_t offset = end;
    end += aligned(count * static_cast<std::int64_t>(bytes));
    return offset;
  };
  Workspace layout{};
  layout.rows = place(memory.rows, sizeof(kernels::StepCoefficients));
  layout.guidance = place(memory.rows, sizeof(kernels::RowGuidance));
  layout.norms = place(memory.norms, sizeof(kernels::StepNorms));
  layout.norm_sum = place(memory.norms > 0 ? 1 : 0, sizeof(kernels::StepNorms));
  layout.moments = place(memory.moments, sizeof(kernels::GuidanceMoments));
  layout.buffers = end;
  layout.bytes = end + memory.buffers() * buffer_bytes(memory);
  return layout;
}

CudaDevice::CudaDevice(const SamplerMemory& memory, Table table, std::byte* workspace, kernels::cuda::Stream stream)
    : memory_(memory),
      layout_(workspace_of(memory)),
      table_(std::move(table)),
      workspace_(workspace),
      stream_(stream) {}

float* CudaDevice::take() { return at<float>(layout_.buffers + taken_++ * buffer_bytes(memory_)); }

void CudaDevice::clear(float* buffer) {
  kernels::cuda::clear(buffer, memory_.n * static_cast<std::int64_t>(sizeof(float)), stream_);
}

void CudaDevice::prepare_input(const kernels::StepBuffers& buffers, float input_scale) {
  kernels::cuda::prepare_input(buffers, input_scale, stream_);
}

void CudaDevice::step(std::int64_t row, kernels::StepBuffers buffers, bool by_moments) {
  auto* k = at<kernels::StepCoefficients>(layout_.rows) + row;
  if (by_moments) {
    kernels::cuda::set_guidance(buffers, at<kernels::GuidanceMoments>(layout_.moments),
                                at<const kernels::RowGuidance>(layout_.guidance) + row, k, stream_);
  }
  if (memory_.norms > 0) buffers.reuse.norms = at<kernels::StepNorms>(layout_.norms);
  kernels::cuda::fused_step(buffers, k, stream_);
}

kernels::StepNorms CudaDevice::norms() {
  auto* sum = at<kernels::StepNorms>(layout_.norm_sum);
  kernels::cuda::sum_norms(at<const kernels::StepNorms>(layout_.norms), memory_.norms, sum, stream_);
  kernels::StepNorms norms{};
  kernels::cuda::read(sum, sizeof norms, &norms, stream_);
  return norms;
}

std::vector<std::byte> CudaDevice::tables() const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(layout_.norms));
  std::memcpy(bytes.data() + layout_.rows, table_.rows.data(), table_.rows.size() * sizeof(table_.rows[0]));
  std::memcpy(bytes.data() + layout_.guidance, table_.guidance.data(),
              table_.guidance.size() * sizeof(table_.guidance[0]));
  return bytes;
}

}  // namespace sora::sampler
