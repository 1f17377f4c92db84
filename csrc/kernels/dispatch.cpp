// Chooses the kernel table and implements the entries of step.h on it.
#include "kernels/dispatch.h"

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

std::int64_t norm_blocks(std::int64_t n) { return (n + kNormBlock - 1) / kNormBlock; }

StepNorms sum_norms(const StepNorms* partial, std::int64_t blocks) {
  StepNorms sum{};
  for (std::int64_t i = 0; i < blocks; ++i) {
    sum.output += partial[i].output;
    sum.output_change += partial[i].output_change;
    sum.residual += partial[i].residual;
    sum.input += partial[i].input;
    sum.input_change += partial[i].input_change;
  }
  return sum;
}

std::int64_t moment_blocks(std::int64_t n) { return (n + kMomentBlock - 1) / kMomentBlock; }

GuidanceMoments guidance_moments(const StepBuffers& buffers, GuidanceMoments* partial, int num_threads) {
  const std::int64_t blocks = moment_blocks(buffers.n);
  kernels().moments(buffers, num_threads, partial, kMomentBlock, blocks);
  GuidanceMoments sum{};
  for (std::int64_t i = 0; i < blocks; ++i) {
    const GuidanceMoments& block = partial[i];
    sum.c += block.c;
    sum.u += block.u;
    sum.m += block.m;
    sum.cc += block.cc;
    sum.uu += block.uu;
    sum.cu += block.cu;
    sum.mm += block.mm;
    sum.mc += block.mc;
    sum.mu += block.mu;
  }
  return sum;
}

void frames_to_rgb8(const float* frames, std::uint8_t* rgb8, std::int64_t num_frames, std::int64_t plane,
                    int num_threads) {
  kernels().frames_to_rgb8(frames, rgb8, num_frames, plane, num_threads);
}

}  // namespace sora::kernels
