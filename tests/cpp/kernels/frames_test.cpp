// Float frames to rgb8: layout, clamping, rounding, odd values.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "kernels/step.h"

using sora::kernels::frames_to_rgb8;

TEST(rgb8_interleaves_channels_frame_by_frame) {
  const std::int64_t num_frames = 3;
  const std::int64_t plane = 30011;  // several blocks
  std::vector<float> frames(static_cast<std::size_t>(3 * num_frames * plane));
  for (std::size_t i = 0; i < frames.size(); ++i)
    frames[i] = static_cast<float>(std::sin(static_cast<double>(i))) * 1.3F;
  for (const int threads : {1, 3}) {
    std::vector<std::uint8_t> rgb8(frames.size(), 77);
    frames_to_rgb8(frames.data(), rgb8.data(), num_frames, plane, threads);
    for (std::size_t pixel = 0; pixel < static_cast<std::size_t>(num_frames * plane); ++pixel) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const float value = frames[channel * static_cast<std::size_t>(num_frames * plane) + pixel];
        const double level = std::min(std::max((static_cast<double>(value) * 0.5 + 0.5) * 255.0, 0.0), 255.0);
        CHECK_NEAR(rgb8[3 * pixel + channel], level, 0.5001);
      }
    }
  }
}

TEST(rgb8_clamps_and_rounds_to_even) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float half_level = 2.0F * 0.5F / 255.0F - 1.0F;  // level 0.5 rounds to 0
  std::vector<float> frames = {-1.0F, 1.0F, -9.0F, 9.0F, infinity, -infinity, NAN, half_level, 0.0F};
  std::vector<std::uint8_t> rgb8(frames.size());
  frames_to_rgb8(frames.data(), rgb8.data(), 1, 3, 1);
  // Channel c of pixel p is frames[3 * c + p]; rgb8[3 * p + c].
  CHECK_EQUAL(int{rgb8[0]}, 0);
  CHECK_EQUAL(int{rgb8[3]}, 255);
  CHECK_EQUAL(int{rgb8[6]}, 0);
  CHECK_EQUAL(int{rgb8[1]}, 255);
  CHECK_EQUAL(int{rgb8[4]}, 255);
  CHECK_EQUAL(int{rgb8[7]}, 0);
  CHECK_EQUAL(int{rgb8[2]}, 0);
  CHECK_EQUAL(int{rgb8[5]}, 0);
  CHECK_EQUAL(int{rgb8[8]}, 128);  // 127.5 to even
}
