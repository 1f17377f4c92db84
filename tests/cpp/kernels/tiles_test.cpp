// Attention and linears on tiles against float64, on plain tiles everywhere and on AMX where the processor has it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels/tile_kernels.h"

namespace {

using namespace sora::kernels;

std::vector<const TileKernels*> kinds() {
  std::vector<const TileKernels*> all{&tile_kernels_plain()};
#if defined(SORA_HAS_AMX)
  if (has_amx()) all.push_back(&tile_kernels_amx());
#endif
  return all;
}

// Threads that take tasks from one counter, as ONNX Runtime's do.
void on_threads(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t i = next++; i < n; i = next++) body(i);
  };
  std::thread other(work);
  work();
  other.join();
}

std::vector<float> random_floats(std::int64_t n, unsigned seed, float scale = 1.0F) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(bits);
  return values;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

std::vector<double> attention_in_float64(const AttentionArguments& a) {
  const std::int64_t stride = a.heads * a.channels;
  std::vector<double> out(static_cast<std::size_t>(a.batch * a.queries * stride)),
      scores(static_cast<std::size_t>(a.keys));
  for (std::int64_t b = 0; b < a.batch; ++b) {
    for (std::int64_t h = 0; h < a.heads; ++h) {
      for (std::int64_t i = 0; i < a.queries; ++i) {
        const float* q = a.q + (b * a.queries + i) * stride + h * a.channels;
        double total = 0, most = -1e300;
        for (std::int64_t j = 0; j < a.keys; ++j) {
          const float* k = a.k + (b * a.keys + j) * stride + h * a.channels;
          double score = 0;
          for (std::int64_t c = 0; c < a.channels; ++c) score += static_cast<double>(q[c]) * k[c];
          scores[static_cast<std::size_t>(j)] = score * a.scale;
          most = std::max(most, score * a.scale);
        }
        for (double& score : scores) total += score = std::exp(score - most);
        for (std::int64_t c = 0; c < a.channels; ++c) {
          double sum = 0;
          for (std::int64_t j = 0; j < a.keys; ++j) {
            sum += scores[static_cast<std::size_t>(j)] * a.v[(b * a.keys + j) * stride + h * a.channels + c];
          }
          out[static_cast<std::size_t>((b * a.queries + i) * stride + h * a.channels + c)] = sum / total;
        }
      }
    }
  }
  return out;
}

struct Shape {
  std::int64_t batch, queries, keys, heads, channels;
};

}  // namespace

TEST(tiles_attention_is_softmax_of_products) {
  // Whole blocks; one row; keys and channels that fill no tile; more keys than a block; more queries than a task.
  for (const Shape s : {Shape{1, 128, 256, 2, 64}, Shape{1, 1, 1, 1, 8}, Shape{2, 33, 77, 3, 24},
                        Shape{1, 140, 530, 1, 40}, Shape{1, 300, 31, 2, 128}}) {
    const std::int64_t width = s.heads * s.channels;
    const auto q = random_floats(s.batch * s.queries * width, 1, 3.0F), k = random_floats(s.batch * s.keys * width, 2),
               v = random_floats(s.batch * s.keys * width, 3);
    std::vector<float> out(q.size(), 7.0F);
    const AttentionArguments arguments{
        q.data(),  k.data(), v.data(), out.data(), s.batch,
        s.queries, s.keys,   s.heads,  s.channels, 1.0F / std::sqrt(static_cast<float>(s.channels))};
    const auto want = attention_in_float64(arguments);
    std::vector<std::vector<float>> results;
    for (const TileKernels* kernels : kinds()) {
      kernels->attention(arguments, on_threads);
      // Two factors of 8 bits of mantissa each: 2^-9 each at most, some 0.003 together.
      CHECK_NEAR(relative_error(out, want), 0.0, 0.006);
      results.push_back(out);
    }
    // One product is rounded as the other; what differs is the order of sums and the exponential.
    CHECK_NEAR(relative_error(results.back(), {results[0].begin(), results[0].end()}), 0.0, 0.002);
  }
}

