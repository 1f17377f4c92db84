// Gaussian noise on the host: a pure function of (seed, stream, index).
#pragma once

#include <cstdint>

namespace sora::core {

// Writes n samples of N(0, 1) to `out`. Sample i depends on (seed, stream, i) only: neither on n
// nor on num_threads. Different streams of one seed, and different seeds, are independent.
//
// Layout, fixed for good: with key = seed and counter = (k, stream), each as two 32-bit words with
// the least significant first, one Philox 4x32-10 block (core/philox.h) gives the words w0..w3 and
// the samples 4k..4k+3. With u = (w + 0.5) / 2^32, which lies inside (0, 1),
//     sample 4k   = sqrt(-2 ln u0) cos(2 pi u1)      sample 4k+1 = sqrt(-2 ln u0) sin(2 pi u1)
//     sample 4k+2 = sqrt(-2 ln u2) cos(2 pi u3)      sample 4k+3 = sqrt(-2 ln u2) sin(2 pi u3)
// (Box and Muller, 1958). No sample exceeds 6.77 in magnitude.
//
// Computed in double and rounded to float once, so two C libraries whose double functions differ in
// their last bits give the same floats but for about one sample in 10^8, off by one last bit.
//
// Runs on at most num_threads threads; values below 1 mean 1. Throws std::invalid_argument if
// n < 0, or if out is null and n > 0.
void fill_normal(float* out, std::int64_t n, std::uint64_t seed, std::uint64_t stream, int num_threads);

}  // namespace sora::core
