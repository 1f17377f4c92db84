// One source of standard normals for a clip: start noise first, then the noise of stochastic steps.
#pragma once

#include <cstdint>
#include <variant>

#include "core/noise.h"
#include "core/torch_random.h"

namespace sora::bindings {

// Philox: each draw is the next stream of the seed. Torch: the draws continue one mt19937, as a pipeline
// does that hands the same torch.Generator to every torch.randn.
class NoiseGenerator {
 public:
  NoiseGenerator(std::uint64_t seed, bool like_torch, std::uint64_t first_stream, int num_threads)
      : seed_(seed), num_threads_(num_threads), source_(first_stream) {
    if (like_torch) source_.emplace<core::TorchGenerator>(seed);
  }

  void fill(float* out, std::int64_t n) {
    if (auto* torch = std::get_if<core::TorchGenerator>(&source_)) {
      torch->randn(out, n);
    } else {
      core::fill_normal(out, n, seed_, std::get<std::uint64_t>(source_)++, num_threads_);
    }
  }

 private:
  std::uint64_t seed_;
  int num_threads_;
  std::variant<std::uint64_t, core::TorchGenerator> source_;  // the next stream, or the generator
};

}  // namespace sora::bindings
