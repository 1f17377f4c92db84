// The loop on the exact denoiser of a Gaussian: closed form, history, noise, cancellation, threads.
#include "sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "core/error.h"

using namespace sora::sampler;

namespace {

constexpr double kSpread = 0.5;  // data ~ N(0, kSpread^2)
constexpr std::int64_t kSize = 3001;

// Velocity of the probability flow for that data under x = (1 - sigma) x0 + sigma noise.
double velocity(double x, double sigma) {
  const double variance = (1 - sigma) * (1 - sigma) * kSpread * kSpread + sigma * sigma;
  return x * (sigma - (1 - sigma) * kSpread * kSpread) / variance;
}

Row row_at(double sigma) {
  Row row{};
  row.evaluate = 1;
  row.timestep = sigma * 1000;
  row.input_scale = 1;
  row.guidance_scale = 1;
  row.latents = 1;
  return row;
}

std::vector<Row> euler(int steps) {
  std::vector<Row> rows;
  for (int i = 0; i < steps; ++i) {
    const double sigma = 1.0 - static_cast<double>(i) / steps;
    Row row = row_at(sigma);
    row.output = -1.0 / steps;
    rows.push_back(row);
  }
  return rows;
}

// Adams-Bashforth 2 in the table: the previous velocity is the history.
std::vector<Row> adams_bashforth(int steps) {
  std::vector<Row> rows = euler(steps);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].store_output = 1.0;
    if (i == 0) continue;
    rows[i].output = -1.5 / steps;
    rows[i].history[0] = 0.5 / steps;
  }
  return rows;
}

struct Clip {
  std::vector<float> latents = std::vector<float>(kSize);
  std::vector<float> conditional = std::vector<float>(kSize);
  std::vector<float> unconditional = std::vector<float>(kSize);

  Clip() {
    for (std::size_t i = 0; i < latents.size(); ++i) latents[i] = static_cast<float>(std::cos(static_cast<double>(i)));
  }
  SamplerBuffers buffers() {
    return {kSize,
            latents.data(),
            nullptr,
            sora::core::DType::kFloat32,
            conditional.data(),
            unconditional.data(),
            sora::core::DType::kFloat32};
  }
  Denoiser exact() {
    return [this](const DenoiserCall& call) {
      std::vector<float>& out = call.unconditional ? unconditional : conditional;
      for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<float>(velocity(latents[i], call.timestep / 1000));
      }
    };
  }
  RunStatistics run(std::vector<Row> rows, int threads = 1) {
    Sampler sampler(Program(std::move(rows)), buffers(), threads);
    return sampler.run(exact(), nullptr, nullptr, nullptr);
  }
};

double worst_error(const Clip& clip) {
  double worst = 0;
  for (std::size_t i = 0; i < clip.latents.size(); ++i) {
    const double expected = kSpread * static_cast<double>(static_cast<float>(std::cos(static_cast<double>(i))));
    worst = std::max(worst, std::abs(static_cast<double>(clip.latents[i]) - expected));
  }
  return worst;
}

}  // namespace

TEST(sampler_converges_with_the_order_of_its_table) {
  Clip euler_coarse, euler_fine, multistep_coarse, multistep_fine;
  euler_coarse.run(euler(32));
  euler_fine.run(euler(64));
  multistep_coarse.run(adams_bashforth(32));
  multistep_fine.run(adams_bashforth(64));
  CHECK_NEAR(std::log2(worst_error(euler_coarse) / worst_error(euler_fine)), 1.0, 0.1);
  CHECK_NEAR(std::log2(worst_error(multistep_coarse) / worst_error(multistep_fine)), 2.0, 0.2);
}

TEST(sampler_reads_the_history_ring_in_order) {
  // The denoiser returns the row's number; each row then adds history entries with distinct weights.
  std::vector<Row> rows;
  for (int i = 0; i < 9; ++i) {
    Row row = row_at(0.5);
    row.latents = 0;
    row.store_output = 1;
    for (int j = 0; j < 4 && j < i; ++j) row.history[j] = std::pow(10.0, j);
    rows.push_back(row);
  }
  Clip clip;
  Sampler sampler(Program(rows), clip.buffers(), 2);
  sampler.run(
      [&](const DenoiserCall& call) {
        for (float& value : clip.conditional) value = static_cast<float>(call.row);
      },
      nullptr, nullptr, nullptr);
  // Row 8 reads entries 7, 6, 5, 4.
  for (const float value : clip.latents) CHECK_NEAR(value, 7 + 60 + 500 + 4000, 0);
}

