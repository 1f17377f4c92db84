// The arithmetic of one sampler row, written once for host and device.
//
// The launchers compose these functors in the order of `StepCoefficients`, so CPU and CUDA perform the
// same float32 operations in the same order; contraction to FMA is off in every kernel unit.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"

namespace sora::kernels {

inline constexpr int kMaxHistory = 4;

// Classifier-free guidance, arXiv:2207.12598 eq. 6 in diffusers' scaling (1 = no guidance).
struct Guide {
  float scale;
  SORA_HD float operator()(float conditional, float unconditional) const {
    return unconditional + scale * (conditional - unconditional);
  }
};

struct Scale {
  float factor;
  SORA_HD float operator()(float value) const { return factor * value; }
};

struct Combine {
  float a;
  float b;
  SORA_HD float operator()(float x, float y) const { return a * x + b * y; }
};

struct Accumulate {
  float factor;
  SORA_HD float operator()(float sum, float value) const { return sum + factor * value; }
};

// Coefficients of one row in the kernels' precision; see sampler/program.h for their meaning.
struct StepCoefficients {
  bool guided;     // read the unconditional output and apply Guide
  bool evaluated;  // read the conditional output at all
  float guidance_scale;
  float output_factor;  // guidance rescale (arXiv:2305.08891 eq. 16), 1 when off
  float latents;
  float output;
  float history[kMaxHistory];
  float noise;
  float store_latents;
  float store_output;
  float input_scale;  // of the row that will read model_input
};

// Where a step reads and writes; every pointer addresses n elements, unused ones are null.
struct StepBuffers {
  std::int64_t n;
  float* latents;             // read, then overwritten with the next latents
  const void* conditional;    // output_dtype
  const void* unconditional;  // output_dtype
  core::DType output_dtype;
  const float* history[kMaxHistory];
  const float* noise;
  float* store;       // the new history entry; aliases no other buffer
  void* model_input;  // input_dtype; null when the denoiser reads `latents` itself
  core::DType input_dtype;
};

// Sums over a clip from which guidance rescale takes its two standard deviations.
struct GuidanceMoments {
  double conditional;
  double conditional_squared;
  double guided;
  double guided_squared;
};

// One pass over memory: guidance, solver update, history, cast of the next denoiser input.
void fused_step(const StepBuffers& buffers, const StepCoefficients& coefficients, int num_threads);

// model_input = cast(input_scale * latents): what the first row needs before any step was made.
void prepare_input(const StepBuffers& buffers, float input_scale, int num_threads);

// How many partial sums guidance_moments needs for n elements.
std::int64_t moment_blocks(std::int64_t n);

// Sums in float64 in a fixed order: independent of num_threads. `partial` has room for moment_blocks(n).
GuidanceMoments guidance_moments(const StepBuffers& buffers, float guidance_scale, GuidanceMoments* partial,
                                 int num_threads);

// frames float32 [3, num_frames, height, width] in [-1, 1] (clamped, NaN becomes 0) to
// rgb8 uint8 [num_frames, height, width, 3], rounded to nearest even; plane = height * width.
void frames_to_rgb8(const float* frames, std::uint8_t* rgb8, std::int64_t num_frames, std::int64_t plane,
                    int num_threads);

}  // namespace sora::kernels
