// What step reuse and guidance take from a clip: estimates, kept outputs, and sums in one order everywhere.
#include "kernels/step_case.h"

using namespace sora::test;

TEST(step_estimates_keeps_and_measures) {
  // Both branches from two earlier outputs and the input's change; then evaluated, kept and measured.
  const std::int64_t n = 50021;
  const std::vector<float> c0 = random_floats(n, 30), c1 = random_floats(n, 31), d0 = random_floats(n, 32);
  for (const bool estimated : {true, false}) {
    Case one(n, DType::kBFloat16, DType::kFloat16, true);
    std::vector<float> anchor = random_floats(n, 33), keep_c(anchor), keep_d(anchor), before = anchor;
    std::vector<StepNorms> partial(static_cast<std::size_t>(norm_blocks(n)));
    StepBuffers b = one.buffers();
    b.reuse.anchor = anchor.data();
    b.reuse.previous = c0.data();
    b.reuse.input_scale = 0.8F;
    b.reuse.norms = partial.data();
    if (estimated) {
      b.reuse.conditional[0] = c0.data();
      b.reuse.conditional[1] = c1.data();
      b.reuse.conditional_weights[0] = 1.5F;
      b.reuse.conditional_weights[1] = -0.5F;
      b.reuse.difference[0] = d0.data();
      b.reuse.difference_weights[0] = 1.0F;
    } else {
      b.reuse.keep_conditional = keep_c.data();
      b.reuse.keep_difference = keep_d.data();
    }
    const std::vector<float> x = one.latents;
    fused_step(b, one.k, 3);
    StepNorms expected{};
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double input = static_cast<double>(0.8F) * x[i];
      const double c = estimated ? 1.5 * c0[i] - 0.5 * c1[i] + input - before[i] : one.conditional.values[i];
      const double u = estimated ? c + d0[i] : one.unconditional.values[i];
      const double next =
          static_cast<double>(one.k.latents) * x[i] + static_cast<double>(one.k.output) * (u + 4.5 * (c - u));
      CHECK_NEAR(one.latents[i], next, kFloatTolerance * 8);
      CHECK_NEAR(anchor[i], estimated ? before[i] : input, kFloatTolerance);
      CHECK_NEAR(keep_c[i], estimated ? before[i] : c, kFloatTolerance);
      CHECK_NEAR(keep_d[i], estimated ? before[i] : u - c, kFloatTolerance);
      expected.output += std::abs(c);
      expected.output_change += std::abs(c - c0[i]);
      expected.residual += std::abs(c - input);
      expected.input += std::abs(input);
      expected.input_change += std::abs(static_cast<double>(one.k.input_scale) * next - input);
    }
    const StepNorms sums = sum_norms(partial.data(), norm_blocks(n));
    CHECK_NEAR(sums.output / expected.output, 1.0, 1e-6);
    CHECK_NEAR(sums.output_change / expected.output_change, 1.0, 1e-6);
    CHECK_NEAR(sums.residual / expected.residual, 1.0, 1e-6);
    CHECK_NEAR(sums.input / expected.input, 1.0, 1e-6);
    CHECK_NEAR(sums.input_change / expected.input_change, 1.0, 1e-6);
    // The same sums on every instruction set and on any number of threads.
    std::vector<StepNorms> other(partial);
    for (const KernelTable* table : {&kernels_baseline(), &kernels()}) {
      one.latents = x;
      if (!estimated) anchor = before;
      b.reuse.norms = other.data();
      table->fused_step(b, one.k, 1);
      CHECK(std::memcmp(partial.data(), other.data(), partial.size() * sizeof(StepNorms)) == 0);
    }
  }
}

TEST(moments_match_float64_and_ignore_threads) {
  Case c(300007, DType::kFloat32, DType::kBFloat16, true);
  std::vector<GuidanceMoments> partial(static_cast<std::size_t>(moment_blocks(c.n)));
  const std::vector<float> before = random_floats(c.n, 5);
  std::vector<float> momentum = before;
  StepBuffers b = c.buffers();
  b.momentum = momentum.data();
  const GuidanceMoments one = guidance_moments(b, partial.data(), 1);
  const GuidanceMoments many = guidance_moments(b, partial.data(), 5);
  CHECK(momentum == before);
  CHECK(std::memcmp(&one, &many, sizeof one) == 0);
  GuidanceMoments sums{};
  for (std::size_t i = 0; i < c.conditional.values.size(); ++i) {
    const double conditional = c.conditional.values[i];
    const double unconditional = c.unconditional.values[i];
    const double m = momentum[i];
    sums.c += conditional;
    sums.u += unconditional;
    sums.m += m;
    sums.cc += conditional * conditional;
    sums.uu += unconditional * unconditional;
    sums.cu += conditional * unconditional;
    sums.mm += m * m;
    sums.mc += m * conditional;
    sums.mu += m * unconditional;
  }
  // Every product is exact in float64; what differs is the order of about 3e5 additions.
  const double* found = &one.c;
  const double* expected = &sums.c;
  for (std::size_t i = 0; i < sizeof(GuidanceMoments) / sizeof(double); ++i) {
    CHECK_NEAR(found[i], expected[i], 1e-9 * static_cast<double>(c.n));
  }
}
