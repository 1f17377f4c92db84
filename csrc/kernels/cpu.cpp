// The kernels for one instruction set: built once with SORA_ISA=baseline and once with SORA_ISA=avx2.
#include "kernels/dispatch.h"
#include "kernels/step.inl"

#define SORA_JOIN(a, b) a##b
#define SORA_TABLE(isa) SORA_JOIN(kernels_, isa)

namespace sora::kernels {

const KernelTable& SORA_TABLE(SORA_ISA)() {
  static constexpr KernelTable table{&fused_step_impl, &prepare_input_impl, &moments_impl, &frames_to_rgb8_impl};
  return table;
}

}  // namespace sora::kernels
