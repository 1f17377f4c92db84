// PyTorch's CPU normal numbers: MT19937, then Box-Muller, in double for small tensors and in float
// polynomials for the rest.
#include "core/torch_random.h"

#include <bit>
#include <cmath>
#include <numbers>
#include <string>

#include "core/error.h"

namespace sora::core {
namespace {

constexpr std::int64_t kGroup = 16;  // torch's unit of work: 8 radii, then 8 angles

struct SineCosine {
  float sine;
  float cosine;
};

// Natural logarithm of a normal positive float: the polynomial of Cephes (S. Moshier,
// single/logf.c). Every fma is one that the compiler contracted in torch's build: changing any of
// them, or the order of the operations, changes bits.
float cephes_log(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  float exponent = static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 126);
  float x = std::bit_cast<float>((bits & 0x007fffffU) | 0x3f000000U);  // mantissa in [0.5, 1)
  if (x < 0.707106781186547524F) {
    exponent -= 1.0F;
    x = (x - 1.0F) + x;
  } else {
    x -= 1.0F;
  }
  const float z = x * x;
  float y = std::fma(7.0376836292e-2F, x, -1.1514610310e-1F);
  y = std::fma(y, x, 1.1676998740e-1F);
  y = std::fma(y, x, -1.2420140846e-1F);
  y = std::fma(y, x, 1.4249322787e-1F);
  y = std::fma(y, x, -1.6668057665e-1F);
  y = std::fma(y, x, 2.0000714765e-1F);
  y = std::fma(y, x, -2.4999993993e-1F);
  y = std::fma(y, x, 3.3333331174e-1F);
  y = std::fma(y * x, z, exponent * -2.12194440e-4F);
  y = std::fma(z, -0.5F, y);
  return std::fma(exponent, 0.693359375F, x + y);
}

// Sine and cosine of an angle in [0, 2 pi]: Cephes (single/sinf.c), one reduction in three parts of
// pi / 4 and both polynomials.
SineCosine cephes_sine_cosine(float angle) {
  const std::int32_t octant = (static_cast<std::int32_t>(angle * 1.27323954473516F) + 1) & ~1;
  const float multiple = static_cast<float>(octant);
  float x = std::fma(multiple, -0.78515625F, angle);
  x = std::fma(multiple, -2.4187564849853515625e-4F, x);
  x = std::fma(multiple, -3.77489497744594108e-8F, x);
  const float z = x * x;
  float even = std::fma(2.443315711809948e-5F, z, -1.388731625493765e-3F);
  even = std::fma(even, z, 4.166664568298827e-2F);
  even = std::fma(even * z, z, -0.5F * z) + 1.0F;
  float odd = std::fma(-1.9515295891e-4F, z, 8.3321608736e-3F);
  odd = std::fma(odd, z, -1.6666654611e-1F);
  odd = std::fma(odd * z, x, x);
  const bool swapped = (octant & 2) != 0;
  const float sine = swapped ? even : odd;
  const float cosine = swapped ? odd : even;
  return {(octant & 4) != 0 ? -sine : sine, ((octant - 2) & 4) == 0 ? -cosine : cosine};
}

// Box-Muller on 8 pairs of uniforms in [0, 1): data[j] gives the radius, data[j + 8] the angle.
void normal_from_uniform(float* data) {
  constexpr float kTwoPi = static_cast<float>(2.0 * std::numbers::pi);
  for (int j = 0; j < 8; ++j) {
    const float radius = std::sqrt(-2.0F * cephes_log(1.0F - data[j]));
    const auto [sine, cosine] = cephes_sine_cosine(kTwoPi * data[j + 8]);
    // torch scales by the deviation and adds the mean, which turns -0 into 0.
    data[j] = radius * cosine + 0.0F;
    data[j + 8] = radius * sine + 0.0F;
  }
}

}  // namespace

TorchGenerator::TorchGenerator(std::uint64_t seed) : engine_(static_cast<std::uint32_t>(seed)) {}

float TorchGenerator::next_uniform() { return static_cast<float>(engine_() & 0xffffffU) * 0x1p-24F; }

double TorchGenerator::next_double_uniform() {
  const std::uint64_t high = static_cast<std::uint32_t>(engine_());
  const std::uint64_t low = static_cast<std::uint32_t>(engine_());
  return static_cast<double>(((high << 32) | low) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
}

double TorchGenerator::next_normal() {
  if (cached_normal_) {
    const double value = *cached_normal_;
    cached_normal_.reset();
    return value;
  }
  const double u1 = next_double_uniform();
  const double u2 = next_double_uniform();
  const double radius = std::sqrt(-2.0 * std::log1p(-u2));
  const double theta = 2.0 * std::numbers::pi * u1;
  cached_normal_ = radius * std::sin(theta);
  return radius * std::cos(theta);
}

void TorchGenerator::fill_by_sixteen(float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = next_uniform();
  for (std::int64_t i = 0; i + kGroup <= n; i += kGroup) normal_from_uniform(out + i);
  if (n % kGroup == 0) return;
  // The tail overlaps: the last 16 numbers are drawn anew, whatever stood there.
  float* tail = out + (n - kGroup);
  for (std::int64_t i = 0; i < kGroup; ++i) tail[i] = next_uniform();
  normal_from_uniform(tail);
}

void TorchGenerator::randn(float* out, std::int64_t n) {
  require(n >= 0, "n = " + std::to_string(n) + " is negative; pass a count of elements");
  require(n == 0 || out != nullptr, "out is null; pass room for n floats");
  if (n >= kGroup) return fill_by_sixteen(out, n);
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(next_normal() + 0.0);
}

}  // namespace sora::core
