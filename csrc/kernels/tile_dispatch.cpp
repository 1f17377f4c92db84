// Chooses the kind of tiles, and packs weights for both.
#include <algorithm>
#include <vector>

#if defined(SORA_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/tile_kernels.h"

namespace sora::kernels {

#if defined(SORA_HAS_AMX)
namespace {

// Linux gives the 8 KiB of tile registers only to a process that asks (Documentation/arch/x86/xstate.rst).
bool ask_for_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool find_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__builtin_cpu_supports("avx512f") == 0 || __builtin_cpu_supports("avx512bw") == 0 ||
      __builtin_cpu_supports("avx512vl") == 0 || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
    return false;
  }
  constexpr unsigned kBfloat16 = 1U << 22, kTile = 1U << 24, kInt8 = 1U << 25;
  const bool tiles = (d & kBfloat16) != 0 && (d & kTile) != 0 && (d & kInt8) != 0;
  constexpr unsigned kAvx512Bfloat16 = 1U << 5;
  return tiles && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvx512Bfloat16) != 0 && ask_for_tiles();
}

}  // namespace

bool has_amx() {
  static const bool has = find_amx();
  return has;
}

const TileKernels& tile_kernels() { return has_amx() ? tile_kernels_amx() : tile_kernels_plain(); }
#else
bool has_amx() { return false; }

const TileKernels& tile_kernels() { return tile_kernels_plain(); }
#endif

PackedLinear pack_linear(const LinearWeights& given) {
  constexpr std::int64_t kColumns = 16, kRows = 16, kTogether = 4, kPair = 2 * kColumns;
  const std::int64_t in = given.in, out = given.out;
  const std::int64_t chunks = (in + kRows * kTogether - 1) / (kRows * kTogether), pairs = (out + kPair - 1) / kPair;
  PackedLinear packed{in, out, given.gelu, {}, {}, {}, {}};
  const std::int64_t size = pairs * kPair * chunks * kRows * kTogether;
  packed.tiles = core::make_aligned<std::int8_t>(size);
  std::fill_n(packed.tiles.get(), size, std::int8_t{0});
  for (core::AlignedFloats* each : {&packed.scale, &packed.bias, &packed.columns}) {
    *each = core::make_aligned_floats(pairs * kPair);
    std::fill_n(each->get(), pairs * kPair, 0.0F);
  }
  const float step = given.finer == nullptr ? 1.0F : 0.5F;
  for (std::int64_t n = 0; n < out; ++n) {
    packed.scale[n] = given.scale[given.one_scale ? 0 : n] * step;
    if (given.bias != nullptr) packed.bias[n] = given.bias[n];
  }
  std::vector<std::int32_t> columns(static_cast<std::size_t>(out));
  std::vector<std::int8_t> row(static_cast<std::size_t>(out));
  const std::int64_t finer_row = (out + 3) / 4;
  for (std::int64_t k = 0; k < in; ++k) {
    std::copy_n(given.weights + k * out, out, row.begin());
    if (given.finer != nullptr) {
      const std::uint8_t* finer = given.finer + k * finer_row;
      for (std::int64_t n = 0; n < out; ++n) {
        std::int8_t& weight = row[static_cast<std::size_t>(n)];
        weight = static_cast<std::int8_t>(2 * weight + (finer[n / 4] >> 2 * (n % 4) & 3) - 1);
      }
    }
    const std::int64_t chunk = k / (kRows * kTogether), r = k / kTogether % kRows;
    for (std::int64_t begin = 0; begin < out; begin += kColumns) {
      const std::int64_t tile = (begin / kPair * chunks + chunk) * 2 + begin / kColumns % 2;
      std::int8_t* to = packed.tiles.get() + (tile * kRows + r) * kColumns * kTogether + k % kTogether;
      for (std::int64_t n = 0; n < std::min(kColumns, out - begin); ++n) {
        const auto column = static_cast<std::size_t>(begin + n);
        to[n * kTogether] = row[column];
        columns[column] += row[column];
      }
    }
  }
  std::copy(columns.begin(), columns.end(), packed.columns.get());
  return packed;
}

PackedConvolution pack_convolution(const std::int8_t* weights, const float* scale, const float* bias, std::int64_t out,
                                   std::int64_t in, const std::int64_t (&kernel)[3]) {
  constexpr std::int64_t kRows = 16, kChannels = 32, kPair = 2 * kRows;
  const std::int64_t taps = kernel[0] * kernel[1] * kernel[2], chunks = (in + kChannels - 1) / kChannels;
  const std::int64_t padded = (out + kPair - 1) / kPair * kPair, size = padded * taps * chunks * kChannels;
  PackedConvolution packed{in, out, {kernel[0], kernel[1], kernel[2]}, {}, {}, {}};
  packed.tiles = core::make_aligned<core::BFloat16>(size);
  std::fill_n(packed.tiles.get(), size, core::BFloat16{});
  packed.scale = core::make_aligned_floats(padded);
  packed.bias = core::make_aligned_floats(padded);
  for (std::int64_t o = 0; o < out; ++o) {
    packed.scale[o] = scale[o];
    packed.bias[o] = bias == nullptr ? 0.0F : bias[o];
    for (std::int64_t c = 0; c < in; ++c) {
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        const std::int64_t tile = ((o / kPair * taps + tap) * chunks + c / kChannels) * 2 + o / kRows % 2;
        core::from_float(static_cast<float>(weights[(o * in + c) * taps + tap]),
                         packed.tiles[(tile * kRows + o % kRows) * kChannels + c % kChannels]);
      }
    }
  }
  return packed;
}

}  // namespace sora::kernels
