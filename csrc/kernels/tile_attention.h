// Attention on tiles; see tile_kernels.h. Included once for each kind of tiles (tile_kernels.cpp).
#pragma once

#include <algorithm>
#include <limits>

#include "core/aligned.h"
#include "kernels/tile_kernels.h"
#include "kernels/tile_vectors.h"
#include "kernels/tiles.h"

namespace sora::kernels {
namespace {

inline constexpr std::int64_t kPair = 2 * kTileRows;      // rows of two tiles one below the other
inline constexpr std::int64_t kQueries = 128;             // of a task: they go through the same keys together
inline constexpr std::int64_t kKeys = 256;                // of a block: their scores for a pair stay in the caches
inline constexpr std::int64_t kPackedBytes = 16LL << 20;  // of the keys and values that are packed at a time
inline constexpr float kLog2e = 1.44269504F;
inline constexpr float kNone = -1e30F;  // the score of a key that is not there: 2^it is 0, and it minus itself is

inline std::int64_t rounded_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Keys and values of a head as right sides of products.
struct PackedHead {
  const core::BFloat16* k;  // [keys / 16][channels / 32][16 pairs of channels][16 keys][2]
  const core::BFloat16* v;  // [keys / 32][channels / 16][16 pairs of keys][16 channels][2]
};

inline constexpr std::int64_t kTileElements = kTileSize / 2;

// The keys and values [begin, begin + 32) of a head; beyond the last they are zero.
inline void pack_keys(const AttentionArguments& a, std::int64_t batch, std::int64_t head, std::int64_t begin,
                      std::int64_t channels, core::BFloat16* k, core::BFloat16* v) {
  core::BFloat16 row[2][kMostChannels];
  const std::int64_t stride = a.heads * a.channels;
  const std::int64_t chunks = channels / kTileBfloats, groups = channels / kTileColumns;
  for (std::int64_t pair = 0; pair < kTileRows; ++pair) {
    for (std::int64_t i = 0; i < 2; ++i) {
      const std::int64_t key = 2 * pair + i;
      const std::int64_t offset = (batch * a.keys + begin + key) * stride + head * a.channels;
      const std::int64_t valid = begin + key < a.keys ? a.channels : 0;
      prefetch(a.k + offset + a.channels, valid);  // of the next head; the processor foresees no step to another page
      prefetch(a.v + offset + a.channels, valid);
      to_bfloat16(a.k + offset, row[i], valid, channels, 1.0F);
      core::BFloat16* tiles = k + key / kTileRows * chunks * kTileElements + key % kTileRows * 2;
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        store_column(row[i] + chunk * kTileBfloats, tiles + chunk * kTileElements);
      }
      to_bfloat16(a.v + offset, row[i], valid, channels, 1.0F);
    }
    for (std::int64_t group = 0; group < groups; ++group) {
      interleave(row[0] + group * kTileColumns, row[1] + group * kTileColumns,
                 v + group * kTileElements + pair * 2 * kTileColumns);
    }
  }
}

// What a pair of tiles of queries carries from one block of keys to the next.
struct Pair {
  alignas(64) core::BFloat16 q[kPair * kMostChannels];
  alignas(64) float sums[kPair * kMostChannels];  // of weighted values, not yet divided
  float most[kPair], total[kPair];
};

struct Scratch {
  alignas(64) float scores[kPair * kKeys];
  alignas(64) core::BFloat16 weights[kPair * kKeys];
  Pair pairs[kQueries / kPair];
};

// scores = q k^T for a pair of queries and `keys` keys, a multiple of 32.
inline void multiply_keys(Tiles& tiles, const Pair& pair, const core::BFloat16* k, std::int64_t keys,
                          std::int64_t channels, float* scores) {
  const std::int64_t chunks = channels / kTileBfloats, row = channels * 2;
  for (std::int64_t key = 0; key < keys; key += kPair) {
    const core::BFloat16* right = k + key / kTileRows * chunks * kTileElements;
    tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      tiles.load<4>(pair.q + chunk * kTileBfloats, row);
      tiles.load<6>(right + chunk * kTileElements, kTileBytes);
      tiles.load<7>(right + (chunks + chunk) * kTileElements, kTileBytes);
      tiles.load<5>(pair.q + kTileRows * channels + chunk * kTileBfloats, row);
      tiles.add_bfloat16<0, 4, 6>();
      tiles.add_bfloat16<1, 4, 7>();
      tiles.add_bfloat16<2, 5, 6>();
      tiles.add_bfloat16<3, 5, 7>();
    }
    tiles.store<0>(scores + key, kKeys * 4);
    tiles.store<1>(scores + key + kTileColumns, kKeys * 4);
    tiles.store<2>(scores + kTileRows * kKeys + key, kKeys * 4);
    tiles.store<3>(scores + kTileRows * kKeys + key + kTileColumns, kKeys * 4);
  }
}

