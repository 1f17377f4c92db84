// The factors of guidance from the sums over a clip.
#include "sampler/guidance.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace sora::sampler {

namespace {

// g as a combination of the three arrays that the sums are of: the branches and the running difference before.
struct Guided {
  double c, u, m;
};

double sum(const Guided& g, const kernels::GuidanceMoments& s) { return g.c * s.c + g.u * s.u + g.m * s.m; }

double squared(const Guided& g, const kernels::GuidanceMoments& s) {
  return g.c * g.c * s.cc + g.u * g.u * s.uu + g.m * g.m * s.mm +
         2.0 * (g.c * g.u * s.cu + g.c * g.m * s.mc + g.u * g.m * s.mu);
}

}  // namespace

void check(const GuidanceRule& rule) {
  core::require(std::isfinite(rule.eta) && std::isfinite(rule.momentum) && std::abs(rule.momentum) < 1.0,
                "the momentum of guidance is outside -1 to 1, or eta is not finite; use -0.5 and 0");
  core::require(std::isfinite(rule.norm_threshold) && rule.norm_threshold >= 0.0,
                "norm_threshold of guidance is negative or not finite; use 0 for no limit");
}

bool needs_moments(const GuidanceRule& rule, double rescale) {
  return rule.method != GuidanceMethod::kPlain || rescale != 0.0;
}

void set_guidance(const GuidanceRule& rule, double scale, double rescale, const kernels::GuidanceMoments& s,
                  std::int64_t n, kernels::StepCoefficients* k) {
  Guided guided{scale, 1.0 - scale, 0.0};
  if (rule.method == GuidanceMethod::kZeroStar) {
    const double factor = s.uu > 0.0 ? s.cu / s.uu : 1.0;
    k->unconditional_factor = static_cast<float>(factor);
    guided.u *= factor;
  } else if (rule.method == GuidanceMethod::kProjected) {
    const Guided difference{1.0, -1.0, rule.momentum};
    const double length = std::sqrt(std::max(squared(difference, s), 0.0));
    const bool limited = rule.norm_threshold > 0.0 && length > rule.norm_threshold;
    const double direction = (scale - 1.0) * (limited ? rule.norm_threshold / length : 1.0);
    const double along = s.cc > 0.0 ? (s.cc - s.cu + rule.momentum * s.mc) / s.cc : 0.0;
    const double conditional = 1.0 - direction * (1.0 - rule.eta) * along;
    k->projected = true;
    k->conditional_factor = static_cast<float>(conditional);
    k->direction_factor = static_cast<float>(direction);
    k->momentum = static_cast<float>(rule.momentum);
    guided = {conditional + direction, -direction, direction * rule.momentum};
  }
  if (rescale == 0.0) return;
  // arXiv:2305.08891 eq. 15-16: the factor that brings the guided output back to the conditional one's spread.
  const double count = static_cast<double>(n);
  const double mean = sum(guided, s) / count;
  const double variance = squared(guided, s) / count - mean * mean;
  const double conditional = s.cc / count - s.c / count * (s.c / count);
  if (!(variance > 0.0)) return;  // a constant output has no spread to restore
  k->output_factor = static_cast<float>(rescale * std::sqrt(std::max(conditional, 0.0) / variance) + 1.0 - rescale);
}

}  // namespace sora::sampler
