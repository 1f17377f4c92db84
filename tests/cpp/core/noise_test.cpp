// Host noise: its pinned layout, its independence of threads and length, and its distribution.
#include "core/noise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <stdexcept>
#include <vector>

#include "check.h"

using sora::core::fill_normal;

namespace {

constexpr std::int64_t kCount = 1 << 20;

std::vector<float> normal(std::int64_t n, std::uint64_t seed, std::uint64_t stream, int num_threads = 2) {
  std::vector<float> out(static_cast<std::size_t>(n));
  fill_normal(out.data(), n, seed, stream, num_threads);
  return out;
}

// Pearson's correlation of a[i] and b[i + lag], for samples of known mean 0 and variance 1.
double correlation(const std::vector<float>& a, const std::vector<float>& b, std::size_t lag = 0) {
  double sum = 0;
  for (std::size_t i = 0; i + lag < a.size(); ++i) sum += double{a[i]} * double{b[i + lag]};
  return sum / static_cast<double>(a.size() - lag);
}

}  // namespace

// From a 200-bit evaluation of the documented layout (Python, mpmath), rounded to float32. One last
// bit may differ with the C library.
TEST(noise_equals_its_pins) {
  struct Pin {
    std::uint64_t seed, stream;
    std::size_t index;
    std::uint32_t bits;
  };
  constexpr Pin kPins[] = {
      {0, 0, 0, 0x3f7dbb33U},
      {0, 0, 1, 0xbf6cb6b0U},
      {0, 0, 2, 0xbf1e1b9fU},
      {0, 0, 3, 0xbef6d1b2U},
      {0, 0, 4, 0xbe1d5357U},
      {0, 0, 5, 0x3e392a6dU},
      {0, 0, 6, 0x3f54ec98U},
      {0, 0, 7, 0x3e4a2da3U},
      {42, 1, 0, 0x40082c17U},
      {42, 1, 1, 0x400a53f3U},
      {42, 1, 2, 0xbed108e0U},
      {42, 1, 3, 0xbfd472caU},
      {42, 1, 4, 0x40015d4bU},
      {42, 1, 1000003, 0x3fae4c30U},
      {~0ULL, ~0ULL, 0, 0xbfcac635U},
      {~0ULL, ~0ULL, 5, 0x3f6dd207U},
      {0x0123456789abcdefULL, 0xfedcba9876543210ULL, 0, 0x3f5977c1U},
      {0x0123456789abcdefULL, 0xfedcba9876543210ULL, 1, 0xbe4c2c42U},
      {0x0123456789abcdefULL, 0xfedcba9876543210ULL, 3, 0xbeccdadaU},
      {0x0123456789abcdefULL, 0xfedcba9876543210ULL, 65537, 0x3eac186eU},
  };
  for (const Pin& pin : kPins) {
    const auto out = normal(static_cast<std::int64_t>(pin.index) + 1, pin.seed, pin.stream);
    const auto bits = std::bit_cast<std::uint32_t>(out[pin.index]);
    CHECK_NEAR(static_cast<double>(bits), static_cast<double>(pin.bits), 1);
  }
}

TEST(noise_does_not_depend_on_threads) {
  const auto reference = normal(100001, 7, 3, 1);
  for (const int num_threads : {-1, 0, 2, 3, 8, 64}) {
    CHECK(normal(100001, 7, 3, num_threads) == reference);
  }
}

TEST(noise_does_not_depend_on_length) {
  const auto reference = normal(40000, 7, 3);
  for (const std::int64_t n : {0, 1, 2, 3, 4, 5, 7, 16383, 16384, 16385, 32771}) {
    CHECK(std::equal(reference.begin(), reference.begin() + n, normal(n, 7, 3).begin()));
  }
}

TEST(noise_writes_only_its_samples) {
  std::vector<float> out(8, 123.0F);
  fill_normal(out.data() + 1, 5, 0, 0, 1);
  CHECK_EQUAL(out[0], 123.0F);
  CHECK(out[5] != 123.0F);
  CHECK_EQUAL(out[6], 123.0F);
  CHECK_EQUAL(out[7], 123.0F);
}

TEST(noise_uses_every_bit_of_seed_and_stream) {
  const auto reference = normal(16, 0, 0);
  for (int bit = 0; bit < 64; ++bit) {
    CHECK(normal(16, std::uint64_t{1} << bit, 0) != reference);
    CHECK(normal(16, 0, std::uint64_t{1} << bit) != reference);
  }
}

TEST(noise_refuses_what_it_cannot_fill) {
  float out[1];
  CHECK_THROWS(fill_normal(out, -1, 0, 0, 1), std::invalid_argument);
  CHECK_THROWS(fill_normal(nullptr, 1, 0, 0, 1), std::invalid_argument);
  fill_normal(nullptr, 0, 0, 0, 1);
}

// Bounds are 4 standard deviations of each estimator under the normal law; the seeds are fixed.
TEST(noise_has_the_moments_of_a_normal) {
  for (const std::uint64_t seed : {0ULL, 1ULL, 0xdeadbeefcafeULL}) {
    double power[5] = {};
    for (const double x : normal(kCount, seed, 0)) {
      for (int p = 1; p <= 4; ++p) power[p] += std::pow(x, p) / kCount;
    }
    const double sigma = 1 / std::sqrt(double{kCount});
    CHECK_NEAR(power[1], 0, 4 * sigma);
    CHECK_NEAR(power[2], 1, 4 * std::sqrt(2.0) * sigma);
    CHECK_NEAR(power[3], 0, 4 * std::sqrt(15.0) * sigma);
    CHECK_NEAR(power[4], 3, 4 * std::sqrt(96.0) * sigma);
  }
}

// Kolmogorov-Smirnov: the largest gap to the normal law exceeds 1.95 / sqrt(n) once in a thousand.
TEST(noise_passes_kolmogorov_smirnov) {
  for (const std::uint64_t stream : {0ULL, 1ULL, 1ULL << 40}) {
    auto out = normal(kCount, 5, stream);
    std::sort(out.begin(), out.end());
    double gap = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double law = 0.5 * std::erfc(-double{out[i]} / std::numbers::sqrt2);
      gap = std::max(
          {gap, std::abs(law - static_cast<double>(i) / kCount), std::abs(law - static_cast<double>(i + 1) / kCount)});
    }
    CHECK(gap < 1.95 / std::sqrt(double{kCount}));
  }
}

TEST(noise_is_uncorrelated_between_streams_seeds_and_neighbours) {
  const double bound = 4 / std::sqrt(double{kCount});
  const auto reference = normal(kCount, 5, 0);
  CHECK_NEAR(correlation(reference, normal(kCount, 5, 1)), 0, bound);
  CHECK_NEAR(correlation(reference, normal(kCount, 5, 1ULL << 32)), 0, bound);
  CHECK_NEAR(correlation(reference, normal(kCount, 6, 0)), 0, bound);
  CHECK_NEAR(correlation(reference, normal(kCount, 5 + (1ULL << 32), 0)), 0, bound);
  for (const std::size_t lag : {1U, 2U, 3U, 4U, 8U, 1024U}) {
    CHECK_NEAR(correlation(reference, reference, lag), 0, bound);
  }
}
