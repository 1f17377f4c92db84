// 16-bit storage types: every value survives a round trip, and rounding is to nearest even.
#include "core/half.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"

using sora::core::BFloat16;
using sora::core::from_float;
using sora::core::Half;
using sora::core::to_float;

namespace {

template <class Stored>
std::uint16_t bits_of(float value) {
  Stored stored{};
  from_float(value, stored);
  return stored.bits;
}

// Of the two neighbours of `value`, the nearer; at a tie the one with an even last bit.
template <class Stored>
void check_nearest(float value) {
  const std::uint16_t bits = bits_of<Stored>(value);
  const double error = std::abs(static_cast<double>(to_float(Stored{bits})) - value);
  for (const int step : {-1, 1}) {
    const auto neighbour = static_cast<std::uint16_t>(bits + step);
    const double other = std::abs(static_cast<double>(to_float(Stored{neighbour})) - value);
    if (!(other >= error)) continue;  // NaN beside infinity
    CHECK(other > error || bits % 2 == 0);
  }
}

template <class Stored>
void check_round_trip() {
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    const float value = to_float(Stored{static_cast<std::uint16_t>(bits)});
    if (std::isnan(value)) {
      CHECK(std::isnan(to_float(Stored{bits_of<Stored>(value)})));
    } else {
      CHECK_EQUAL(bits_of<Stored>(value), bits);
    }
  }
}

}  // namespace

TEST(half_round_trip) { check_round_trip<Half>(); }
TEST(bfloat16_round_trip) { check_round_trip<BFloat16>(); }

TEST(half_known_values) {
  CHECK_EQUAL(bits_of<Half>(1.0F), 0x3c00);
  CHECK_EQUAL(bits_of<Half>(65504.0F), 0x7bff);
  CHECK_EQUAL(bits_of<Half>(65520.0F), 0x7c00);  // the tie to the even side is infinity
  CHECK_EQUAL(bits_of<Half>(0x1p-24F), 0x0001);
  CHECK_EQUAL(bits_of<Half>(0x1p-25F), 0x0000);  // a tie to even
  CHECK_EQUAL(bits_of<Half>(-0.0F), 0x8000);
}

TEST(bfloat16_known_values) {
  CHECK_EQUAL(bits_of<BFloat16>(1.0F), 0x3f80);
  CHECK_EQUAL(bits_of<BFloat16>(std::numeric_limits<float>::max()), 0x7f80);
  CHECK_EQUAL(bits_of<BFloat16>(std::bit_cast<float>(0x3f808000U)), 0x3f80);  // a tie to even
  CHECK_EQUAL(bits_of<BFloat16>(std::bit_cast<float>(0x3f818000U)), 0x3f82);
}

TEST(rounding_is_to_nearest_even) {
  std::uint32_t state = 1;
  for (int i = 0; i < 200000; ++i) {
    state = state * 1664525U + 1013904223U;
    const auto exponent = static_cast<std::uint32_t>(103 + (state >> 8) % 40);  // around half's range
    const float value = std::bit_cast<float>((state & 0x807fffffU) | exponent << 23);
    if (std::abs(value) < 65000.0F) check_nearest<Half>(value);
    check_nearest<BFloat16>(value);
  }
}
