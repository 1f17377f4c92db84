// Storage types of 16 bits and their conversions from and to float32, round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

#include "core/host_device.h"

namespace sora::core {

// IEEE 754 binary16, held as its bits.
struct Half {
  std::uint16_t bits;
};

// The upper half of a binary32, held as its bits.
struct BFloat16 {
  std::uint16_t bits;
};

// Element types a denoiser may read and write.
enum class DType { kFloat32, kFloat16, kBFloat16 };

constexpr std::int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

SORA_HD float to_float(float value) { return value; }

SORA_HD float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

SORA_HD float to_float(Half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffU;
  if (magnitude >= 0x7c00U) {  // infinity and NaN keep their payload
    return std::bit_cast<float>(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
  }
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and is exact for subnormals too.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

SORA_HD void from_float(float value, float& out) { out = value; }

SORA_HD void from_float(float value, BFloat16& out) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffU + (bits >> 16 & 1U);
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;  // rounding could carry it to infinity
  out.bits = static_cast<std::uint16_t>((is_nan ? bits | 0x400000U : rounded) >> 16);
}

SORA_HD void from_float(float value, Half& out) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t result;
  if (magnitude >= 0x47800000U) {  // 65536 and above, infinity, NaN
    result = magnitude > 0x7f800000U ? 0x7e00U | (magnitude >> 13 & 0x3ffU) : 0x7c00U;
  } else if (magnitude < 0x38800000U) {  // below 2^-14: adding 1/2 lets the adder round the subnormal
    result = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  } else {
    magnitude += 0xc8000fffU + (magnitude >> 13 & 1U);  // rebias by -112 exponents and round
    result = magnitude >> 13;
  }
  out.bits = static_cast<std::uint16_t>(sign | result);
}

}  // namespace sora::core
