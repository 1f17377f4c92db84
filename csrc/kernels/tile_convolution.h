// A convolution on tiles; see tile_kernels.h. Included once for each kind of tiles (tile_kernels.cpp).
//
// Outputs are rows of a product, positions its columns: for one tap the right side is the input itself, shifted. The
// input is packed once, with its borders, so that a shift is an offset; no matrix of windows is made.
#pragma once

#include <algorithm>

#include "core/aligned.h"
#include "kernels/tile_kernels.h"
#include "kernels/tile_vectors.h"
#include "kernels/tiles.h"

namespace sora::kernels {
namespace {

inline constexpr std::int64_t kOutputs = 2 * kTileRows;       // of a block, two tiles one below the other
inline constexpr std::int64_t kPositions = 2 * kTileColumns;  // of a block, two tiles side by side
inline constexpr std::int64_t kTaskPositions = 4 * kPositions;
inline constexpr std::int64_t kMostKept = 32LL << 20;  // elements of packed input that a thread keeps for its next call

// The packed input: [pairs of channels][frames][rows with borders][columns with borders][2].
struct PackedInput {
  std::int64_t rows, columns;  // with borders
  std::int64_t frame;          // positions of a frame
  std::int64_t plane;          // positions of a pair of channels, with space behind for the last tile

