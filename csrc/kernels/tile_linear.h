// A linear in int8 on tiles; see tile_kernels.h. Included once for each kind of tiles (tile_kernels.cpp).
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "core/aligned.h"
#include "kernels/tile_kernels.h"
#include "kernels/tile_vectors.h"
#include "kernels/tiles.h"

namespace sora::kernels {
namespace {

inline constexpr std::int64_t kPairRows = 2 * kTileRows;         // rows that a product of tiles takes, two by two
inline constexpr std::int64_t kPanelColumns = 2 * kTileColumns;  // and columns
inline constexpr std::int64_t kRowsAtOnce = 4096;   // quantised at a time, so that memory does not grow with rows
inline constexpr std::int64_t kBlockRows = 320;     // of a task at most: they and their sums stay in the second cache
inline constexpr std::int64_t kBlockColumns = 512;  // of a task at most
inline constexpr std::int64_t kStreamedBytes = 4LL << 20;
inline constexpr std::int64_t kChunks = 8;  // of k: as much of a panel of weights as stays in the first cache

// How a row of x was quantised: x = step * (q - zero).
struct RowScale {
  float step;
  std::int32_t zero;
};

// A row of x into the rows of tiles: 64 of k in each. One with NaN or infinity has a step of NaN, and so all its
// results.
inline RowScale quantise_row(const float* x, std::uint8_t* to, std::int64_t in) {
  const auto [low, high, numbers] = range_with_zero(x, in);
  if (!numbers || !std::isfinite(high - low)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float step = high > low ? (high - low) / 255.0F : 1.0F;
  const auto zero = static_cast<std::int32_t>(std::nearbyint(-low / step));
  for (std::int64_t k = 0; k < in; k += kTileInts, to += kTileSize) {
    to_uint8(x + k, to, std::min(kTileInts, in - k), kTileInts, 1.0F / step, zero);
  }
  return {step, zero};
}

// Sums of 32 rows and 32 columns to y = step * scale * (sums - zero * columns) + bias, or GELU of it; `num_rows` and
// `num_columns` of them are stored, past the caches if `stream`.
inline void finish_block(const std::int32_t* sums, const PackedLinear& w, std::int64_t column, const RowScale* rows,
                         std::int64_t num_rows, std::int64_t num_columns, float* y, bool stream) {
  const Lanes scale[2] = {load(&w.scale[column]), load(&w.scale[column + kTileColumns])};
  const Lanes bias[2] = {load(&w.bias[column]), load(&w.bias[column + kTileColumns])};
  const Lanes columns[2] = {load(&w.columns[column]), load(&w.columns[column + kTileColumns])};
  for (std::int64_t r = 0; r < num_rows; ++r) {
    const std::int32_t* row = sums + r / kTileRows * 2 * kTileRows * kTileColumns + r % kTileRows * kTileColumns;
    const Lanes zero = all(static_cast<float>(rows[r].zero)), step = all(rows[r].step);
    for (std::int64_t i = 0; i < 2; ++i) {
      const Lanes sum = to_float(row + i * kTileRows * kTileColumns) - zero * columns[i];
      const std::int64_t count = num_columns - i * kTileColumns;
      const Lanes value = sum * (step * scale[i]) + bias[i];
      store(w.gelu ? gelu_tanh(value) : value, y + r * w.out + i * kTileColumns, count, stream);
    }
  }
}

// Adds `chunks` of k to the sums of a pair of rows and a panel: four tiles, begun anew if `first`.
inline void multiply_block(Tiles& tiles, const std::uint8_t* q, std::int64_t below, const std::int8_t* weights,
                           std::int64_t chunks, bool first, std::int32_t* sums) {
  constexpr std::int64_t kSums = kTileSize / 4;
  if (first) {
    tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
  } else {
    tiles.load<0>(sums, kTileBytes);
    tiles.load<1>(sums + kSums, kTileBytes);
    tiles.load<2>(sums + 2 * kSums, kTileBytes);
    tiles.load<3>(sums + 3 * kSums, kTileBytes);
  }
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    tiles.load<4>(q + chunk * kTileSize, kTileBytes);
    tiles.load<6>(weights + 2 * chunk * kTileSize, kTileBytes);
    tiles.load<7>(weights + (2 * chunk + 1) * kTileSize, kTileBytes);
    tiles.load<5>(q + below + chunk * kTileSize, kTileBytes);
    tiles.add_uint8_int8<0, 4, 6>();
    tiles.add_uint8_int8<1, 4, 7>();
    tiles.add_uint8_int8<2, 5, 6>();
    tiles.add_uint8_int8<3, 5, 7>();
  }
  tiles.store<0>(sums, kTileBytes);
  tiles.store<1>(sums + kSums, kTileBytes);
  tiles.store<2>(sums + 2 * kSums, kTileBytes);
  tiles.store<3>(sums + 3 * kSums, kTileBytes);
}

// Quantised rows, of the thread that asks, kept for its next call.
struct QuantisedRows {
  std::vector<RowScale> scales;
  core::Aligned<std::uint8_t> bytes;
  std::int64_t size = 0;

