// Philox 4x32-10 against the known answers published with Random123 (kat_vectors, "philox4x32 10").
#include "core/philox.h"

#include "check.h"

using sora::core::philox4x32;
using sora::core::PhiloxBlock;
using sora::core::PhiloxKey;

namespace {

void check_known_answer(PhiloxBlock counter, PhiloxKey key, PhiloxBlock expected) {
  const PhiloxBlock block = philox4x32(counter, key);
  for (int i = 0; i < 4; ++i) CHECK_EQUAL(block.word[i], expected.word[i]);
}

}  // namespace

TEST(philox_of_zeros) {
  check_known_answer({{0, 0, 0, 0}}, {{0, 0}}, {{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}});
}

TEST(philox_of_ones) {
  constexpr auto kOnes = 0xffffffffU;
  check_known_answer({{kOnes, kOnes, kOnes, kOnes}}, {{kOnes, kOnes}},
                     {{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}});
}

TEST(philox_of_the_digits_of_pi) {
  check_known_answer({{0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}}, {{0xa4093822U, 0x299f31d0U}},
                     {{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}});
}

TEST(philox_key_is_little_endian) {
  const PhiloxKey key = sora::core::philox_key(0x0123456789abcdefU);
  CHECK_EQUAL(key.word[0], 0x89abcdefU);
  CHECK_EQUAL(key.word[1], 0x01234567U);
}
