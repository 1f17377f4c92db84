// Gaussian noise on the host: Philox blocks through Box-Muller, in independent blocks of samples.
#include "core/noise.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "core/error.h"
#include "core/parallel.h"
#include "core/philox.h"

namespace sora::core {
namespace {

constexpr std::int64_t kSamplesPerBlock = 1 << 14;  // a multiple of 4; about 0.2 ms of work

double uniform_from_word(std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

// Two samples from two words.
void box_muller(std::uint32_t radius_word, std::uint32_t angle_word, float* out) {
  const double radius = std::sqrt(-2.0 * std::log(uniform_from_word(radius_word)));
  const double angle = 2.0 * std::numbers::pi * uniform_from_word(angle_word);
  out[0] = static_cast<float>(radius * std::cos(angle));
  out[1] = static_cast<float>(radius * std::sin(angle));
}

// Samples 4k to 4k + 3.
void fill_four(float* out, std::uint64_t k, PhiloxKey key, PhiloxKey stream) {
  const PhiloxKey index = philox_key(k);
  const PhiloxBlock bits = philox4x32({{index.word[0], index.word[1], stream.word[0], stream.word[1]}}, key);
  box_muller(bits.word[0], bits.word[1], out);
  box_muller(bits.word[2], bits.word[3], out + 2);
}

}  // namespace

void fill_normal(float* out, std::int64_t n, std::uint64_t seed, std::uint64_t stream, int num_threads) {
  require(n >= 0, "n = " + std::to_string(n) + " is negative; pass a count of samples");
  require(n == 0 || out != nullptr, "out is null; pass room for n floats");
  const PhiloxKey key = philox_key(seed);
  const PhiloxKey stream_words = philox_key(stream);
  const std::int64_t num_blocks = n / kSamplesPerBlock + (n % kSamplesPerBlock != 0 ? 1 : 0);
  parallel_for(num_blocks, num_threads, [=](std::int64_t block) {
    const std::int64_t begin = block * kSamplesPerBlock;
    const std::int64_t end = begin + std::min(kSamplesPerBlock, n - begin);
    const std::int64_t whole_end = end - end % 4;
    for (std::int64_t i = begin; i < whole_end; i += 4) {
      fill_four(out + i, static_cast<std::uint64_t>(i / 4), key, stream_words);
    }
    if (whole_end == end) return;
    float last[4];
    fill_four(last, static_cast<std::uint64_t>(whole_end / 4), key, stream_words);
    std::copy_n(last, end - whole_end, out + whole_end);
  });
}

}  // namespace sora::core
