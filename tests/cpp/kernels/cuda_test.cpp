// The CUDA kernels, thread by thread on the host (tests/cpp/shim), against the CPU's: bit for bit.
#include "kernels/cuda.h"

#include <functional>

#include "kernels/pixels.h"
#include "kernels/step_case.h"
#include "shim/cuda_runtime.h"

using namespace sora::test;

namespace {

// Both tables get the same case; every buffer of it must come out the same.
void check_same_step(Case cpu, const std::function<void(Case&, StepBuffers&)>& prepare = {}) {
  Case device = cpu;
  StepBuffers b = cpu.buffers();
  if (prepare) prepare(cpu, b);
  fused_step(b, cpu.k, 2);
  StepBuffers d = device.buffers();
  if (prepare) prepare(device, d);
  cuda::fused_step(d, &device.k, nullptr);
  CHECK(cpu.latents == device.latents);
  CHECK(cpu.model_input == device.model_input);
  CHECK(std::memcmp(cpu.store_entry.data(), device.store_entry.data(), cpu.store_entry.size() * 4) == 0);
}

// What a row with step reuse reads and writes.
struct Cached {
  std::vector<float> c0, c1, d0, anchor, keep_c, keep_d;
  std::vector<StepNorms> norms;

  explicit Cached(std::int64_t n)
      : c0(random_floats(n, 30)),
        c1(random_floats(n, 31)),
        d0(random_floats(n, 32)),
        anchor(random_floats(n, 33)),
        keep_c(anchor),
        keep_d(anchor),
        norms(static_cast<std::size_t>(norm_blocks(n))) {}

