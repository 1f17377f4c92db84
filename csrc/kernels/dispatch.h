// The kernels of one instruction set as a table, so that the machine at hand chooses at run time.
#pragma once

#include "kernels/step.h"

namespace sora::kernels {

// Elements that one StepNorms of a measuring fused_step sums; part of the numerics.
inline constexpr std::int64_t kNormBlock = std::int64_t{1} << 14;
// As many of one GuidanceMoments.
inline constexpr std::int64_t kMomentBlock = std::int64_t{1} << 16;

struct KernelTable {
  void (*fused_step)(const StepBuffers&, const StepCoefficients&, int);
  void (*prepare_input)(const StepBuffers&, float, int);
  void (*moments)(const StepBuffers&, int, GuidanceMoments*, std::int64_t, std::int64_t);
  void (*frames_to_rgb8)(const float*, std::uint8_t*, std::int64_t, std::int64_t, int);
};

const KernelTable& kernels_baseline();
#if defined(SORA_HAS_AVX2)
const KernelTable& kernels_avx2();
#endif

// The widest table this processor can run.
const KernelTable& kernels();

// "avx2" or "baseline": which table kernels() returns.
const char* instruction_set();

}  // namespace sora::kernels
