// Rows of float32 around the products of tiles: with AVX-512 where the unit is compiled for it, else plain.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/half.h"

namespace sora::kernels {
namespace {

// Sixteen floats.
#if defined(__AVX512F__)
struct Lanes {
  __m512 value;
};
inline Lanes all(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Lanes to_float(const std::int32_t* from) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(from))}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Lanes at_most(Lanes a, float most) { return {_mm512_min_ps(a.value, _mm512_set1_ps(most))}; }
// 2^a to a relative 3.1e-6: an exponent and a polynomial on [-1/2, 1/2] (least squares of the relative error).
inline Lanes exp2(Lanes a) {
  const __m512 whole = _mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(a.value, whole);
  __m512 power = _mm512_set1_ps(0.0096004F);
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.05591689F));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.24023718F));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(0.69312199F));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0F));
  return {_mm512_scalef_ps(power, whole)};
}
// 1 / a to a relative 2e-8, a neither zero nor infinite: an estimate and a step of Newton's.
inline Lanes inverse(Lanes a) {
  const __m512 estimate = _mm512_rcp14_ps(a.value);
  return {_mm512_mul_ps(estimate, _mm512_fnmadd_ps(a.value, estimate, _mm512_set1_ps(2.0F)))};
}
// The first `count` of them; past the caches if `stream` (all of them to an aligned address then).
inline void store(Lanes a, float* to, std::int64_t count, bool stream) {
  if (stream) {
    _mm512_stream_ps(to, a.value);
  } else if (count >= 16) {
    _mm512_storeu_ps(to, a.value);
  } else if (count > 0) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1U << count) - 1U), a.value);
  }
}
#else
struct Lanes {
  float value[16];
};
template <class Functor>
Lanes each(const Functor& functor) {
  Lanes lanes;
  for (int i = 0; i < 16; ++i) lanes.value[i] = functor(i);
  return lanes;
}
inline Lanes all(float value) {
  return each([&](int) { return value; });
}
inline Lanes load(const float* from) {
  return each([&](int i) { return from[i]; });
}
inline Lanes to_float(const std::int32_t* from) {
  return each([&](int i) { return static_cast<float>(from[i]); });
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.value[i] + b.value[i]; });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.value[i] - b.value[i]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.value[i] * b.value[i]; });
}
inline Lanes at_most(const Lanes& a, float most) {
  return each([&](int i) { return std::min(a.value[i], most); });
}
inline Lanes exp2(const Lanes& a) {
  return each([&](int i) { return std::exp2(a.value[i]); });
}
inline Lanes inverse(const Lanes& a) {
  return each([&](int i) { return 1.0F / a.value[i]; });
}
inline void store(const Lanes& a, float* to, std::int64_t count, bool) {
  for (std::int64_t i = 0; i < std::min<std::int64_t>(count, 16); ++i) to[i] = a.value[i];
}
#endif

// x / 2 (1 + tanh(u)) = x / (1 + e^(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) (arXiv:1606.08415, section 2).
inline Lanes gelu_tanh(const Lanes& x) {
  constexpr float kFactor = -2.0F * 0.79788456F * 1.44269504F;  // to the power of 2
  const Lanes power = exp2(at_most(x * (all(kFactor) + all(kFactor * 0.044715F) * (x * x)), 100.0F));
  return x * inverse(all(1.0F) + power);
}

// Asks for n floats that are wanted soon; nothing is read, so that they may lie beyond an array's end.
inline void prefetch(const float* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 16) __builtin_prefetch(from + i, 0, 2);
}

// to[i] = bfloat16(factor * from[i]) for i < n, zero up to `padded`.
inline void to_bfloat16(const float* from, core::BFloat16* to, std::int64_t n, std::int64_t padded, float factor) {
  std::int64_t i = 0;
#if defined(__AVX512BF16__)
  const __m512 factors = _mm512_set1_ps(factor);
  for (; i + 16 <= n; i += 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(from + i), factors));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), reinterpret_cast<const __m256i&>(rounded));
  }
#endif
  for (; i < n; ++i) core::from_float(from[i] * factor, to[i]);
  for (; i < padded; ++i) to[i] = {};
}

// The 16 pairs of neighbours in a row of 32 to a column of a tile, each to the same place of the next row.
inline void store_column(const core::BFloat16* row, core::BFloat16* column) {
#if defined(__AVX512F__)
  const __m512i rows = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
  _mm512_i32scatter_epi32(column, rows, _mm512_loadu_si512(row), 4);
#else
  for (std::int64_t pair = 0; pair < 16; ++pair) std::memcpy(column + pair * 32, row + 2 * pair, 4);
#endif
}

