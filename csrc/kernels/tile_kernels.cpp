// The kernels of tile_kernels.h for one kind of tiles; compiled once for each, with SORA_TILES its name.
#include "kernels/tile_kernels.h"

#include "kernels/tile_attention.h"
#include "kernels/tile_convolution.h"
#include "kernels/tile_linear.h"

#define SORA_JOIN(a, b) a##b
#define SORA_NAMED(a, b) SORA_JOIN(a, b)

namespace sora::kernels {

const TileKernels& SORA_NAMED(tile_kernels_, SORA_TILES)() {
  static constexpr TileKernels table{attention, linear, convolution};
  return table;
}

}  // namespace sora::kernels
