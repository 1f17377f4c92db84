// Which rules of guidance a sampler takes, and which need the sums over a clip.
#pragma once

#include "kernels/guidance.h"

namespace sora::sampler {

using kernels::GuidanceMethod;
using kernels::GuidanceRule;

// Throws std::invalid_argument when a number of the rule is not finite or negative where it may not be.
void check(const GuidanceRule& rule);

// Whether a guided row needs the sums over the clip first.
bool needs_moments(const GuidanceRule& rule, double rescale);

}  // namespace sora::sampler
