// Buffers aligned for vector loads, tiles and non-temporal stores.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace sora::core {

inline constexpr std::size_t kAlignment = 64;

struct AlignedDelete {
  void operator()(void* data) const { ::operator delete[](data, std::align_val_t{kAlignment}); }
};
template <class Element>
using Aligned = std::unique_ptr<Element[], AlignedDelete>;
using AlignedFloats = Aligned<float>;

// Uninitialised storage of n elements of a plain type, 64-byte aligned.
template <class Element>
Aligned<Element> make_aligned(std::int64_t n) {
  return Aligned<Element>(new (std::align_val_t{kAlignment}) Element[static_cast<std::size_t>(n)]);
}
inline AlignedFloats make_aligned_floats(std::int64_t n) { return make_aligned<float>(n); }

}  // namespace sora::core
