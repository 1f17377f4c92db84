// The fused step against float64, for every storage type and every part of a row.
//
// One body for each device: `fused_step` is called through the public entry, so the CUDA build runs the
// same cases. float32 arithmetic of a few terms of size about 1 errs by a few times 6e-8; storage in
// float16 and bfloat16 adds half a unit in the last place of the stored value.
#include "kernels/step.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/dispatch.h"

using sora::core::BFloat16;
using sora::core::DType;
using sora::core::Half;
using namespace sora::kernels;

namespace {

constexpr double kFloatTolerance = 2e-6;
constexpr double kSubnormal = 0x1p-25;  // half the spacing of float16 below 2^-14

std::vector<float> random_floats(std::int64_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(engine);
  return values;
}

// Values in a storage type, and what they read back as.
struct Stored {
  std::vector<std::uint8_t> bytes;
  std::vector<float> values;
};

Stored store(const std::vector<float>& values, DType dtype) {
  Stored stored{std::vector<std::uint8_t>(values.size() * static_cast<std::size_t>(sora::core::size_of(dtype))),
                values};
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFloat16) {
      Half half{};
      sora::core::from_float(values[i], half);
      std::memcpy(&stored.bytes[2 * i], &half, 2);
      stored.values[i] = sora::core::to_float(half);
    } else if (dtype == DType::kBFloat16) {
      BFloat16 half{};
      sora::core::from_float(values[i], half);
      std::memcpy(&stored.bytes[2 * i], &half, 2);
      stored.values[i] = sora::core::to_float(half);
    } else {
      std::memcpy(&stored.bytes[4 * i], &values[i], 4);
    }
  }
  return stored;
}

double read(const std::vector<std::uint8_t>& bytes, DType dtype, std::size_t i) {
  if (dtype == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, &bytes[4 * i], 4);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, &bytes[2 * i], 2);
  return dtype == DType::kFloat16 ? sora::core::to_float(Half{bits}) : sora::core::to_float(BFloat16{bits});
}

double half_ulp(DType dtype) {
  if (dtype == DType::kFloat16) return 0x1p-11;
  return dtype == DType::kBFloat16 ? 0x1p-8 : 0.0;
}

// One step's inputs and results, kept so that two runs can be compared.
struct Case {
  std::int64_t n;
  DType input_dtype;
  DType output_dtype;
  StepCoefficients k{};
  std::vector<float> latents, noise, store_entry;
  std::vector<std::vector<float>> history;
  Stored conditional, unconditional;
  std::vector<std::uint8_t> model_input;

  Case(std::int64_t size, DType input, DType output, bool guided)
      : n(size),
        input_dtype(input),
        output_dtype(output),
        latents(random_floats(size, 1)),
        noise(random_floats(size, 2)),
        store_entry(static_cast<std::size_t>(size), NAN),
        conditional(store(random_floats(size, 3), output)),
        unconditional(store(random_floats(size, 4), output)),
        model_input(static_cast<std::size_t>(size * sora::core::size_of(input)), 0xff) {
    k = {guided, true, 4.5F, 1.0F, 0.9F, -0.3F, {}, 0.0F, 0.0F, 0.0F, 0.7F, 1.0F, false, 0.0F, 0.0F, 0.0F};
  }

  StepBuffers buffers() {
    StepBuffers b{};
    b.n = n;
    b.latents = latents.data();
    b.conditional = k.evaluated ? conditional.bytes.data() : nullptr;
    b.unconditional = k.guided ? unconditional.bytes.data() : nullptr;
    b.output_dtype = output_dtype;
    for (std::size_t j = 0; j < history.size(); ++j) b.history[j] = history[j].data();
    b.noise = k.noise != 0.0F ? noise.data() : nullptr;
    b.store = k.store_latents != 0.0F || k.store_output != 0.0F ? store_entry.data() : nullptr;
    b.model_input = model_input.data();
    b.input_dtype = input_dtype;
    return b;
  }