TEST(tiles_attention_survives_scores_that_overflow_an_exponential) {
  const std::int64_t keys = 300, channels = 32;
  std::vector<float> q(channels, 40.0F), k(static_cast<std::size_t>(keys * channels), -40.0F),
      v = random_floats(keys * channels, 4);
  std::fill_n(k.begin() + 299 * channels, channels, 40.0F);  // the last key, of the second block, has all the weight
  std::vector<float> out(static_cast<std::size_t>(channels));
  for (const TileKernels* kernels : kinds()) {
    kernels->attention({q.data(), k.data(), v.data(), out.data(), 1, 1, keys, 1, channels, 1.0F}, on_threads);
    for (std::int64_t c = 0; c < channels; ++c) {
      const auto i = static_cast<std::size_t>(c);
      CHECK_NEAR(out[i], v[static_cast<std::size_t>(299 * channels) + i], 0.01);
    }
  }
}

TEST(tiles_linear_is_the_product_within_its_eight_bits) {
  struct Size {
    std::int64_t rows, in, out;
  };
  for (const Size s : {Size{64, 64, 32}, Size{1, 5, 3}, Size{37, 130, 75}, Size{600, 900, 300}, Size{4100, 70, 33}}) {
    const auto x = random_floats(s.rows * s.in, 5), bias = random_floats(s.out, 6);
    auto scale = random_floats(s.out, 7);
    for (float& each : scale) each = std::abs(each) * 0.01F + 0.001F;
    std::vector<std::int8_t> weights(static_cast<std::size_t>(s.in * s.out));
    std::mt19937 bits(8);
    for (auto& weight : weights) weight = static_cast<std::int8_t>(static_cast<int>(bits() % 255) - 127);
    std::vector<double> want(static_cast<std::size_t>(s.rows * s.out));
    for (std::int64_t r = 0; r < s.rows; ++r) {
      for (std::int64_t n = 0; n < s.out; ++n) {
        double sum = 0;
        for (std::int64_t i = 0; i < s.in; ++i) {
          sum += static_cast<double>(x[static_cast<std::size_t>(r * s.in + i)]) *
                 weights[static_cast<std::size_t>(i * s.out + n)];
        }
        const auto column = static_cast<std::size_t>(n);
        want[static_cast<std::size_t>(r * s.out + n)] = sum * scale[column] + bias[column];
      }
    }
    const PackedLinear packed = pack_linear({weights.data(), scale.data(), false, bias.data(), s.in, s.out});
    std::vector<float> first;
    for (const TileKernels* kernels : kinds()) {
      std::vector<float> y(want.size(), 7.0F);
      kernels->linear(packed, x.data(), y.data(), s.rows, on_threads);
      CHECK_NEAR(relative_error(y, want), 0.0, 0.012);
      if (first.empty()) first = y;
      // Sums of integers are exact; only a multiply-add in the last step may round otherwise.
      for (std::size_t i = 0; i < y.size(); ++i) CHECK_NEAR(y[i], first[i], 1e-5 * (1.0 + std::abs(first[i])));
    }
  }
}

TEST(tiles_linear_is_exact_on_rows_that_eight_bits_hold) {
  // x of 0..255 with both ends in every row has step 1: the answer is an integer product, with one scale for all.
  const std::int64_t rows = 40, in = 100, out = 50;
  std::vector<float> x(static_cast<std::size_t>(rows * in));
  std::mt19937 bits(9);
  for (float& value : x) value = static_cast<float>(bits() % 256) - 100.0F;
  for (std::int64_t r = 0; r < rows; ++r) {
    x[static_cast<std::size_t>(r * in)] = -100.0F;
    x[static_cast<std::size_t>(r * in + 1)] = 155.0F;
  }
  std::vector<std::int8_t> weights(static_cast<std::size_t>(in * out));
  for (auto& weight : weights) weight = static_cast<std::int8_t>(static_cast<int>(bits() % 255) - 127);
  const float half = 0.5F;
  const PackedLinear packed = pack_linear({weights.data(), &half, true, nullptr, in, out});
  for (const TileKernels* kernels : kinds()) {
    std::vector<float> y(static_cast<std::size_t>(rows * out));
    kernels->linear(packed, x.data(), y.data(), rows, on_threads);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t n = 0; n < out; ++n) {
        double sum = 0;
        for (std::int64_t i = 0; i < in; ++i) {
          sum += static_cast<double>(x[static_cast<std::size_t>(r * in + i)]) *
                 weights[static_cast<std::size_t>(i * out + n)];
        }
        CHECK_EQUAL(y[static_cast<std::size_t>(r * out + n)], static_cast<float>(sum * 0.5));
      }
    }
  }
}