TEST(sampler_guides_and_counts_evaluations) {
  std::vector<Row> rows = euler(6);
  for (std::size_t i = 0; i < 4; ++i) rows[i].guidance_scale = 3.0;
  rows[5].evaluate = 0;
  rows[5].output = 0;
  Clip guided, plain;
  const RunStatistics statistics = guided.run(rows);
  for (Row& row : rows) row.guidance_scale = 1.0;
  plain.run(rows);
  CHECK_EQUAL(statistics.evaluations, 4 * 2 + 1);
  CHECK_EQUAL(statistics.skipped, 1);
  CHECK_EQUAL(statistics.row_seconds.size(), 6);
  // Both branches return the same, so guidance changes nothing.
  CHECK(guided.latents == plain.latents);
}

TEST(sampler_rescales_to_the_conditional_spread) {
  Row row = row_at(0.5);
  row.guidance_scale = 2.0;
  row.guidance_rescale = 1.0;
  row.latents = 0;
  row.output = 1;
  Clip clip;
  Sampler sampler(Program({row}), clip.buffers(), 2);
  sampler.run(
      [&](const DenoiserCall& call) {
        // c = w, u = -w: guided is 3w and must come back to the spread of w.
        for (std::size_t i = 0; i < clip.conditional.size(); ++i) {
          const float wave = static_cast<float>(std::sin(static_cast<double>(i)));
          (call.unconditional ? clip.unconditional : clip.conditional)[i] = call.unconditional ? -wave : wave;
        }
      },
      nullptr, nullptr, nullptr);
  for (std::size_t i = 0; i < clip.latents.size(); ++i) {
    CHECK_NEAR(clip.latents[i], std::sin(static_cast<double>(i)), 1e-6);
  }
}

TEST(sampler_adds_noise_where_the_table_says) {
  std::vector<Row> rows = euler(3);
  rows[1].noise = 0.5;
  rows[1].latents = 0;
  rows[1].output = 0;
  rows[2].output = 0;
  int draws = 0;
  Clip clip;
  Sampler sampler(Program(rows), clip.buffers(), 1);
  sampler.run(
      clip.exact(),
      [&](float* out, std::int64_t n) {
        ++draws;
        for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(i);
      },
      nullptr, nullptr);
  CHECK_EQUAL(draws, 1);
  for (std::size_t i = 0; i < clip.latents.size(); ++i) CHECK_NEAR(clip.latents[i], 0.5 * static_cast<double>(i), 0);
}

TEST(sampler_stops_between_rows_when_cancelled) {
  Clip clip;
  std::atomic<bool> cancelled{false};
  std::int64_t done = 0;
  Sampler sampler(Program(euler(10)), clip.buffers(), 1);
  const OnStep on_step = [&](std::int64_t rows) {
    done = rows;
    if (rows == 4) cancelled = true;
  };
  CHECK_THROWS(sampler.run(clip.exact(), nullptr, on_step, &cancelled), sora::core::Cancelled);
  CHECK_EQUAL(done, 4);
}

TEST(sampler_passes_the_denoisers_exception_through) {
  Clip clip;
  Sampler sampler(Program(euler(2)), clip.buffers(), 1);
  CHECK_THROWS(sampler.run([](const DenoiserCall&) { throw std::out_of_range("engine"); }, nullptr, nullptr, nullptr),
               std::out_of_range);
}

TEST(sampler_runs_again_from_fresh_latents) {
  Clip first, second;
  Sampler sampler(Program(adams_bashforth(8)), second.buffers(), 1);
  sampler.run(second.exact(), nullptr, nullptr, nullptr);
  std::ranges::copy(Clip().latents, second.latents.begin());  // the sampler points into this memory
  sampler.run(second.exact(), nullptr, nullptr, nullptr);
  first.run(adams_bashforth(8));
  CHECK(first.latents == second.latents);
}

TEST(sampler_does_not_depend_on_threads) {
  Clip one, many;
  one.run(adams_bashforth(12), 1);
  many.run(adams_bashforth(12), 5);
  CHECK(one.latents == many.latents);
}

TEST(sampler_refuses_buffers_that_do_not_suffice) {
  Clip clip;
  SamplerBuffers buffers = clip.buffers();
  buffers.unconditional = nullptr;
  std::vector<Row> rows = euler(2);
  rows[1].guidance_scale = 5;
  CHECK_THROWS(Sampler(Program(rows), buffers, 1), std::invalid_argument);
  rows[1].guidance_scale = 1;
  rows[1].input_scale = 0.5;
  CHECK_THROWS(Sampler(Program(rows), clip.buffers(), 1), std::invalid_argument);
  CHECK_THROWS(Sampler(Program(euler(1)), clip.buffers(), 0), std::invalid_argument);
}
