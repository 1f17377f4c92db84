// What becomes of decoded values: pixels of 8 bits, blended seams, latents in the decoder's scale.
#pragma once

#include <bit>
#include <cstdint>

#include "core/host_device.h"

namespace sora::kernels {

// To the nearest whole number, to even between two; 0 to 255 only.
SORA_HD std::uint8_t round_to_byte(float level) {
  // Adding 1.5 * 2^23 leaves the integer, rounded to nearest even, in the low bits.
  return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(level + 12582912.0F) & 0xffU);
}

// [-1, 1] to 0 to 255, clamped; NaN becomes 0.
SORA_HD float to_level(float value) {
  const float level = (value * 0.5F + 0.5F) * 255.0F;
  return level > 0.0F ? (level < 255.0F ? level : 255.0F) : 0.0F;
}

SORA_HD std::uint8_t to_rgb8(float value) { return round_to_byte(to_level(value)); }

// Levels 0 to 255 of red, green and blue.
struct Rgb {
  float r, g, b;
  // ITU-R BT.709-6 item 3.2.
  SORA_HD float luma() const { return 0.2126F * r + 0.7152F * g + 0.0722F * b; }
  // The 8-bit limited range of BT.709-6 items 3.3 to 3.5: 16 to 235 and, around 128, 16 to 240.
  SORA_HD float y() const { return 16.0F + 219.0F / 255.0F * luma(); }
  SORA_HD float cb() const { return 128.0F + 224.0F / 255.0F / 1.8556F * (b - luma()); }
  SORA_HD float cr() const { return 128.0F + 224.0F / 255.0F / 1.5748F * (r - luma()); }
};

// The mean of the four pixels that share a chroma sample.
SORA_HD Rgb mean_of(const Rgb (&pixels)[4]) {
  const auto mean = [](float a, float b, float c, float d) { return ((a + b) + (c + d)) * 0.25F; };
  return {mean(pixels[0].r, pixels[1].r, pixels[2].r, pixels[3].r),
          mean(pixels[0].g, pixels[1].g, pixels[2].g, pixels[3].g),
          mean(pixels[0].b, pixels[1].b, pixels[2].b, pixels[3].b)};
}

// Fades a tile in over the one before; `weight` rises from 0 along what the two share.
struct Blend {
  float weight;
  SORA_HD float operator()(float before, float after) const { return after * weight + before * (1.0F - weight); }
};

// Latents as the VAE was trained on them: normalised * std + mean of their channel.
struct Denormalise {
  float mean;
  float std;
  SORA_HD float operator()(float normalised) const { return normalised * std + mean; }
};

}  // namespace sora::kernels