TEST(tiles_linear_ends_in_gelu_where_it_is_told_to) {
  // One weight of 1: x itself, from far below zero, where e^(-2u) has no float32, to far above.
  const std::int8_t weight = 1;
  const float one = 1.0F;
  const PackedLinear packed = pack_linear({&weight, &one, true, nullptr, 1, 1, true});
  std::vector<float> x;
  for (float value = -40.0F; value <= 40.0F; value += 0.0625F) x.push_back(value);
  for (const TileKernels* kernels : kinds()) {
    std::vector<float> y(x.size());
    kernels->linear(packed, x.data(), y.data(), static_cast<std::int64_t>(x.size()), on_threads);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v = x[i], u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
      CHECK_NEAR(y[i], 0.5 * v * (1.0 + std::tanh(u)), 1e-5 * (1.0 + std::abs(v)));
    }
  }
}

TEST(tiles_convolution_is_the_sum_over_its_window) {
  struct Size {
    std::int64_t batch, in, out, frames, height, width, kernel[3];
  };
  // Channels that fill tiles and that do not; frames of one row, of one column; kernels of space, of time, of one tap.
  for (const Size& s :
       {Size{1, 32, 32, 3, 8, 8, {3, 3, 3}}, Size{1, 24, 12, 6, 5, 37, {3, 3, 3}}, Size{2, 5, 40, 1, 16, 16, {1, 3, 3}},
        Size{1, 96, 70, 4, 9, 7, {3, 1, 1}}, Size{2, 40, 3, 2, 1, 3, {1, 1, 1}}, Size{1, 3, 33, 2, 40, 1, {2, 5, 3}}}) {
    const auto x = random_floats(s.batch * s.in * s.frames * s.height * s.width, 10);
    const auto bias = random_floats(s.out, 11);
    auto scale = random_floats(s.out, 12);
    for (float& each : scale) each = std::abs(each) * 0.01F + 0.001F;
    const std::int64_t taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
    std::vector<std::int8_t> weights(static_cast<std::size_t>(s.out * s.in * taps));
    std::mt19937 bits(13);
    for (auto& weight : weights) weight = static_cast<std::int8_t>(static_cast<int>(bits() % 255) - 127);
    const std::int64_t frames = s.frames - s.kernel[0] + 1, area = s.height * s.width;
    std::vector<double> want;
    for (std::int64_t i = 0; i < s.batch * s.out * frames * area; ++i) {
      const std::int64_t column = i % s.width, row = i / s.width % s.height, frame = i / area % frames;
      const std::int64_t o = i / (area * frames) % s.out, b = i / (area * frames * s.out);
      double sum = 0;
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        const std::int64_t t = tap / (s.kernel[1] * s.kernel[2]), dy = tap / s.kernel[2] % s.kernel[1],
                           dx = tap % s.kernel[2];
        const std::int64_t y = row + dy - s.kernel[1] / 2, c = column + dx - s.kernel[2] / 2;
        if (y < 0 || y >= s.height || c < 0 || c >= s.width) continue;
        for (std::int64_t k = 0; k < s.in; ++k) {
          const auto from = static_cast<std::size_t>(((b * s.in + k) * s.frames + frame + t) * area + y * s.width + c);
          sum += static_cast<double>(x[from]) * weights[static_cast<std::size_t>((o * s.in + k) * taps + tap)];
        }
      }
      want.push_back(sum * scale[static_cast<std::size_t>(o)] + bias[static_cast<std::size_t>(o)]);
    }
    const PackedConvolution packed = pack_convolution(weights.data(), scale.data(), bias.data(), s.out, s.in, s.kernel);
    std::vector<float> first;
    for (const TileKernels* kernels : kinds()) {
      std::vector<float> y(want.size(), 7.0F);
      kernels->convolution(packed, {x.data(), y.data(), s.batch, s.frames, s.height, s.width}, on_threads);
      CHECK_NEAR(relative_error(y, want), 0.0, 0.003);  // weights are exact, the input is rounded to 8 bits
      if (first.empty()) first = y;
      CHECK_NEAR(relative_error(y, {first.begin(), first.end()}), 0.0, 1e-5);
    }
  }
}