// sums += weights v for a pair of queries.
inline void multiply_values(Tiles& tiles, Pair& pair, const core::BFloat16* weights, const core::BFloat16* v,
                            std::int64_t keys, std::int64_t channels) {
  const std::int64_t groups = channels / kTileColumns;
  for (std::int64_t c = 0; c < channels; c += 2 * kTileColumns) {
    float* sums = pair.sums + c;
    tiles.load<0>(sums, channels * 4);
    tiles.load<1>(sums + kTileColumns, channels * 4);
    tiles.load<2>(sums + kTileRows * channels, channels * 4);
    tiles.load<3>(sums + kTileRows * channels + kTileColumns, channels * 4);
    for (std::int64_t key = 0; key < keys; key += kTileBfloats) {
      const core::BFloat16* right = v + (key / kTileBfloats * groups + c / kTileColumns) * kTileElements;
      tiles.load<4>(weights + key, kKeys * 2);
      tiles.load<6>(right, kTileBytes);
      tiles.load<7>(right + kTileElements, kTileBytes);
      tiles.load<5>(weights + kTileRows * kKeys + key, kKeys * 2);
      tiles.add_bfloat16<0, 4, 6>();
      tiles.add_bfloat16<1, 4, 7>();
      tiles.add_bfloat16<2, 5, 6>();
      tiles.add_bfloat16<3, 5, 7>();
    }
    tiles.store<0>(sums, channels * 4);
    tiles.store<1>(sums + kTileColumns, channels * 4);
    tiles.store<2>(sums + kTileRows * channels, channels * 4);
    tiles.store<3>(sums + kTileRows * channels + kTileColumns, channels * 4);
  }
}

// Scores to weights, and what was summed before to the new maximum.
inline void soften(Scratch& scratch, Pair& pair, std::int64_t keys, std::int64_t padded, std::int64_t channels) {
  for (std::int64_t r = 0; r < kPair; ++r) {
    float* scores = scratch.scores + r * kKeys;
    std::fill(scores + keys, scores + padded, kNone);
    const float most = largest(scores, padded, pair.most[r]);
    if (most > pair.most[r]) {
      const float shrink = std::exp2(pair.most[r] - most);
      pair.total[r] *= shrink;
      scale_row(pair.sums + r * channels, pair.sums + r * channels, channels, shrink);
      pair.most[r] = most;
    }
    pair.total[r] += exp2_row(scores, scratch.weights + r * kKeys, padded, most);
  }
}

// The queries [begin, begin + kQueries) of a head.
inline void attend(const AttentionArguments& a, std::int64_t batch, std::int64_t head, std::int64_t begin,
                   const PackedHead& packed, std::int64_t channels) {
  static thread_local std::unique_ptr<Scratch> scratch;
  if (!scratch) scratch = std::make_unique<Scratch>();
  const std::int64_t stride = a.heads * a.channels, end = std::min(a.queries, begin + kQueries);
  const std::int64_t pairs = (end - begin + kPair - 1) / kPair;
  const std::int64_t offset = (batch * a.queries + begin) * stride + head * a.channels;
  for (std::int64_t p = 0; p < pairs; ++p) {
    Pair& pair = scratch->pairs[p];
    for (std::int64_t r = 0; r < kPair; ++r) {
      const std::int64_t query = p * kPair + r;
      const std::int64_t valid = begin + query < end ? a.channels : 0;
      to_bfloat16(a.q + offset + query * stride, pair.q + r * channels, valid, channels, a.scale * kLog2e);
    }
    std::fill_n(pair.sums, kPair * channels, 0.0F);
    std::fill_n(pair.most, kPair, std::numeric_limits<float>::lowest());
    std::fill_n(pair.total, kPair, 0.0F);
  }
  Tiles tiles;
  for (std::int64_t key = 0; key < a.keys; key += kKeys) {
    const std::int64_t keys = std::min(kKeys, a.keys - key), padded = rounded_up(keys, kPair);
    for (std::int64_t p = 0; p < pairs; ++p) {
      Pair& pair = scratch->pairs[p];
      multiply_keys(tiles, pair, packed.k + key * channels, padded, channels, scratch->scores);
      soften(*scratch, pair, keys, padded, channels);
      multiply_values(tiles, pair, scratch->weights, packed.v + key * channels, padded, channels);
    }
  }
  for (std::int64_t query = 0; query < end - begin; ++query) {
    const Pair& pair = scratch->pairs[query / kPair];
    const std::int64_t r = query % kPair;
    scale_row(pair.sums + r * channels, a.out + offset + query * stride, a.channels, 1.0F / pair.total[r]);
  }
}

void attention(const AttentionArguments& a, const Parallel& parallel) {
  const std::int64_t channels = rounded_up(a.channels, kTileBfloats), keys = rounded_up(a.keys, kPair);
  const std::int64_t all = a.batch * a.heads, elements = keys * channels;
  const std::int64_t together = std::clamp<std::int64_t>(kPackedBytes / (elements * 4), 1, all);
  static thread_local core::Aligned<core::BFloat16> kept;  // of the thread that asks, for its next call
  static thread_local std::int64_t size = 0;
  if (size < together * elements * 2) {
    size = together * elements * 2;
    kept = core::make_aligned<core::BFloat16>(size);
  }
  core::BFloat16* const packed = kept.get();
  const auto head_of = [&](std::int64_t i) {
    return PackedHead{packed + 2 * i * elements, packed + (2 * i + 1) * elements};
  };
  const std::int64_t blocks = keys / kPair, tasks = (a.queries + kQueries - 1) / kQueries;
  for (std::int64_t first = 0; first < all; first += together) {
    const std::int64_t count = std::min(together, all - first);
    // All heads of the same keys one after the other: their channels are neighbours, each key's a page away.
    spread(parallel, blocks, count * elements, [&](std::int64_t block) {
      for (std::int64_t head = 0; head < count; ++head) {
        const std::int64_t begin = block * kPair, offset = 2 * head * elements + begin * channels;
        pack_keys(a, (first + head) / a.heads, (first + head) % a.heads, begin, channels, packed + offset,
                  packed + elements + offset);
      }
    });
    spread(parallel, count * tasks, count * a.queries * keys, [&](std::int64_t i) {
      const std::int64_t head = i / tasks;
      attend(a, (first + head) / a.heads, (first + head) % a.heads, i % tasks * kQueries, head_of(head), channels);
    });
  }
}

}  // namespace
}  // namespace sora::kernels
