// Guidance beyond a fixed scale: what it takes from the sums over a clip, in float64 on the host.
#pragma once

#include <cstdint>

#include "kernels/step.h"

namespace sora::sampler {

enum class GuidanceMethod : std::int32_t {
  kPlain = 0,  // classifier-free guidance, arXiv:2207.12598
  // CFG-Zero* (arXiv:2503.18886): u is scaled by <c, u> / <u, u>, its best fit to c, before the usual formula.
  kZeroStar = 1,
  // Adaptive projected guidance (arXiv:2410.02416): of the difference d = c - u, with momentum and at most of the
  // length `norm_threshold`, the part along c counts `eta`. The paper projects the predictions of the data; these are
  // the network's outputs, as in diffusers' guider.
  kProjected = 2,
};

struct GuidanceRule {
  GuidanceMethod method = GuidanceMethod::kPlain;
  double eta = 0;
  double momentum = 0;
  double norm_threshold = 0;  // 0: no limit
};

// Throws std::invalid_argument when a number of the rule is not finite or negative where it may not be.
void check(const GuidanceRule& rule);

// Whether a guided row needs the sums over the clip first.
bool needs_moments(const GuidanceRule& rule, double rescale);

// Fills in what the row's guidance computes with: all of StepCoefficients' guidance but guided and guidance_scale.
void set_guidance(const GuidanceRule& rule, double scale, double rescale, const kernels::GuidanceMoments& sums,
                  std::int64_t n, kernels::StepCoefficients* k);

}  // namespace sora::sampler
