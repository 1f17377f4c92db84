// A few neighbouring elements at once: loads and stores of 16 bytes where the storage type is float32.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"

namespace sora::kernels {

template <int kWidth>
struct alignas(4 * kWidth) Floats {
  float v[kWidth];
};

template <class Stored, int kWidth>
struct alignas(sizeof(Stored) * kWidth) Pack {
  Stored v[kWidth];
};

// Elements i to i + kWidth - 1; `i` is a multiple of kWidth and `source` aligned to as many elements.
template <int kWidth, class Stored>
SORA_HD Floats<kWidth> load(const Stored* source, std::int64_t i) {
  const auto stored = *reinterpret_cast<const Pack<Stored, kWidth>*>(source + i);
  Floats<kWidth> values;
  for (int j = 0; j < kWidth; ++j) values.v[j] = core::to_float(stored.v[j]);
  return values;
}

template <int kWidth>
SORA_HD Floats<kWidth> load(const void* source, core::DType dtype, std::int64_t i) {
  switch (dtype) {
    case core::DType::kFloat16:
      return load<kWidth>(static_cast<const core::Half*>(source), i);
    case core::DType::kBFloat16:
      return load<kWidth>(static_cast<const core::BFloat16*>(source), i);
    default:
      return load<kWidth>(static_cast<const float*>(source), i);
  }
}

template <int kWidth, class Stored>
SORA_HD void store(Stored* destination, std::int64_t i, const Floats<kWidth>& values) {
  Pack<Stored, kWidth> stored;
  for (int j = 0; j < kWidth; ++j) core::from_float(values.v[j], stored.v[j]);
  *reinterpret_cast<Pack<Stored, kWidth>*>(destination + i) = stored;
}

template <int kWidth>
SORA_HD void store(void* destination, core::DType dtype, std::int64_t i, const Floats<kWidth>& values) {
  switch (dtype) {
    case core::DType::kFloat16:
      store<kWidth>(static_cast<core::Half*>(destination), i, values);
      return;
    case core::DType::kBFloat16:
      store<kWidth>(static_cast<core::BFloat16*>(destination), i, values);
      return;
    default:
      store<kWidth>(static_cast<float*>(destination), i, values);
  }
}

}  // namespace sora::kernels