  PackedInput(const ConvolutionArguments& a, const PackedConvolution& w)
      : rows(a.height + w.kernel[1] - 1), columns(a.width + w.kernel[2] - 1), frame(rows * columns) {
    const std::int64_t needed = a.frames * frame + kPositions;
    plane = (needed + kTileColumns - 1) / kTileColumns * kTileColumns;
    // An odd number of lines: rows of a tile are a plane apart, and would else fall on few sets of the cache.
    if (plane / kTileColumns % 2 == 0) plane += kTileColumns;
  }
};

// One frame of a pair of channels.
inline void pack_frame(const ConvolutionArguments& a, const PackedConvolution& w, const PackedInput& in,
                       std::int64_t batch, std::int64_t pair, std::int64_t frame, core::BFloat16* packed) {
  const std::int64_t area = a.height * a.width, top = (w.kernel[1] - 1) / 2, left = (w.kernel[2] - 1) / 2;
  core::BFloat16* const to = packed + (pair * in.plane + frame * in.frame) * 2;
  const std::int64_t end = frame + 1 < a.frames ? in.frame : in.plane - frame * in.frame;
  std::fill_n(to, end * 2, core::BFloat16{});
  for (std::int64_t i = 0; i < 2; ++i) {
    const std::int64_t channel = 2 * pair + i;
    if (channel >= w.in) break;
    const float* from = a.x + ((batch * w.in + channel) * a.frames + frame) * area;
    for (std::int64_t y = 0; y < a.height; ++y) {
      core::BFloat16* row = to + ((y + top) * in.columns + left) * 2 + i;
      for (std::int64_t x = 0; x < a.width; ++x) core::from_float(from[y * a.width + x], row[2 * x]);
    }
  }
}

// sums[output][position] of 32 outputs and 32 positions from `at` on, in the frames that begin with `frame`.
inline void convolve_block(Tiles& tiles, const PackedConvolution& w, const PackedInput& in,
                           const core::BFloat16* packed, std::int64_t frame, std::int64_t at,
                           const core::BFloat16* weights, float* sums) {
  const std::int64_t chunks = (w.in + kTileBfloats - 1) / kTileBfloats, row = in.plane * 4;
  tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
  for (std::int64_t t = 0; t < w.kernel[0]; ++t) {
    for (std::int64_t y = 0; y < w.kernel[1]; ++y) {
      for (std::int64_t x = 0; x < w.kernel[2]; ++x) {
        const core::BFloat16* right = packed + ((frame + t) * in.frame + at + y * in.columns + x) * 2;
        for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
          tiles.load<4>(weights, kTileBytes);
          tiles.load<6>(right, row);
          tiles.load<7>(right + 2 * kTileColumns, row);
          tiles.load<5>(weights + kTileSize / 2, kTileBytes);
          tiles.add_bfloat16<0, 4, 6>();
          tiles.add_bfloat16<1, 4, 7>();
          tiles.add_bfloat16<2, 5, 6>();
          tiles.add_bfloat16<3, 5, 7>();
          weights += kTileSize;  // two tiles of 16-bit elements
          right += kTileRows * in.plane * 2;
        }
      }
    }
  }
  tiles.store<0>(sums, kPositions * 4);
  tiles.store<1>(sums + kTileColumns, kPositions * 4);
  tiles.store<2>(sums + kTileRows * kPositions, kPositions * 4);
  tiles.store<3>(sums + kTileRows * kPositions + kTileColumns, kPositions * 4);
}

// Sums of outputs from `first` on to y = scale * sum + bias, without the positions that lie on a border.
inline void finish_convolution(const ConvolutionArguments& a, const PackedConvolution& w, const PackedInput& in,
                               const float* sums, std::int64_t batch, std::int64_t frame, std::int64_t at,
                               std::int64_t first) {
  const std::int64_t frames = a.frames - w.kernel[0] + 1, area = a.height * a.width;
  for (std::int64_t begin = at; begin < at + kPositions;) {
    const std::int64_t y = begin / in.columns, x = begin % in.columns;
    const std::int64_t end = std::min(at + kPositions, (y + 1) * in.columns);
    const std::int64_t count = y < a.height ? std::min(end - begin, a.width - x) : 0;
    for (std::int64_t o = 0; count > 0 && o < std::min(kOutputs, w.out - first); ++o) {
      float* to = a.y + ((batch * w.out + first + o) * frames + frame) * area + y * a.width + x;
      const float* from = sums + o * kPositions + begin - at;
      const float scale = w.scale[first + o], bias = w.bias[first + o];
      for (std::int64_t i = 0; i < count; ++i) to[i] = from[i] * scale + bias;
    }
    begin = end;
  }
}

void convolution(const PackedConvolution& w, const ConvolutionArguments& a, const Parallel& parallel) {
  static thread_local core::Aligned<core::BFloat16> kept;
  static thread_local std::int64_t size = 0;
  const PackedInput in(a, w);
  const std::int64_t chunks = (w.in + kTileBfloats - 1) / kTileBfloats, pairs = chunks * kTileRows;
  const std::int64_t taps = w.kernel[0] * w.kernel[1] * w.kernel[2], frames = a.frames - w.kernel[0] + 1;
  const std::int64_t blocks = (w.out + kOutputs - 1) / kOutputs;
  const std::int64_t positions = (a.height - 1) * in.columns + a.width;
  const std::int64_t parts = (positions + kTaskPositions - 1) / kTaskPositions;
  // The last tile of a part may begin before and end behind the last position: a frame's border, or the space behind.
  if (size < pairs * in.plane * 2) {
    size = pairs * in.plane * 2;
    kept = core::make_aligned<core::BFloat16>(size);
  }
  core::BFloat16* const packed = kept.get();
  for (std::int64_t batch = 0; batch < a.batch; ++batch) {
    spread(parallel, pairs * a.frames, pairs * a.frames * in.frame * 2,
           [&](std::int64_t i) { pack_frame(a, w, in, batch, i / a.frames, i % a.frames, packed); });
    spread(parallel, blocks * frames * parts, blocks * frames * positions * taps * chunks * 16, [&](std::int64_t i) {
      alignas(64) float sums[kOutputs * kPositions];
      const std::int64_t block = i / (frames * parts), frame = i / parts % frames, part = i % parts;
      const core::BFloat16* weights = w.tiles.get() + block * taps * chunks * kTileSize;
      Tiles tiles;
      const std::int64_t end = std::min(positions, (part + 1) * kTaskPositions);
      for (std::int64_t at = part * kTaskPositions; at < end; at += kPositions) {
        convolve_block(tiles, w, in, packed, frame, at, weights, sums);
        finish_convolution(a, w, in, sums, batch, frame, at, block * kOutputs);
      }
    });
  }
  if (size > kMostKept) {
    kept.reset();
    size = 0;
  }
}

}  // namespace
}  // namespace sora::kernels
