// The checks of a rule of guidance.
#include "sampler/guidance.h"

#include <cmath>

#include "core/error.h"

namespace sora::sampler {

void check(const GuidanceRule& rule) {
  core::require(std::isfinite(rule.eta) && std::isfinite(rule.momentum) && std::abs(rule.momentum) < 1.0,
                "the momentum of guidance is outside -1 to 1, or eta is not finite; use -0.5 and 0");
  core::require(std::isfinite(rule.norm_threshold) && rule.norm_threshold >= 0.0,
                "norm_threshold of guidance is negative or not finite; use 0 for no limit");
}

bool needs_moments(const GuidanceRule& rule, double rescale) {
  return rule.method != GuidanceMethod::kPlain || rescale != 0.0;
}

}  // namespace sora::sampler
