// How functors run over memory on the CPU: float32 tiles that live in the first-level cache.
//
// Included once for each instruction set (see cpu.cpp). Everything here sits in an unnamed namespace, so
// that units built with different flags never share a definition.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/half.h"
#include "core/parallel.h"
#include "kernels/dispatch.h"

namespace sora::kernels {
namespace {

inline constexpr std::int64_t kTile = 1024;  // floats; a handful of tiles fit 32 KiB
inline constexpr std::int64_t kTilesPerBlock = 16;
inline constexpr std::int64_t kBlock = kTile * kTilesPerBlock;  // what a thread takes at once, tile after tile
static_assert(kBlock == kNormBlock, "a thread sums its block alone");
// Above this many bytes a result is pushed past the caches: it would be evicted before it is read,
// and a plain store would first fetch the line it overwrites.
inline constexpr std::int64_t kStreamBytes = std::int64_t{4} << 20;

// destination[i] = functor(sources[i]...) within a tile.
template <class Functor, class... Sources>
inline void map_tile(std::int64_t n, const Functor& functor, float* __restrict destination, const Sources*... sources) {
  for (std::int64_t i = 0; i < n; ++i) destination[i] = functor(sources[i]...);
}

template <class Stored>
inline void load_tile(std::int64_t n, const Stored* source, float* __restrict tile) {
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<Stored, core::Half>) {
    for (; i + 8 <= n; i += 8) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
      _mm256_storeu_ps(tile + i, _mm256_cvtph_ps(bits));
    }
  }
#endif
  for (; i < n; ++i) tile[i] = core::to_float(source[i]);
}

inline void load_tile(std::int64_t n, const void* source, core::DType dtype, std::int64_t offset, float* tile) {
  switch (dtype) {
    case core::DType::kFloat32:
      std::memcpy(tile, static_cast<const float*>(source) + offset, static_cast<std::size_t>(n) * 4);
      break;
    case core::DType::kFloat16:
      load_tile(n, static_cast<const core::Half*>(source) + offset, tile);
      break;
    case core::DType::kBFloat16:
      load_tile(n, static_cast<const core::BFloat16*>(source) + offset, tile);
      break;
  }
}

// Copies bytes out of a tile, past the caches if `stream` (both ends 32-byte aligned then).
inline void write_bytes(void* destination, const void* tile, std::int64_t bytes, bool stream) {
  auto* out = static_cast<std::uint8_t*>(destination);
  const auto* in = static_cast<const std::uint8_t*>(tile);
  std::int64_t i = 0;
#if defined(__AVX2__)
  if (stream && reinterpret_cast<std::uintptr_t>(out) % 32 == 0) {
    for (; i + 32 <= bytes; i += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i),
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(in + i)));
    }
  }
#else
  (void)stream;
#endif
  std::memcpy(out + i, in + i, static_cast<std::size_t>(bytes - i));
}

template <class Stored>
inline void cast_tile(std::int64_t n, const float* __restrict tile, Stored* __restrict stored) {
  std::int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<Stored, core::Half>) {
    for (; i + 8 <= n; i += 8) {
      const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(tile + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(stored + i), bits);
    }
  }
#endif
  for (; i < n; ++i) core::from_float(tile[i], stored[i]);
}

// destination[offset...] = cast(tile), in the storage type.
inline void store_tile(std::int64_t n, const float* tile, void* destination, core::DType dtype, std::int64_t offset,
                       bool stream) {
  alignas(64) std::uint8_t staged[kTile * 2];
  auto* out = static_cast<std::uint8_t*>(destination) + offset * core::size_of(dtype);
  switch (dtype) {
    case core::DType::kFloat32:
      write_bytes(out, tile, n * 4, stream);
      break;
    case core::DType::kFloat16:
      cast_tile(n, tile, reinterpret_cast<core::Half*>(staged));
      write_bytes(out, staged, n * 2, stream);
      break;
    case core::DType::kBFloat16:
      cast_tile(n, tile, reinterpret_cast<core::BFloat16*>(staged));
      write_bytes(out, staged, n * 2, stream);
      break;
  }
}

// Non-temporal stores are not ordered with later reads of other threads; a join alone does not fence them.
inline void finish_stores() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// body(offset, count) for every tile, blocks of tiles spread over threads.
template <class Body>
inline void for_each_tile(std::int64_t n, int num_threads, const Body& body) {
  core::parallel_for((n + kBlock - 1) / kBlock, num_threads, [&](std::int64_t block) {
    const std::int64_t end = std::min(n, (block + 1) * kBlock);
    for (std::int64_t offset = block * kBlock; offset < end; offset += kTile) {
      body(offset, std::min(kTile, end - offset));
    }
    finish_stores();
  });
}

}  // namespace
}  // namespace sora::kernels
