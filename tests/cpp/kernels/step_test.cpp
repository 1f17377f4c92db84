// The fused step against float64, for every storage type and every part of a row.
//
// One body for each device: `fused_step` is called through the public entry, so the CUDA build runs the
// same cases. float32 arithmetic of a few terms of size about 1 errs by a few times 6e-8; storage in
// float16 and bfloat16 adds half a unit in the last place of the stored value.
#include "kernels/step_case.h"

using namespace sora::test;

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
