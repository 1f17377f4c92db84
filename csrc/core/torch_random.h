// PyTorch's CPU normal numbers without PyTorch, so that a seed used with diffusers gives the same
// latents here.
#pragma once

#include <cstdint>
#include <optional>
#include <random>

namespace sora::core {

// The stream of `torch.randn(..., generator=g)` in float32, for
// `g = torch.Generator("cpu").manual_seed(seed)`.
//
// The engine is MT19937 (Matsumoto and Nishimura, ACM TOMACS 8(1), 1998). Only the low 32 bits of
// the seed count, as in torch. A negative Python seed is its two's complement: -1 is 2^64 - 1.
//
// Guarantee: bit for bit what torch's Linux x86-64 wheels return on a CPU with AVX2 or AVX-512
// (checked against torch 2.13), on every machine this compiles for. torch itself differs in the
// last bits on CPUs without AVX2. Calls for fewer than 16 numbers go through double precision
// log1p, sin and cos of the C library and round to float once; there a library that rounds
// differently from torch's would show in about one number in 10^8.
//
// Not thread-safe: one generator, one thread.
class TorchGenerator {
 public:
  explicit TorchGenerator(std::uint64_t seed);

  // Writes n standard normals to `out` and advances the state exactly as one
  // `torch.randn(n, generator=g)` does. As in torch, two calls for n and m numbers are not one call
  // for n + m. A tensor's shape does not matter, only its number of elements. n = 0 changes
  // nothing. Throws std::invalid_argument if n < 0, or if out is null and n > 0.
  void randn(float* out, std::int64_t n);

 private:
  float next_uniform();
  double next_double_uniform();
  double next_normal();
  void fill_by_sixteen(float* out, std::int64_t n);

  std::mt19937 engine_;
  // Box-Muller makes two numbers; the element-wise path keeps the second one for a later call.
  std::optional<double> cached_normal_;
};

}  // namespace sora::core
