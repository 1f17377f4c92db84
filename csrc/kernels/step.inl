// The CPU bodies of step.h; cpu.cpp includes this once for each instruction set.
#include <cmath>

#include "kernels/launch_cpu.h"
#include "kernels/pixels.h"
#include "kernels/step.h"

namespace sora::kernels {
namespace {

// Sum of functor(i) over a tile: interleaved lanes, folded by a binary tree, so that the order is the same everywhere.
template <class Functor>
inline double sum_tile(std::int64_t n, const Functor& functor) {
  constexpr std::int64_t kWidth = 16;
  double lanes[kWidth] = {};
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    for (std::int64_t lane = 0; lane < kWidth; ++lane) lanes[lane] += static_cast<double>(functor(i + lane));
  }
  for (; i < n; ++i) lanes[i % kWidth] += static_cast<double>(functor(i));
  for (std::int64_t width = kWidth / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// tile += sum_m weights[m] * cached[m]
inline void add_cached(const float* const* cached, const float* weights, std::int64_t offset, std::int64_t n,
                       float* tile) {
  for (int m = 0; m < kMaxCached && cached[m] != nullptr; ++m) {
    const float* entry = cached[m] + offset;
    for (std::int64_t i = 0; i < n; ++i) tile[i] = Accumulate{weights[m]}(tile[i], entry[i]);
  }
}

// The conditional output of one tile, evaluated or estimated.
inline void conditional_tile(const StepBuffers& b, std::int64_t offset, std::int64_t n, float* tile) {
  const ReuseBuffers& reuse = b.reuse;
  if (reuse.conditional[0] == nullptr) {
    load_tile(n, b.conditional, b.output_dtype, offset, tile);
    return;
  }
  std::fill_n(tile, n, 0.0F);
  add_cached(reuse.conditional, reuse.conditional_weights, offset, n, tile);
  if (reuse.anchor == nullptr) return;
  const float* x = b.latents + offset;
  const float* anchor = reuse.anchor + offset;
  for (std::int64_t i = 0; i < n; ++i) tile[i] += Combine{reuse.input_scale, -1.0F}(x[i], anchor[i]);
}

// The unconditional output of one tile whose conditional one is at hand.
inline void unconditional_tile(const StepBuffers& b, std::int64_t offset, std::int64_t n, const float* conditional,
                               float* tile) {
  if (b.reuse.difference[0] == nullptr) {
    load_tile(n, b.unconditional, b.output_dtype, offset, tile);
    return;
  }
  std::copy_n(conditional, n, tile);
  add_cached(b.reuse.difference, b.reuse.difference_weights, offset, n, tile);
}

// What is measured of the conditional output `c` before it is kept.
inline void measure_output(const StepBuffers& b, std::int64_t offset, std::int64_t n, const float* c, StepNorms* sums) {
  const float* x = b.latents + offset;
  const float scale = b.reuse.input_scale;
  sums->output += sum_tile(n, [&](std::int64_t i) { return Magnitude{}(c[i]); });
  sums->residual += sum_tile(n, [&](std::int64_t i) { return Distance{1.0F, scale}(c[i], x[i]); });
  if (b.reuse.previous == nullptr) return;
  const float* previous = b.reuse.previous + offset;
  sums->output_change += sum_tile(n, [&](std::int64_t i) { return Distance{1.0F, 1.0F}(c[i], previous[i]); });
}

// Keeps an evaluated output, and what the network read for it, for later rows.
inline void keep_output(const StepBuffers& b, std::int64_t offset, std::int64_t n, const float* c, float* scratch) {
  if (b.reuse.keep_conditional != nullptr) write_bytes(b.reuse.keep_conditional + offset, c, n * 4, false);
  if (b.reuse.anchor == nullptr || b.reuse.conditional[0] != nullptr) return;
  map_tile(n, Scale{b.reuse.input_scale}, scratch, b.latents + offset);
  write_bytes(b.reuse.anchor + offset, scratch, n * 4, false);
}

// output, the conditional branch, becomes the guided one; unconditional may be overwritten.
inline void guide_tile(const StepBuffers& b, const StepCoefficients& k, std::int64_t offset, std::int64_t n,
                       float* output, float* unconditional) {
  if (k.projected) {
    if (b.momentum != nullptr) {
      float* m = b.momentum + offset;
      for (std::int64_t i = 0; i < n; ++i) m[i] = Difference{k.momentum}(output[i], unconditional[i], m[i]);
      for (std::int64_t i = 0; i < n; ++i) {
        output[i] = Combine{k.conditional_factor, k.direction_factor}(output[i], m[i]);
      }
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      output[i] = Combine{k.conditional_factor, k.direction_factor}(output[i], output[i] - unconditional[i]);
    }
    return;
  }
  if (k.unconditional_factor != 1.0F) {
    for (std::int64_t i = 0; i < n; ++i) unconditional[i] = Scale{k.unconditional_factor}(unconditional[i]);
  }
  for (std::int64_t i = 0; i < n; ++i) output[i] = Guide{k.guidance_scale}(output[i], unconditional[i]);
}

// g of one tile: conditional output, guided and rescaled as the row says.
inline void guided_tile(const StepBuffers& b, const StepCoefficients& k, std::int64_t offset, std::int64_t n,
                        float* output, float* scratch, StepNorms* sums) {
  conditional_tile(b, offset, n, output);
  if (sums != nullptr) measure_output(b, offset, n, output, sums);
  keep_output(b, offset, n, output, scratch);
  if (k.guided) {
    unconditional_tile(b, offset, n, output, scratch);
    if (b.reuse.keep_difference != nullptr) {
      map_tile(n, Combine{1.0F, -1.0F}, b.reuse.keep_difference + offset, scratch, output);
    }
    guide_tile(b, k, offset, n, output, scratch);
  }
  if (k.output_factor != 1.0F) {
    for (std::int64_t i = 0; i < n; ++i) output[i] = Scale{k.output_factor}(output[i]);
  }
}

// What is measured of this row's input and the next one's.
inline void measure_input(const StepBuffers& b, float next_scale, std::int64_t offset, std::int64_t n,
                          const float* next, StepNorms* sums) {
  const float* x = b.latents + offset;
  const float scale = b.reuse.input_scale;
  sums->input += sum_tile(n, [&](std::int64_t i) { return Magnitude{}(scale * x[i]); });
  sums->input_change += sum_tile(n, [&](std::int64_t i) { return Distance{next_scale, scale}(next[i], x[i]); });
}

inline void fused_step_impl(const StepBuffers& b, const StepCoefficients& k, int num_threads) {
  const bool stores = b.store != nullptr;
  const bool stream = b.n * 4 >= kStreamBytes;
  for_each_tile(b.n, num_threads, [&](std::int64_t offset, std::int64_t n) {
    alignas(64) float output[kTile];
    alignas(64) float next[kTile];
    alignas(64) float scratch[kTile];
    float* latents = b.latents + offset;
    StepNorms* sums = b.reuse.norms == nullptr ? nullptr : b.reuse.norms + offset / kBlock;
    if (sums != nullptr && offset % kBlock == 0) *sums = {};
    if (k.evaluated) {
      guided_tile(b, k, offset, n, output, scratch, sums);
      map_tile(n, Combine{k.latents, k.output}, next, latents, output);
      if (stores) map_tile(n, Combine{k.store_latents, k.store_output}, scratch, latents, output);
    } else {
      map_tile(n, Scale{k.latents}, next, latents);
      if (stores) map_tile(n, Scale{k.store_latents}, scratch, latents);
    }
    if (stores) write_bytes(b.store + offset, scratch, n * 4, stream);
    for (int j = 0; j < kMaxHistory; ++j) {
      if (b.history[j] == nullptr) continue;
      const float* entry = b.history[j] + offset;
      for (std::int64_t i = 0; i < n; ++i) next[i] = Accumulate{k.history[j]}(next[i], entry[i]);
    }
    if (b.noise != nullptr) {
      const float* noise = b.noise + offset;
      for (std::int64_t i = 0; i < n; ++i) next[i] = Accumulate{k.noise}(next[i], noise[i]);
    }
    if (sums != nullptr) measure_input(b, k.input_scale, offset, n, next, sums);
    // In place: the line is in the cache already, so a plain store costs no extra read.
    write_bytes(latents, next, n * 4, false);
    if (b.model_input != nullptr) {
      if (k.input_scale != 1.0F) {
        for (std::int64_t i = 0; i < n; ++i) next[i] = Scale{k.input_scale}(next[i]);
      }
      store_tile(n, next, b.model_input, b.input_dtype, offset, stream);
    }
  });
}

inline void prepare_input_impl(const StepBuffers& b, float input_scale, int num_threads) {
  const bool stream = b.n * 4 >= kStreamBytes;
  for_each_tile(b.n, num_threads, [&](std::int64_t offset, std::int64_t n) {
    alignas(64) float tile[kTile];
    map_tile(n, Scale{input_scale}, tile, b.latents + offset);
    store_tile(n, tile, b.model_input, b.input_dtype, offset, stream);
  });
}

// 256 interleaved lanes, folded by a binary tree: the order of sums is part of the numerics.
struct Lanes {
  static constexpr int kLanes = 256;
  double value[kLanes] = {};
  inline double fold() {
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) value[i] += value[i + width];
    }
    return value[0];
  }
};

// The sums of one block, lane by lane; in float64, where the product of two float32 is exact.
struct MomentLanes {
  Lanes c, u, cc, uu, cu, m, mm, mc, mu;

