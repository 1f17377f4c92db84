// One element of a sampler row: the functors of step.h in the order in which the CPU's tiles apply them.
//
// The CPU runs each functor over a tile before the next, so that the compiler vectorises it; a device keeps an
// element in registers and runs all of them. What is computed is the same, operation by operation.
#pragma once

#include "kernels/step.h"
#include "kernels/vectors.h"

namespace sora::kernels {

// Where a row that is not measured adds its sums.
struct NoSums {
  SORA_HD void add_output(float, float, float, bool) const {}
  SORA_HD void add_input(float, float) const {}
};

// Adds up what step reuse decides by, in the order in which elements come.
struct ThreadSums {
  StepNorms* sums;
  SORA_HD void add_output(float output, float residual, float change, bool has_previous) const {
    sums->output += static_cast<double>(output);
    sums->residual += static_cast<double>(residual);
    if (has_previous) sums->output_change += static_cast<double>(change);
  }
  SORA_HD void add_input(float input, float change) const {
    sums->input += static_cast<double>(input);
    sums->input_change += static_cast<double>(change);
  }
};

// sum += weights[m] * cached[m] of the elements from `i` on
template <int kWidth>
SORA_HD void add_cached_at(const float* const* cached, const float* weights, std::int64_t i, Floats<kWidth>& sum) {
  SORA_UNROLL
  for (int m = 0; m < kMaxCached; ++m) {
    if (cached[m] == nullptr) return;
    const Floats<kWidth> entry = load<kWidth>(cached[m], i);
    for (int j = 0; j < kWidth; ++j) sum.v[j] = Accumulate{weights[m]}(sum.v[j], entry.v[j]);
  }
}

// The conditional output, evaluated or estimated; `x` are the latents.
template <int kWidth>
SORA_HD Floats<kWidth> conditional_at(const StepBuffers& b, std::int64_t i, const Floats<kWidth>& x) {
  const ReuseBuffers& reuse = b.reuse;
  if (reuse.conditional[0] == nullptr) return load<kWidth>(b.conditional, b.output_dtype, i);
  Floats<kWidth> c{};
  add_cached_at<kWidth>(reuse.conditional, reuse.conditional_weights, i, c);
  if (reuse.anchor == nullptr) return c;
  const Floats<kWidth> anchor = load<kWidth>(reuse.anchor, i);
  for (int j = 0; j < kWidth; ++j) c.v[j] += Combine{reuse.input_scale, -1.0F}(x.v[j], anchor.v[j]);
  return c;
}

// The unconditional output of elements whose conditional one is `c`.
template <int kWidth>
SORA_HD Floats<kWidth> unconditional_at(const StepBuffers& b, std::int64_t i, const Floats<kWidth>& c) {
  if (b.reuse.difference[0] == nullptr) return load<kWidth>(b.unconditional, b.output_dtype, i);
  Floats<kWidth> u = c;
  add_cached_at<kWidth>(b.reuse.difference, b.reuse.difference_weights, i, u);
  return u;
}

template <int kWidth, class Sums>
SORA_HD void measure_output_at(const StepBuffers& b, std::int64_t i, const Floats<kWidth>& x, const Floats<kWidth>& c,
                               const Sums& sums) {
  const bool has_previous = b.reuse.previous != nullptr;
  Floats<kWidth> previous{};
  if (has_previous) previous = load<kWidth>(b.reuse.previous, i);
  for (int j = 0; j < kWidth; ++j) {
    sums.add_output(Magnitude{}(c.v[j]), Distance{1.0F, b.reuse.input_scale}(c.v[j], x.v[j]),
                    Distance{1.0F, 1.0F}(c.v[j], previous.v[j]), has_previous);
  }
}

// Keeps an evaluated output, and what the network read for it, for later rows.
template <int kWidth>
SORA_HD void keep_output_at(const StepBuffers& b, std::int64_t i, const Floats<kWidth>& x, const Floats<kWidth>& c) {
  if (b.reuse.keep_conditional != nullptr) store<kWidth>(b.reuse.keep_conditional, i, c);
  if (b.reuse.anchor == nullptr || b.reuse.conditional[0] != nullptr) return;
  Floats<kWidth> input;
  for (int j = 0; j < kWidth; ++j) input.v[j] = Scale{b.reuse.input_scale}(x.v[j]);
  store<kWidth>(b.reuse.anchor, i, input);
}

// g, the conditional branch, becomes the guided one.
template <int kWidth>
SORA_HD void guide_at(const StepBuffers& b, const StepCoefficients& k, std::int64_t i, Floats<kWidth>& g,
                      Floats<kWidth> u) {
  if (k.projected) {
    Floats<kWidth> difference;
    if (b.momentum != nullptr) {
      difference = load<kWidth>(b.momentum, i);
      for (int j = 0; j < kWidth; ++j) {
        difference.v[j] = Difference{k.momentum}(g.v[j], u.v[j], difference.v[j]);
      }
      store<kWidth>(b.momentum, i, difference);
    } else {
      for (int j = 0; j < kWidth; ++j) difference.v[j] = g.v[j] - u.v[j];
    }
    for (int j = 0; j < kWidth; ++j) {
      g.v[j] = Combine{k.conditional_factor, k.direction_factor}(g.v[j], difference.v[j]);
    }
    return;
  }
  if (k.unconditional_factor != 1.0F) {
    for (int j = 0; j < kWidth; ++j) u.v[j] = Scale{k.unconditional_factor}(u.v[j]);
  }
  for (int j = 0; j < kWidth; ++j) g.v[j] = Guide{k.guidance_scale}(g.v[j], u.v[j]);
}

// g: the conditional output, guided and rescaled as the row says.
template <int kWidth, class Sums>
SORA_HD Floats<kWidth> guided_at(const StepBuffers& b, const StepCoefficients& k, std::int64_t i,
                                 const Floats<kWidth>& x, const Sums& sums) {
  Floats<kWidth> g = conditional_at<kWidth>(b, i, x);
  measure_output_at<kWidth>(b, i, x, g, sums);
  keep_output_at<kWidth>(b, i, x, g);
  if (k.guided) {
    const Floats<kWidth> u = unconditional_at<kWidth>(b, i, g);
    if (b.reuse.keep_difference != nullptr) {
      Floats<kWidth> difference;
      for (int j = 0; j < kWidth; ++j) difference.v[j] = Combine{1.0F, -1.0F}(u.v[j], g.v[j]);
      store<kWidth>(b.reuse.keep_difference, i, difference);
    }
    guide_at<kWidth>(b, k, i, g, u);
  }
  if (k.output_factor != 1.0F) {
    for (int j = 0; j < kWidth; ++j) g.v[j] = Scale{k.output_factor}(g.v[j]);
  }
  return g;
}

// The row for kWidth elements from `i` on, which is a multiple of kWidth.
template <int kWidth, class Sums>
SORA_HD void step_at(const StepBuffers& b, const StepCoefficients& k, std::int64_t i, const Sums& sums) {
  const Floats<kWidth> x = load<kWidth>(static_cast<const float*>(b.latents), i);
  Floats<kWidth> next, kept;
  if (k.evaluated) {
    const Floats<kWidth> g = guided_at<kWidth>(b, k, i, x, sums);
    for (int j = 0; j < kWidth; ++j) next.v[j] = Combine{k.latents, k.output}(x.v[j], g.v[j]);
    for (int j = 0; j < kWidth; ++j) kept.v[j] = Combine{k.store_latents, k.store_output}(x.v[j], g.v[j]);
  } else {
    for (int j = 0; j < kWidth; ++j) next.v[j] = Scale{k.latents}(x.v[j]);
    for (int j = 0; j < kWidth; ++j) kept.v[j] = Scale{k.store_latents}(x.v[j]);
  }
  if (b.store != nullptr) store<kWidth>(b.store, i, kept);
  SORA_UNROLL
  for (int m = 0; m < kMaxHistory; ++m) {
    if (b.history[m] == nullptr) continue;
    const Floats<kWidth> entry = load<kWidth>(b.history[m], i);
    for (int j = 0; j < kWidth; ++j) next.v[j] = Accumulate{k.history[m]}(next.v[j], entry.v[j]);
  }
  if (b.noise != nullptr) {
    const Floats<kWidth> noise = load<kWidth>(b.noise, i);
    for (int j = 0; j < kWidth; ++j) next.v[j] = Accumulate{k.noise}(next.v[j], noise.v[j]);
  }
  const float scale = b.reuse.input_scale;
  for (int j = 0; j < kWidth; ++j) {
    sums.add_input(Magnitude{}(scale * x.v[j]), Distance{k.input_scale, scale}(next.v[j], x.v[j]));
  }
  store<kWidth>(b.latents, i, next);
  if (b.model_input == nullptr) return;
  if (k.input_scale != 1.0F) {
    for (int j = 0; j < kWidth; ++j) next.v[j] = Scale{k.input_scale}(next.v[j]);
  }
  store<kWidth>(b.model_input, b.input_dtype, i, next);
}

}  // namespace sora::kernels