  std::uint8_t* reserve(std::int64_t rows, std::int64_t padded) {
    scales.resize(static_cast<std::size_t>(rows));
    if (size < rows * padded) {
      bytes = core::make_aligned<std::uint8_t>(rows * padded);
      size = rows * padded;
    }
    return bytes.get();
  }
};

// Rows [begin, end) by columns [left, right) of y, multiples of 32 but for the ends; q and rows are of row `begin`.
inline void multiply_task(const PackedLinear& w, const std::uint8_t* q, const RowScale* rows, std::int64_t begin,
                          std::int64_t end, std::int64_t left, std::int64_t right, std::int64_t all_chunks, float* y,
                          bool stream) {
  static thread_local core::Aligned<std::int32_t> kept;
  if (!kept) kept = core::make_aligned<std::int32_t>(kBlockRows * kBlockColumns);
  constexpr std::int64_t kBlockSums = kPairRows * kPanelColumns;
  const std::int64_t below = all_chunks * kTileSize, pairs = (end - begin + kPairRows - 1) / kPairRows;
  Tiles tiles;
  for (std::int64_t chunk = 0; chunk < all_chunks; chunk += kChunks) {
    const std::int64_t chunks = std::min(kChunks, all_chunks - chunk);
    for (std::int64_t column = left; column < right; column += kPanelColumns) {
      const std::int64_t panel = (column - left) / kPanelColumns;
      const std::int8_t* weights = w.tiles.get() + (column / kPanelColumns * all_chunks + chunk) * 2 * kTileSize;
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        std::int32_t* const sums = kept.get() + (panel * pairs + pair) * kBlockSums;
        multiply_block(tiles, q + 2 * pair * below + chunk * kTileSize, below, weights, chunks, chunk == 0, sums);
        if (chunk + chunks < all_chunks) continue;
        const std::int64_t first = pair * kPairRows;
        finish_block(sums, w, column, rows + first, std::min(kPairRows, end - begin - first), right - column,
                     y + (begin + first) * w.out + column, stream);
      }
    }
  }
  if (stream) finish_stream();
}

void linear(const PackedLinear& w, const float* x, float* y, std::int64_t rows, const Parallel& parallel) {
  static thread_local QuantisedRows kept;
  const std::int64_t chunks = (w.in + kTileInts - 1) / kTileInts, padded = chunks * kTileInts;
  const std::int64_t columns = kBlockColumns, column_blocks = (w.out + columns - 1) / columns;
  // Results that no cache holds; a plain store would first fetch the line that it overwrites. Whole lines alone are.
  const bool stream =
      rows * w.out * 4 >= kStreamedBytes && w.out % kTileColumns == 0 && reinterpret_cast<std::uintptr_t>(y) % 64 == 0;
  for (std::int64_t first = 0; first < rows; first += kRowsAtOnce) {
    const std::int64_t count = std::min(kRowsAtOnce, rows - first), pairs = (count + kPairRows - 1) / kPairRows;
    std::uint8_t* const q = kept.reserve(pairs * kPairRows, padded);
    RowScale* const scales = kept.scales.data();
    spread(parallel, pairs, count * w.in, [&](std::int64_t pair) {
      for (std::int64_t r = pair * kPairRows; r < std::min(count, (pair + 1) * kPairRows); ++r) {
        std::uint8_t* const to = q + r / kTileRows * kTileRows * padded + r % kTileRows * kTileInts;
        scales[r] = quantise_row(x + (first + r) * w.in, to, w.in);
      }
    });
    const std::int64_t row_blocks = (pairs * kPairRows + kBlockRows - 1) / kBlockRows;
    const std::int64_t block = (pairs + row_blocks - 1) / row_blocks * kPairRows;
    spread(parallel, row_blocks * column_blocks, count * w.in * w.out / 64, [&](std::int64_t task) {
      const std::int64_t begin = task / column_blocks * block, end = std::min(count, begin + block);
      const std::int64_t left = task % column_blocks * columns, right = std::min(w.out, left + columns);
      if (begin < end) {
        multiply_task(w, q + begin * padded, scales + begin, begin, end, left, right, chunks, y + first * w.out,
                      stream);
      }
    });
  }
}

}  // namespace
}  // namespace sora::kernels
