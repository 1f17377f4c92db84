// TorchGenerator against numbers recorded from torch 2.13 (Linux x86-64, AVX2), bit for bit.
#include "core/torch_random.h"

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include "check.h"

using sora::core::TorchGenerator;

namespace {

std::vector<std::uint32_t> randn_bits(TorchGenerator& generator, std::int64_t n) {
  std::vector<float> out(static_cast<std::size_t>(n));
  generator.randn(out.data(), n);
  std::vector<std::uint32_t> bits;
  for (const float value : out) bits.push_back(std::bit_cast<std::uint32_t>(value));
  return bits;
}

std::vector<std::uint32_t> randn_bits(std::uint64_t seed, std::int64_t n) {
  TorchGenerator generator(seed);
  return randn_bits(generator, n);
}

// FNV-1a over 32-bit words.
std::uint64_t hash(const std::vector<std::uint32_t>& words) {
  std::uint64_t value = 0xcbf29ce484222325ULL;
  for (const std::uint32_t word : words) value = (value ^ word) * 0x100000001b3ULL;
  return value;
}

}  // namespace

TEST(torch_random_small_tensor_equals_torch) {
  CHECK((randn_bits(0, 4) == std::vector{0x3fc53f5cU, 0xbe963c50U, 0xc00b7149U, 0x3f1184b6U}));  // 1.5410, -0.2934, ...
  CHECK((randn_bits(42, 4) == std::vector{0x3eac62aeU, 0x3e03e69dU, 0x3e7016e7U, 0x3e6bdc6cU}));
}

TEST(torch_random_large_tensor_equals_torch) {
  const auto bits = randn_bits(42, 16);
  CHECK_EQUAL(bits[0], 0x3ff6a529U);  // 1.9269
  CHECK_EQUAL(bits[1], 0x3fbe5f53U);
  CHECK_EQUAL(bits[14], 0xbf44d2a0U);
  CHECK_EQUAL(bits[15], 0x3f432f9fU);
}

// Around the switch at 16 and its overlapping tail, and long enough for every octant and exponent.
TEST(torch_random_hashes_equal_torch) {
  struct Pin {
    std::uint64_t seed;
    std::int64_t n;
    std::uint64_t hash;
  };
  constexpr Pin kPins[] = {
      {0, 15, 0xe96e3f95cb4140b3ULL},       {0, 16, 0xf1048bdebedebeffULL},
      {0, 17, 0xe286cca8e0964ccfULL},       {0, 31, 0x5f3346b40de8d3d4ULL},
      {0, 4097, 0xaf0bb337100f39c4ULL},     {0, 100000, 0xc49d9b3b1b93764dULL},
      {42, 15, 0x11635d3532e80831ULL},      {42, 16, 0x0ba2178f6e02a950ULL},
      {42, 17, 0x044123aa4368423fULL},      {42, 31, 0x44ca9318d2eecd35ULL},
      {42, 4097, 0x8e0b303962357196ULL},    {42, 100000, 0xa4ce892817f1795bULL},
      {~0ULL, 15, 0x1c36d50ca046dc38ULL},   {~0ULL, 17, 0xb43adf3248f268ecULL},
      {~0ULL, 4097, 0x9af7f17ee2bc8aebULL},  // torch's seed -1
  };
  for (const Pin& pin : kPins) CHECK_EQUAL(hash(randn_bits(pin.seed, pin.n)), pin.hash);
}

// Both paths in turn: the odd call of 3 leaves a cached normal that outlives the calls of 16 or
// more.
TEST(torch_random_continues_like_torch) {
  TorchGenerator generator(7);
  std::vector<std::uint32_t> sequence;
  for (const int n : {3, 17, 2, 16, 0, 1, 40, 5}) {
    const auto bits = randn_bits(generator, n);
    sequence.insert(sequence.end(), bits.begin(), bits.end());
  }
  CHECK_EQUAL(hash(sequence), 0xf99deca038dff0d6ULL);
}

TEST(torch_random_takes_the_low_32_bits_of_a_seed) {
  CHECK(randn_bits(5, 100) == randn_bits((1ULL << 32) + 5, 100));
  CHECK(randn_bits(5, 100) != randn_bits(6, 100));
}

TEST(torch_random_refuses_what_it_cannot_fill) {
  TorchGenerator generator(0);
  float out[1];
  CHECK_THROWS(generator.randn(out, -1), std::invalid_argument);
  CHECK_THROWS(generator.randn(nullptr, 1), std::invalid_argument);
  generator.randn(nullptr, 0);
  CHECK_EQUAL(randn_bits(generator, 1)[0], 0x3fc53f5cU);  // none of these advanced it
}