  // Up to kLanes elements; `before` is null without a running difference.
  inline void add(std::int64_t n, const float* conditional, const float* unconditional, const float* before) {
    for (std::int64_t lane = 0; lane < n; ++lane) {
      const double x = conditional[lane];
      const double y = unconditional[lane];
      c.value[lane] += x;
      u.value[lane] += y;
      cc.value[lane] += x * x;
      uu.value[lane] += y * y;
      cu.value[lane] += x * y;
    }
    if (before == nullptr) return;
    for (std::int64_t lane = 0; lane < n; ++lane) {
      const double z = before[lane];
      m.value[lane] += z;
      mm.value[lane] += z * z;
      mc.value[lane] += z * static_cast<double>(conditional[lane]);
      mu.value[lane] += z * static_cast<double>(unconditional[lane]);
    }
  }
};

inline GuidanceMoments block_moments(const StepBuffers& b, std::int64_t begin, std::int64_t end) {
  MomentLanes lanes;
  for (std::int64_t offset = begin; offset < end; offset += kTile) {
    const std::int64_t n = std::min(kTile, end - offset);
    alignas(64) float c[kTile];
    alignas(64) float u[kTile];
    conditional_tile(b, offset, n, c);
    unconditional_tile(b, offset, n, c, u);
    for (std::int64_t row = 0; row < n; row += Lanes::kLanes) {
      const float* before = b.momentum == nullptr ? nullptr : b.momentum + offset + row;
      lanes.add(std::min<std::int64_t>(Lanes::kLanes, n - row), c + row, u + row, before);
    }
  }
  return {lanes.c.fold(),  lanes.u.fold(),  lanes.m.fold(),  lanes.cc.fold(), lanes.uu.fold(),
          lanes.cu.fold(), lanes.mm.fold(), lanes.mc.fold(), lanes.mu.fold()};
}

inline void moments_impl(const StepBuffers& b, int num_threads, GuidanceMoments* partial, std::int64_t block_size,
                         std::int64_t num_blocks) {
  core::parallel_for(num_blocks, num_threads, [&](std::int64_t block) {
    partial[block] = block_moments(b, block * block_size, std::min(b.n, (block + 1) * block_size));
  });
}

inline void frames_to_rgb8_impl(const float* frames, std::uint8_t* rgb8, std::int64_t num_frames, std::int64_t plane,
                                int num_threads) {
  const std::int64_t channel = num_frames * plane;
  // Large blocks: for a few small frames a second thread costs more than it saves.
  constexpr std::int64_t block_size = std::int64_t{1} << 16;
  core::parallel_for((channel + block_size - 1) / block_size, num_threads, [&](std::int64_t block) {
    const std::int64_t end = std::min(channel, (block + 1) * block_size);
    for (std::int64_t i = block * block_size; i < end; ++i) {
      rgb8[3 * i] = to_rgb8(frames[i]);
      rgb8[3 * i + 1] = to_rgb8(frames[channel + i]);
      rgb8[3 * i + 2] = to_rgb8(frames[2 * channel + i]);
    }
  });
}

}  // namespace
}  // namespace sora::kernels
