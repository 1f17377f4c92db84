// Guidance beyond a fixed scale: what a row computes with, from the sums over a clip, in float64.
//
// Written once for host and device: on a device a row's coefficients are filled in where they lie, so that a captured
// graph of the trajectory needs no word from the host.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "kernels/step.h"

namespace sora::kernels {

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

// What a row's guidance computes with besides the sums.
struct RowGuidance {
  GuidanceRule rule;
  double scale;
  double rescale;
};

// g as a combination of the three arrays that the sums are of: the branches and the running difference before.
struct Guided {
  double c, u, m;

  SORA_HD double sum(const GuidanceMoments& s) const { return c * s.c + u * s.u + m * s.m; }
  SORA_HD double squared(const GuidanceMoments& s) const {
    return c * c * s.cc + u * u * s.uu + m * m * s.mm + 2.0 * (c * u * s.cu + c * m * s.mc + u * m * s.mu);
  }
};

SORA_HD double positive(double value) { return value < 0.0 ? 0.0 : value; }  // NaN stays

// Fills in what the row's guidance computes with: all of StepCoefficients' guidance but guided and guidance_scale.
SORA_HD void set_guidance(const RowGuidance& row, const GuidanceMoments& s, std::int64_t n, StepCoefficients* k) {
  const GuidanceRule& rule = row.rule;
  const double scale = row.scale;
  Guided guided{scale, 1.0 - scale, 0.0};
  k->projected = rule.method == GuidanceMethod::kProjected;
  k->unconditional_factor = k->output_factor = 1.0F;
  if (rule.method == GuidanceMethod::kZeroStar) {
    const double factor = s.uu > 0.0 ? s.cu / s.uu : 1.0;
    k->unconditional_factor = static_cast<float>(factor);
    guided.u *= factor;
  } else if (k->projected) {
    const Guided difference{1.0, -1.0, rule.momentum};
    const double length = std::sqrt(positive(difference.squared(s)));
    const bool limited = rule.norm_threshold > 0.0 && length > rule.norm_threshold;
    const double direction = (scale - 1.0) * (limited ? rule.norm_threshold / length : 1.0);
    const double along = s.cc > 0.0 ? (s.cc - s.cu + rule.momentum * s.mc) / s.cc : 0.0;
    const double conditional = 1.0 - direction * (1.0 - rule.eta) * along;
    k->conditional_factor = static_cast<float>(conditional);
    k->direction_factor = static_cast<float>(direction);
    k->momentum = static_cast<float>(rule.momentum);
    guided = {conditional + direction, -direction, direction * rule.momentum};
  }
  if (row.rescale == 0.0) return;
  // arXiv:2305.08891 eq. 15-16: the factor that brings the guided output back to the conditional one's spread.
  const double count = static_cast<double>(n);
  const double mean = guided.sum(s) / count;
  const double variance = guided.squared(s) / count - mean * mean;
  const double conditional = s.cc / count - s.c / count * (s.c / count);
  if (!(variance > 0.0)) return;  // a constant output has no spread to restore
  k->output_factor = static_cast<float>(row.rescale * std::sqrt(positive(conditional) / variance) + 1.0 - row.rescale);
}

}  // namespace sora::kernels