  void bind(StepBuffers& b, bool estimated, bool measured) {
    b.reuse.anchor = anchor.data();
    b.reuse.previous = c0.data();
    b.reuse.input_scale = 0.8F;
    if (measured) b.reuse.norms = norms.data();
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
  }
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace

TEST(cuda_step_plain_and_guided_in_every_dtype) {
  for (const DType input : kDTypes) {
    for (const DType output : kDTypes) {
      for (const bool guided : {false, true}) {
        for (const std::int64_t n : {1, 3, 4, 1023, 5001}) check_same_step(Case(n, input, output, guided));
      }
    }
  }
}

TEST(cuda_step_with_every_part_of_a_row) {
  Case c(40001, DType::kBFloat16, DType::kFloat16, true);
  for (unsigned j = 0; j < kMaxHistory; ++j) {
    c.history.push_back(random_floats(c.n, 10 + j));
    c.k.history[j] = 0.1F * static_cast<float>(j + 1);
  }
  c.k.noise = 0.25F;
  c.k.store_latents = 1.0F;
  c.k.store_output = -0.6F;
  c.k.output_factor = 0.8F;
  c.k.unconditional_factor = 0.9F;
  check_same_step(c);
  c.k.evaluated = c.k.guided = false;
  check_same_step(c);
}

TEST(cuda_step_with_projected_guidance) {
  for (const bool running : {false, true}) {
    Case c(3001, DType::kFloat32, DType::kBFloat16, true);
    c.k.projected = true;
    c.k.conditional_factor = 1.3F;
    c.k.direction_factor = 2.5F;
    c.k.momentum = -0.5F;
    std::vector<float> momentum[2] = {random_floats(c.n, 7), random_floats(c.n, 7)};
    int call = 0;
    check_same_step(c, [&](Case&, StepBuffers& b) { b.momentum = running ? momentum[call++].data() : nullptr; });
    CHECK(momentum[0] == momentum[1]);
    CHECK_EQUAL(momentum[0] != random_floats(c.n, 7), running);
  }
}

TEST(cuda_step_reads_what_is_not_aligned) {
  Case c(4099, DType::kFloat32, DType::kFloat32, true);
  std::vector<float> padded[2];
  int call = 0;
  check_same_step(c, [&](Case& one, StepBuffers& b) {
    std::vector<float>& latents = padded[call++];
    latents.resize(one.latents.size() + 1);
    std::copy(one.latents.begin(), one.latents.end(), latents.begin() + 1);
    b.latents = latents.data() + 1;
  });
  CHECK(padded[0] == padded[1]);
  CHECK(!std::equal(c.latents.begin(), c.latents.end(), padded[0].begin() + 1));
}

TEST(cuda_map_strides_over_more_than_a_grid) {
  // 4096 blocks of 256 threads of 4 elements are fewer than these.
  Case cpu((std::int64_t{1} << 22) + 4099, DType::kFloat16, DType::kFloat32, false);
  Case device = cpu;
  CUstream_st stream;
  prepare_input(cpu.buffers(), 0.25F, 2);
  cuda::prepare_input(device.buffers(), 0.25F, &stream);
  CHECK(cpu.model_input == device.model_input);
  CHECK_EQUAL(stream.launches, 1);
}

TEST(cuda_step_estimates_keeps_and_measures) {
  const std::int64_t n = 2 * kNormBlock + 1024 + 37;  // two whole blocks, a whole tile, part of one
  for (const bool estimated : {true, false}) {
    for (const bool measured : {true, false}) {
      Cached of[2] = {Cached(n), Cached(n)};
      int call = 0;
      check_same_step(Case(n, DType::kBFloat16, DType::kFloat16, true),
                      [&](Case&, StepBuffers& b) { of[call++].bind(b, estimated, measured); });
      CHECK(same(of[0].norms, of[1].norms));
      CHECK_EQUAL(of[0].norms[0].output > 0.0, measured);
      CHECK(same(of[0].anchor, of[1].anchor));
      CHECK(same(of[0].keep_c, of[1].keep_c));
      CHECK(same(of[0].keep_d, of[1].keep_d));
      CHECK_EQUAL(same(of[0].anchor, of[0].keep_c), estimated);
      const StepNorms sum = sum_norms(of[0].norms.data(), norm_blocks(n));
      StepNorms device{};
      cuda::sum_norms(of[1].norms.data(), norm_blocks(n), &device, nullptr);
      CHECK(std::memcmp(&sum, &device, sizeof sum) == 0);
    }
  }
}

TEST(cuda_guidance_makes_the_factors_of_the_host) {
  const GuidanceRule rules[] = {{}, {GuidanceMethod::kZeroStar}, {GuidanceMethod::kProjected, 0.2, -0.5, 15.0}};
  for (const GuidanceRule& rule : rules) {
    for (const double rescale : {0.0, 0.7}) {
      Case c(2 * kMomentBlock + 517, DType::kFloat32, DType::kFloat16, true);
      std::vector<float> momentum = random_floats(c.n, 5);
      std::vector<GuidanceMoments> partial(static_cast<std::size_t>(moment_blocks(c.n))), on_device = partial;
      StepBuffers b = c.buffers();
      if (rule.momentum != 0.0) b.momentum = momentum.data();
      StepCoefficients host = c.k;
      const RowGuidance guidance{rule, 6.0, rescale};
      set_guidance(guidance, guidance_moments(b, partial.data(), 2), b.n, &host);
      StepCoefficients device = c.k;
      device.output_factor = 99.0F;  // of the clip before
      CUstream_st stream;
      cuda::set_guidance(b, on_device.data(), &guidance, &device, &stream);
      CHECK(same(partial, on_device));
      CHECK_EQUAL(device.projected, host.projected);
      CHECK_EQUAL(device.unconditional_factor, host.unconditional_factor);
      CHECK_EQUAL(device.output_factor, host.output_factor);
      CHECK_EQUAL(device.conditional_factor, host.conditional_factor);
      CHECK_EQUAL(device.direction_factor, host.direction_factor);
      CHECK_EQUAL(device.momentum, host.momentum);
      CHECK_EQUAL(host.output_factor != 1.0F, rescale != 0.0);
      CHECK_EQUAL(stream.launches, 2);
    }
  }
}

TEST(cuda_rgb8_equals_the_cpu) {
  for (const std::int64_t plane : {4096, 1021}) {
    const std::int64_t n = 3 * 2 * plane;
    std::vector<float> frames = random_floats(n, 8);
    frames[0] = NAN;
    frames[1] = INFINITY;
    std::vector<std::uint8_t> cpu(frames.size()), device(frames.size());
    frames_to_rgb8(frames.data(), cpu.data(), 2, plane, 2);
    cuda::frames_to_rgb8(frames.data(), DType::kFloat32, device.data(), 2, plane, nullptr);
    CHECK(cpu == device);
    const Stored half = store(frames, DType::kFloat16);
    frames_to_rgb8(half.values.data(), cpu.data(), 2, plane, 2);
    cuda::frames_to_rgb8(half.bytes.data(), DType::kFloat16, device.data(), 2, plane, nullptr);
    CHECK(cpu == device);
  }
}

TEST(cuda_nv12_is_bt709_of_limited_range) {
  const std::int64_t height = 6, width = 10, plane = height * width, pitch = 16, bytes = pitch * height * 3 / 2 + 32;
  const std::vector<float> frames = random_floats(3 * 2 * plane, 9);
  std::vector<std::uint8_t> rgb8(frames.size()), pictures(static_cast<std::size_t>(2 * bytes), 7);
  frames_to_rgb8(frames.data(), rgb8.data(), 2, plane, 1);
  cuda::frames_to_nv12(frames.data(), DType::kFloat32, 2, height, width, {pictures.data(), pitch, bytes}, nullptr);
  // Item 3 of ITU-R BT.709-6 in float64.
  const auto level = [&](std::int64_t frame, std::int64_t y, std::int64_t x, int color) {
    return static_cast<double>(rgb8[static_cast<std::size_t>(3 * ((frame * height + y) * width + x) + color)]) / 255;
  };
  const auto luma = [](double r, double g, double b) { return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  std::size_t written = 0;
  const auto check = [&](std::int64_t at, double expected) {
    CHECK_NEAR(pictures[static_cast<std::size_t>(at)], expected, 0.5001);
    ++written;
  };
  for (std::int64_t frame = 0; frame < 2; ++frame) {
    for (std::int64_t y = 0; y < height; ++y) {
      for (std::int64_t x = 0; x < width; ++x) {
        check(frame * bytes + y * pitch + x,
              16 + 219 * luma(level(frame, y, x, 0), level(frame, y, x, 1), level(frame, y, x, 2)));
      }
    }
    for (std::int64_t y = 0; y < height; y += 2) {
      for (std::int64_t x = 0; x < width; x += 2) {
        double mean[3] = {};
        for (int color = 0; color < 3; ++color) {
          for (int p = 0; p < 4; ++p) mean[color] += level(frame, y + p / 2, x + p % 2, color) / 4;
        }
        const double e = luma(mean[0], mean[1], mean[2]);
        const std::int64_t at = frame * bytes + (height + y / 2) * pitch + x;
        check(at, 128 + 224 * (mean[2] - e) / 1.8556);
        check(at + 1, 128 + 224 * (mean[0] - e) / 1.5748);
      }
    }
  }
  // Nothing else was touched: neither the end of a row nor that of a picture.
  const auto untouched = static_cast<std::size_t>(std::count(pictures.begin(), pictures.end(), 7));
  CHECK_EQUAL(untouched, pictures.size() - written);
}

TEST(cuda_denormalise_takes_each_channels_own_scale) {
  const std::int64_t channels = 3, n = 1022;  // a vector may span two channels
  const std::vector<float> latents = random_floats(channels * n, 11);
  const float mean[] = {0.5F, -1.0F, 2.0F}, deviation[] = {1.5F, 0.25F, 3.0F};
  for (const DType dtype : kDTypes) {
    std::vector<std::uint8_t> decoded(latents.size() * static_cast<std::size_t>(sora::core::size_of(dtype)));
    cuda::denormalise(latents.data(), channels, n, mean, deviation, decoded.data(), dtype, nullptr);
    for (std::size_t i = 0; i < latents.size(); ++i) {
      const std::size_t c = i / static_cast<std::size_t>(n);
      const double expected = static_cast<double>(latents[i]) * deviation[c] + mean[c];
      CHECK_NEAR(read(decoded, dtype, i), expected, 1e-6 + half_ulp(dtype) * std::abs(expected) + kSubnormal);
    }
  }
}

TEST(cuda_blend_fades_one_tile_into_the_next) {
  const cuda::Seam seam{5, 3, 7, 40, 60};
  const std::vector<float> before = random_floats(5 * 40, 12), head = random_floats(5 * 60, 13);
  std::vector<float> after = head;
  cuda::blend(before.data(), after.data(), seam, nullptr);
  for (std::size_t i = 0; i < after.size(); ++i) {
    const std::size_t outer = i / 60, within = i % 60;
    float expected = head[i];
    if (within < 21) {
      const float weight = static_cast<float>(within / 7) / 3.0F;
      expected = head[i] * weight + before[outer * 40 + within] * (1.0F - weight);
    }
    CHECK_EQUAL(after[i], expected);
  }
}

TEST(cuda_refuses_an_empty_grid_and_skips_an_empty_map) {
  Case c(1, DType::kFloat32, DType::kFloat32, false);
  StepBuffers b = c.buffers();
  b.n = 0;
  CUstream_st stream;
  cuda::fused_step(b, &c.k, &stream);
  CHECK_EQUAL(stream.launches, 0);
  std::vector<StepNorms> norms(1);
  b.reuse.norms = norms.data();
  CHECK_THROWS(cuda::fused_step(b, &c.k, &stream), std::runtime_error);
}
