// A float buffer aligned for vector loads and non-temporal stores.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace sora::core {

inline constexpr std::size_t kAlignment = 64;

struct AlignedDelete {
  void operator()(float* data) const { ::operator delete[](data, std::align_val_t{kAlignment}); }
};
using AlignedFloats = std::unique_ptr<float[], AlignedDelete>;

// Uninitialised storage of n floats, 64-byte aligned.
inline AlignedFloats make_aligned_floats(std::int64_t n) {
  return AlignedFloats(new (std::align_val_t{kAlignment}) float[static_cast<std::size_t>(n)]);
}

}  // namespace sora::core
