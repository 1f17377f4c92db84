// Chooses the kernel table and implements the entries of step.h on it.
#include "kernels/dispatch.h"

#include <algorithm>
#include <vector>

namespace sora::kernels {

namespace {
bool has_avx2() {
#if defined(SORA_HAS_AVX2)
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("f16c") != 0;
#else
  return false;
#endif
}
}  // namespace

const KernelTable& kernels() {
#if defined(SORA_HAS_AVX2)
  static const KernelTable& table = has_avx2() ? kernels_avx2() : kernels_baseline();
  return table;
#else
  return kernels_baseline();
#endif
}

const char* instruction_set() { return has_avx2() ? "avx2" : "baseline"; }

void fused_step(const StepBuffers& buffers, const StepCoefficients& coefficients, int num_threads) {
  kernels().fused_step(buffers, coefficients, num_threads);
}

void prepare_input(const StepBuffers& buffers, float input_scale, int num_threads) {
  kernels().prepare_input(buffers, input_scale, num_threads);
}

GuidanceMoments guidance_moments(const StepBuffers& buffers, float guidance_scale, int num_threads) {
  constexpr std::int64_t block_size = std::int64_t{1} << 16;
  const std::int64_t num_blocks = (buffers.n + block_size - 1) / block_size;
  std::vector<GuidanceMoments> partial(static_cast<std::size_t>(num_blocks));
  kernels().moments(buffers, guidance_scale, num_threads, partial.data(), block_size, num_blocks);
  GuidanceMoments sum{};
  for (const GuidanceMoments& block : partial) {
    sum.conditional += block.conditional;
    sum.conditional_squared += block.conditional_squared;
    sum.guided += block.guided;
    sum.guided_squared += block.guided_squared;
  }
  return sum;
}

void frames_to_rgb8(const float* frames, std::uint8_t* rgb8, std::int64_t num_frames, std::int64_t plane,
                    int num_threads) {
  kernels().frames_to_rgb8(frames, rgb8, num_frames, plane, num_threads);
}

}  // namespace sora::kernels
