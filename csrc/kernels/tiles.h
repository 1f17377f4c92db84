// Products of tiles, 16 rows of 64 bytes: those of AMX, and the same in plain C++ where there is no AMX and in tests.
//
// A product takes rows of its left side as they lie in memory. Its right side is packed: row r of a tile holds, for
// each of 16 columns, 64 bits / 16 = 4 bytes of neighbouring k (two bfloat16 or four int8); see Intel's Architecture
// Instruction Set Extensions Programming Reference, chapter 3.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_TILE__)
#include <immintrin.h>
#endif

#include "core/half.h"

namespace sora::kernels {
namespace {

inline constexpr std::int64_t kTileRows = 16;
inline constexpr std::int64_t kTileBytes = 64;                     // of a row
inline constexpr std::int64_t kTileSize = kTileRows * kTileBytes;  // of a tile
inline constexpr std::int64_t kTileBfloats = kTileBytes / 2;       // k of a product of bfloat16
inline constexpr std::int64_t kTileInts = kTileBytes;              // k of a product of int8
inline constexpr std::int64_t kTileColumns = kTileBytes / 4;       // of a sum

#if defined(__AMX_TILE__)

// The processor's own registers. An object exists while a thread uses them: it says how they are cut, and gives them
// back, since a thread that leaves them full pays for them at every switch.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const cut;
    _tile_loadconfig(&cut);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // Written out: the compiler's own functions take the number of a tile as text, which a template's is not.
  template <int kTo>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTo));
  }
  template <int kTo>
  void load(const void* from, std::int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kTo) : "memory");
  }
  template <int kFrom>
  void store(void* to, std::int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kFrom) : "memory");
  }
  // float32 sums of products of bfloat16.
  template <int kSum, int kLeft, int kRight>
  void add_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
  }
  // int32 sums of products of uint8 with int8.
  template <int kSum, int kLeft, int kRight>
  void add_uint8_int8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
  }
};

#else

class Tiles {
 public:
  template <int kTo>
  void zero() {
    std::memset(tiles_[kTo], 0, kTileSize);
  }
  template <int kTo>
  void load(const void* from, std::int64_t row_bytes) {
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(tiles_[kTo] + r * kTileBytes, static_cast<const std::uint8_t*>(from) + r * row_bytes, kTileBytes);
    }
  }
  template <int kFrom>
  void store(void* to, std::int64_t row_bytes) {
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      std::memcpy(static_cast<std::uint8_t*>(to) + r * row_bytes, tiles_[kFrom] + r * kTileBytes, kTileBytes);
    }
  }
  template <int kSum, int kLeft, int kRight>
  void add_bfloat16() {
    add<kSum, kLeft, kRight, float, core::BFloat16, core::BFloat16>();
  }
  template <int kSum, int kLeft, int kRight>
  void add_uint8_int8() {
    add<kSum, kLeft, kRight, std::int32_t, std::uint8_t, std::int8_t>();
  }

 private:
  template <int kSum, int kLeft, int kRight, class Sum, class Left, class Right>
  void add() {
    constexpr std::int64_t kTogether = 4 / sizeof(Left);
    for (std::int64_t m = 0; m < kTileRows; ++m) {
      for (std::int64_t k = 0; k < kTileRows; ++k) {
        for (std::int64_t n = 0; n < kTileColumns; ++n) {
          Sum& sum = at<Sum>(kSum, m * kTileColumns + n);
          for (std::int64_t i = 0; i < kTogether; ++i) {
            sum += widened(at<Left>(kLeft, (m * kTileRows + k) * kTogether + i)) *
                   widened(at<Right>(kRight, (k * kTileColumns + n) * kTogether + i));
          }
        }
      }
    }
  }
  template <class Element>
  Element& at(int tile, std::int64_t i) {
    return reinterpret_cast<Element*>(tiles_[tile])[i];
  }
  static float widened(core::BFloat16 value) { return core::to_float(value); }
  static std::int32_t widened(std::int32_t value) { return value; }

  alignas(64) std::uint8_t tiles_[8][kTileSize];
};

#endif

}  // namespace
}  // namespace sora::kernels
