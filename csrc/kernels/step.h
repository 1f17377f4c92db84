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
inline constexpr int kMaxCached = 3;  // outputs that an extrapolation of second order reads

// Classifier-free guidance, arXiv:2207.12598 eq. 6 in diffusers' scaling (1 = no guidance).
struct Guide {
  float scale;
  SORA_HD float operator()(float conditional, float unconditional) const {
    return unconditional + scale * (conditional - unconditional);
  }
};

// d + momentum * m, the running difference of adaptive projected guidance (arXiv:2410.02416).
struct Difference {
  float momentum;
  SORA_HD float operator()(float conditional, float unconditional, float before) const {
    return (conditional - unconditional) + momentum * before;
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

struct Magnitude {
  SORA_HD float operator()(float value) const { return value < 0.0F ? -value : value; }
};

// |a x - b y|
struct Distance {
  float a;
  float b;
  SORA_HD float operator()(float x, float y) const { return Magnitude{}(a * x - b * y); }
};

// Coefficients of one row in the kernels' precision; see sampler/program.h for their meaning.
struct StepCoefficients {
  bool guided;     // read the unconditional output and apply Guide
  bool evaluated;  // there is an output g; false: g is 0 and no output is read
  float guidance_scale;
  float output_factor;  // guidance rescale (arXiv:2305.08891 eq. 16), 1 when off
  float latents;
  float output;
  float history[kMaxHistory];
  float noise;
  float store_latents;
  float store_output;
  float input_scale;           // of the row that will read model_input
  float unconditional_factor;  // CFG-Zero*: u is scaled by it before Guide; 1 when off
  // Adaptive projected guidance: g = conditional_factor * c + direction_factor * d with the running difference d, in
  // the place of Guide.
  bool projected;
  float conditional_factor;
  float direction_factor;
  float momentum;
};

// Sums of absolute values over a clip; what step reuse decides by (sampler/step_reuse.h).
struct StepNorms {
  double output;         // |c|, as evaluated or as estimated
  double output_change;  // |c - the output of the evaluation before|
  double residual;       // |c - input|
  double input;          // |input|, what the network reads: input_scale * x
  double input_change;   // |next row's input - input|
};

// What step reuse adds to a row. All zero: the row reads what the network returned and keeps none of it.
//
//   estimated c = sum_m conditional_weights[m] * conditional[m] + (input - anchor, with an anchor)
//   estimated u = c + sum_m difference_weights[m] * difference[m]
struct ReuseBuffers {
  const float* conditional[kMaxCached];  // earlier outputs, newest first; null: read the network's
  float conditional_weights[kMaxCached];
  const float* difference[kMaxCached];  // earlier u - c, newest first; null: read the network's u
  float difference_weights[kMaxCached];
  float* keep_conditional;  // where an evaluated c goes; may be the oldest of `conditional`, and `previous`
  float* keep_difference;   // where u - c of a row that evaluated both goes
  float* anchor;            // input of the newest evaluation: read by an estimate, written by an evaluation
  const float* previous;    // the evaluated output before this row's
  float input_scale;        // of this row
  StepNorms* norms;         // partial sums, norm_blocks(n) of them; null: nothing is measured
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
  float* momentum;    // the running difference d, read and overwritten; null without
  float* store;       // the new history entry; aliases no other buffer
  void* model_input;  // input_dtype; null when the denoiser reads `latents` itself
  core::DType input_dtype;
  ReuseBuffers reuse;
};

// Sums over a clip of the branches c and u and the running difference m before this row, and of their products:
// all that guidance by length, angle or spread is computed from.
struct GuidanceMoments {
  double c, u, m;
  double cc, uu, cu;
  double mm, mc, mu;  // these and m: 0 without a running difference
};

// One pass over memory: outputs read or estimated, guidance, solver update, history, cast of the next denoiser
// input, and the sums that step reuse decides by (float64, in an order that num_threads does not change).
void fused_step(const StepBuffers& buffers, const StepCoefficients& coefficients, int num_threads);

// model_input = cast(input_scale * latents): what the first row needs before any step was made.
void prepare_input(const StepBuffers& buffers, float input_scale, int num_threads);

// How many partial sums a measuring fused_step needs for n elements, and their sum in a fixed order.
std::int64_t norm_blocks(std::int64_t n);
StepNorms sum_norms(const StepNorms* partial, std::int64_t blocks);

// How many partial sums guidance_moments needs for n elements.
std::int64_t moment_blocks(std::int64_t n);

// Sums in float64 in a fixed order: independent of num_threads. `partial` has room for moment_blocks(n).
GuidanceMoments guidance_moments(const StepBuffers& buffers, GuidanceMoments* partial, int num_threads);

// frames float32 [3, num_frames, height, width] in [-1, 1] (clamped, NaN becomes 0) to
// rgb8 uint8 [num_frames, height, width, 3], rounded to nearest even; plane = height * width.
void frames_to_rgb8(const float* frames, std::uint8_t* rgb8, std::int64_t num_frames, std::int64_t plane,
                    int num_threads);

}  // namespace sora::kernels