// to[2 i] = a[i] and to[2 i + 1] = b[i] for i < 16.
inline void interleave(const core::BFloat16* a, const core::BFloat16* b, core::BFloat16* to) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
  _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
  for (std::int64_t i = 0; i < 16; ++i) {
    to[2 * i] = a[i];
    to[2 * i + 1] = b[i];
  }
#endif
}

// The largest of `least` and n numbers, a multiple of 32.
inline float largest(const float* row, std::int64_t n, float least) {
#if defined(__AVX512F__)
  __m512 low = _mm512_set1_ps(least), high = low;  // two, as one comparison waits for the one before
  for (std::int64_t i = 0; i < n; i += 32) {
    low = _mm512_max_ps(low, _mm512_loadu_ps(row + i));
    high = _mm512_max_ps(high, _mm512_loadu_ps(row + i + 16));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(low, high));
#else
  for (std::int64_t i = 0; i < n; ++i) least = std::max(least, row[i]);
  return least;
#endif
}

struct Range {
  float low, high;
  bool numbers;  // none of them is NaN
};

// The smallest and the largest of n numbers and zero.
inline Range range_with_zero(const float* row, std::int64_t n) {
  Range range{0.0F, 0.0F, true};
  std::int64_t i = 0;
#if defined(__AVX512F__)
  __m512 low[4] = {}, high[4] = {};  // as many as hide the time that one takes
  __mmask16 none = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      const __m512 values = _mm512_loadu_ps(row + i + 16 * j);
      low[j] = _mm512_min_ps(low[j], values);
      high[j] = _mm512_max_ps(high[j], values);
      none |= _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    }
  }
  range.numbers = none == 0;
  range.low = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_min_ps(low[0], low[1]), _mm512_min_ps(low[2], low[3])));
  range.high = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(high[0], high[1]), _mm512_max_ps(high[2], high[3])));
#endif
  for (; i < n; ++i) {
    range.numbers = range.numbers && !std::isnan(row[i]);
    range.low = std::min(range.low, row[i]);
    range.high = std::max(range.high, row[i]);
  }
  return range;
}

// to[i] = bfloat16(2^(row[i] - largest)) for n numbers, a multiple of 32; returns their float32 sum.
inline float exp2_row(const float* row, core::BFloat16* to, std::int64_t n, float largest) {
#if defined(__AVX512BF16__)
  const Lanes most = all(largest);
  __m512 sums = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < n; i += 32) {
    const Lanes low = exp2(load(row + i) - most), high = exp2(load(row + i + 16) - most);
    sums = _mm512_add_ps(sums, _mm512_add_ps(low.value, high.value));
    const __m512bh both = _mm512_cvtne2ps_pbh(high.value, low.value);
    _mm512_storeu_si512(to + i, reinterpret_cast<const __m512i&>(both));
  }
  return _mm512_reduce_add_ps(sums);
#else
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float power = std::exp2(row[i] - largest);
    sum += power;
    core::from_float(power, to[i]);
  }
  return sum;
#endif
}

// to[i] = factor * from[i]; both may be the same.
inline void scale_row(const float* from, float* to, std::int64_t n, float factor) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i] * factor;
}

// Stores past the caches are not ordered with later reads of other threads.
inline void finish_stream() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// to[i] = round(from[i] * inverse) + zero, within 0 and 255, for i < n; `zero` up to `padded`.
inline void to_uint8(const float* from, std::uint8_t* to, std::int64_t n, std::int64_t padded, float inverse,
                     std::int32_t zero) {
  std::int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 factors = _mm512_set1_ps(inverse);
  const __m512i zeros = _mm512_set1_epi32(zero);
  const auto sixteen = [&](std::int64_t at) {
    const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + at), factors));
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_add_epi32(steps, zeros), _mm512_setzero_si512()));
  };
  for (; i + 64 <= n; i += 64) {
    __m512i line = _mm512_castsi128_si512(sixteen(i));
    line = _mm512_inserti32x4(line, sixteen(i + 16), 1);
    line = _mm512_inserti32x4(line, sixteen(i + 32), 2);
    _mm512_storeu_si512(to + i, _mm512_inserti32x4(line, sixteen(i + 48), 3));
  }
  for (; i + 16 <= n; i += 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), sixteen(i));
#endif
  for (; i < n; ++i) {
    const auto step = static_cast<std::int32_t>(std::nearbyint(from[i] * inverse)) + zero;
    to[i] = static_cast<std::uint8_t>(std::clamp(step, 0, 255));
  }
  for (; i < padded; ++i) to[i] = static_cast<std::uint8_t>(zero);
}

}  // namespace
}  // namespace sora::kernels