  void check_against_float64(int num_threads) {
    const std::vector<float> before = latents;
    fused_step(buffers(), k, num_threads);
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      const double x = before[i];
      double g = 0;
      if (k.evaluated) {
        const double c = conditional.values[i];
        const double u = unconditional.values[i];
        g = (k.guided ? u + static_cast<double>(k.guidance_scale) * (c - u) : c) * k.output_factor;
      }
      double next = k.latents * x + k.output * g;
      for (std::size_t j = 0; j < history.size(); ++j) next += static_cast<double>(k.history[j]) * history[j][i];
      next += static_cast<double>(k.noise) * noise[i];
      CHECK_NEAR(latents[i], next, kFloatTolerance * 4);
      const double input = k.input_scale * next;
      CHECK_NEAR(read(model_input, input_dtype, i), input,
                 kFloatTolerance * 4 + half_ulp(input_dtype) * std::abs(input));
      if (buffers().store != nullptr) {
        CHECK_NEAR(store_entry[i], k.store_latents * x + k.store_output * g, kFloatTolerance * 4);
      }
    }
  }
};

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

}  // namespace

TEST(step_plain_and_guided_in_every_dtype) {
  for (const DType input : kDTypes) {
    for (const DType output : kDTypes) {
      for (const bool guided : {false, true}) {
        for (const std::int64_t n : {1, 7, 1023, 1024, 1025, 40000})
          Case(n, input, output, guided).check_against_float64(2);
      }
    }
  }
}

TEST(step_with_history_noise_and_store) {
  Case c(5000, DType::kBFloat16, DType::kFloat32, true);
  for (unsigned j = 0; j < kMaxHistory; ++j) {
    c.history.push_back(random_floats(c.n, 10 + j));
    c.k.history[j] = 0.1F * static_cast<float>(j + 1);
  }
  c.k.noise = 0.25F;
  c.k.store_latents = 1.0F;
  c.k.store_output = -0.6F;
  c.k.output_factor = 0.8F;
  c.check_against_float64(2);
}

TEST(step_without_evaluation_reuses_history) {
  Case c(3000, DType::kFloat32, DType::kFloat32, false);
  c.k.evaluated = false;
  c.history.push_back(random_floats(c.n, 20));
  c.k.history[0] = -0.4F;
  c.k.store_latents = 0.5F;
  c.check_against_float64(1);
}

TEST(step_streams_large_results_exactly) {
  // Above the streaming threshold, with a tail that is no multiple of a vector, aligned or not.
  const std::int64_t n = (std::int64_t{1} << 20) + 13;
  Case small(n, DType::kFloat16, DType::kFloat32, true);
  small.k.store_latents = 1.0F;
  small.check_against_float64(2);
}

TEST(step_does_not_depend_on_threads) {
  for (const DType input : kDTypes) {
    Case one(100003, input, DType::kFloat32, true);
    one.k.store_output = 1.0F;
    Case many = one;
    fused_step(one.buffers(), one.k, 1);
    fused_step(many.buffers(), many.k, 7);
    CHECK(one.latents == many.latents);
    CHECK(one.model_input == many.model_input);
    CHECK(one.store_entry == many.store_entry);
  }
}

TEST(instruction_sets_agree_bit_for_bit) {
  for (const DType input : kDTypes) {
    for (const DType output : kDTypes) {
      Case baseline(20011, input, output, true);
      baseline.k.store_latents = 0.3F;
      baseline.k.store_output = 1.0F;
      Case widest = baseline;
      kernels_baseline().fused_step(baseline.buffers(), baseline.k, 2);
      kernels().fused_step(widest.buffers(), widest.k, 2);
      CHECK(baseline.latents == widest.latents);
      CHECK(baseline.model_input == widest.model_input);
      CHECK(baseline.store_entry == widest.store_entry);
    }
  }
}

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

TEST(prepare_input_scales_and_casts) {
  for (const DType input : kDTypes) {
    Case c(2500, input, DType::kFloat32, false);
    prepare_input(c.buffers(), 0.25F, 2);
    for (std::size_t i = 0; i < c.latents.size(); ++i) {
      const double expected = 0.25 * static_cast<double>(c.latents[i]);
      CHECK_NEAR(read(c.model_input, input, i), expected, half_ulp(input) * std::abs(expected) + kSubnormal);
    }
  }
}
