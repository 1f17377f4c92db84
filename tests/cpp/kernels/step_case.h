// One step's inputs and results, with what float64 makes of them: shared by the tests of the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/dispatch.h"
#include "kernels/step.h"

namespace sora::test {

using core::BFloat16;
using core::DType;
using core::Half;
using namespace kernels;

inline constexpr double kFloatTolerance = 2e-6;
inline constexpr double kSubnormal = 0x1p-25;  // half the spacing of float16 below 2^-14

inline std::vector<float> random_floats(std::int64_t n, unsigned seed) {
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

inline Stored store(const std::vector<float>& values, DType dtype) {
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

inline double read(const std::vector<std::uint8_t>& bytes, DType dtype, std::size_t i) {
  if (dtype == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, &bytes[4 * i], 4);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, &bytes[2 * i], 2);
  return dtype == DType::kFloat16 ? sora::core::to_float(Half{bits}) : sora::core::to_float(BFloat16{bits});
}

inline double half_ulp(DType dtype) {
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

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

}  // namespace sora::test