TEST(tiles_linear_adds_the_eighth_bit) {
  // 7-bit weights and half steps beside them against the same 8-bit weights with half the scale.
  const std::int64_t rows = 33, in = 70, out = 37;
  const auto x = random_floats(rows * in, 14);
  std::vector<std::int8_t> whole(static_cast<std::size_t>(in * out)), both(whole.size());
  std::vector<std::uint8_t> finer(static_cast<std::size_t>(in * ((out + 3) / 4)));
  std::mt19937 bits(15);
  for (std::int64_t k = 0; k < in; ++k) {
    for (std::int64_t n = 0; n < out; ++n) {
      const int seven = static_cast<int>(bits() % 127) - 63, half = static_cast<int>(bits() % 3) - 1;
      whole[static_cast<std::size_t>(k * out + n)] = static_cast<std::int8_t>(seven);
      both[static_cast<std::size_t>(k * out + n)] = static_cast<std::int8_t>(2 * seven + half);
      auto& byte = finer[static_cast<std::size_t>(k * ((out + 3) / 4) + n / 4)];
      byte = static_cast<std::uint8_t>(byte | (half + 1) << 2 * (n % 4));
    }
  }
  const float scale = 0.02F, half_scale = 0.01F;
  const PackedLinear packed = pack_linear({whole.data(), &scale, true, nullptr, in, out, false, finer.data()});
  const PackedLinear same = pack_linear({both.data(), &half_scale, true, nullptr, in, out});
  for (const TileKernels* kernels : kinds()) {
    std::vector<float> y(static_cast<std::size_t>(rows * out)), want(y.size());
    kernels->linear(packed, x.data(), y.data(), rows, on_threads);
    kernels->linear(same, x.data(), want.data(), rows, on_threads);
    for (std::size_t i = 0; i < y.size(); ++i) CHECK_EQUAL(y[i], want[i]);
  }
}

TEST(tiles_pass_on_what_is_no_number) {
  const std::int64_t rows = 4, width = 64;
  std::vector<std::int8_t> weights(static_cast<std::size_t>(width * width), 1);
  const float one = 1.0F;
  const PackedLinear packed = pack_linear({weights.data(), &one, true, nullptr, width, width});
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const std::int64_t at : {std::int64_t{0}, std::int64_t{37}, width - 1}) {
      auto x = random_floats(rows * width, 16);
      x[static_cast<std::size_t>(2 * width + at)] = bad;
      for (const TileKernels* kernels : kinds()) {
        std::vector<float> y(x.size());
        kernels->linear(packed, x.data(), y.data(), rows, on_threads);
        for (std::size_t i = 0; i < y.size(); ++i)
          CHECK_EQUAL(std::isnan(y[i]), static_cast<std::int64_t>(i) / width == 2);
        kernels->attention({x.data(), x.data(), x.data(), y.data(), 1, rows, rows, 1, width, 1.0F}, on_threads);
        for (std::int64_t i = 0; i < width; ++i)
          CHECK_EQUAL(std::isnan(y[static_cast<std::size_t>(2 * width + i)]), true);
      }
    }
  }
}
