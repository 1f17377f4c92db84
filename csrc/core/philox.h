// The Philox 4x32-10 counter-based random number generator, for host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace sora::core {

// A 128-bit counter, or a block of 128 random bits; word[0] is the least significant.
struct PhiloxBlock {
  std::uint32_t word[4];
};

// A 64-bit key; word[0] is the least significant.
struct PhiloxKey {
  std::uint32_t word[2];
};

// The 64-bit value as two words, least significant first.
SORA_HD PhiloxKey philox_key(std::uint64_t value) {
  return {{static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32)}};
}

// 128 random bits for one (counter, key): a bijection of the counter for each key, with no state.
// Philox 4x32 with 10 rounds of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11, section 3.3; constants of its reference implementation, Random123.
SORA_HD PhiloxBlock philox4x32(PhiloxBlock counter, PhiloxKey key) {
  std::uint32_t(&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * c[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * c[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ c[1] ^ key.word[0], static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ c[3] ^ key.word[1], static_cast<std::uint32_t>(product0)}};
    key.word[0] += 0x9E3779B9U;  // the golden ratio
    key.word[1] += 0xBB67AE85U;  // the square root of 3, less 1
  }
  return counter;
}

}  // namespace sora::core
