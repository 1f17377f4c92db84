// What models in int8 spend their time with on a CPU, on tiles: attention, linears and convolutions.
//
// All read and write float32 and go through the numbers once: nothing as large as the scores of an attention, the int32
// sums of a linear or the windows of a convolution is ever in memory.
#pragma once

#include <cstdint>
#include <functional>

#include "core/aligned.h"
#include "core/half.h"

namespace sora::kernels {

// Calls body(i) for every i in [0, n), on as many threads as the caller has, and returns when all have ended.
using Parallel = std::function<void(std::int64_t n, const std::function<void(std::int64_t)>& body)>;

inline constexpr std::int64_t kMostChannels = 512;  // of a head

// Runs on threads what is worth waking them for: `work` is in numbers read, scores, or 64 multiply-adds.
inline void spread(const Parallel& parallel, std::int64_t n, std::int64_t work,
                   const std::function<void(std::int64_t)>& body) {
  constexpr std::int64_t kWorthThreads = 1 << 15;  // wan-pocket's networks gain by no less and no more
  if (work >= kWorthThreads) return parallel(n, body);
  for (std::int64_t i = 0; i < n; ++i) body(i);
}

// softmax(scale * q k^T) v for every batch and head. q: [batch, queries, heads * channels]; k and v: [batch, keys,
// heads * channels]; out: as q. Products are of bfloat16, sums and the softmax float32. (Blocks of keys with a running
// maximum: arXiv:2307.08691.)
struct AttentionArguments {
  const float* q;
  const float* k;
  const float* v;
  float* out;
  std::int64_t batch, queries, keys, heads, channels;
  float scale;
};

// Weights of a linear as its products read them, made once.
struct PackedLinear {
  std::int64_t in, out;
  bool gelu;                         // of the result, as tanh approximates it
  core::Aligned<std::int8_t> tiles;  // [out / 32][in / 64][2][64 / 4][16][4], padded with zeros
  core::AlignedFloats scale, bias;   // [out], padded to 32
  core::AlignedFloats columns;       // sum of each column's weights
};

// weights: [in, out]; scale: of each column, or one (`one_scale`); bias: [out] or null. finer: null, or what an eighth
// bit adds to weights of 7 in half steps, -1, 0 or 1: [in, ceil(out / 4)], four to a byte as value + 1, the first
// lowest.
struct LinearWeights {
  const std::int8_t* weights;
  const float* scale;
  bool one_scale;
  const float* bias;
  std::int64_t in, out;
  bool gelu = false;
  const std::uint8_t* finer = nullptr;
};
PackedLinear pack_linear(const LinearWeights& given);

// Weights of a convolution with a stride of 1 whose rows and columns have borders of zeros, as many as keep them.
struct PackedConvolution {
  std::int64_t in, out;
  std::int64_t kernel[3];               // frames, rows, columns; the last two odd
  core::Aligned<core::BFloat16> tiles;  // [out / 32][frames][rows][columns][in / 32][2][16][32], padded with zeros
  core::AlignedFloats scale, bias;      // [out], padded to 32
};

// weights: [out, in, frames, rows, columns], which bfloat16 holds exactly; scale: of each output; bias: [out] or null.
PackedConvolution pack_convolution(const std::int8_t* weights, const float* scale, const float* bias, std::int64_t out,
                                   std::int64_t in, const std::int64_t (&kernel)[3]);

// x: [batch, in, frames, height, width]; y: [batch, out, frames - kernel + 1, height, width].
struct ConvolutionArguments {
  const float* x;
  float* y;
  std::int64_t batch, frames, height, width;
};

struct TileKernels {
  void (*attention)(const AttentionArguments&, const Parallel&);
  // y = x W + bias, or GELU of it; x: [rows, in], y: [rows, out]. Each row of x is quantised to 8 bits by its own
  // range.
  void (*linear)(const PackedLinear&, const float* x, float* y, std::int64_t rows, const Parallel&);
  // y = scale * (weights * x) + bias, products of bfloat16 and float32 sums.
  void (*convolution)(const PackedConvolution&, const ConvolutionArguments&, const Parallel&);
};

const TileKernels& tile_kernels_plain();
#if defined(SORA_HAS_AMX)
const TileKernels& tile_kernels_amx();
#endif

// Whether the processor multiplies tiles and the system lets this process do so, which it is asked.
bool has_amx();

// AMX's where there is AMX.
const TileKernels& tile_kernels();

}  // namespace sora::kernels
