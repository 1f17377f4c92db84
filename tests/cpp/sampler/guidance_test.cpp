// Guidance by length, angle and spread against the papers' formulas in float64, over whole clips.
#include "sampler/guidance.h"

#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "sampler/sampler.h"

using namespace sora::sampler;

namespace {

constexpr std::size_t kSize = 20011;
using Values = std::vector<double>;

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double spread(const Values& a) {
  const Values ones(a.size(), 1.0);
  const double count = static_cast<double>(a.size());
  return std::sqrt(dot(a, a) / count - std::pow(dot(a, ones) / count, 2));
}

double branch(std::size_t i, std::int64_t row, bool unconditional) {
  const double phase = static_cast<double>(i) * 0.37 + static_cast<double>(row);
  return unconditional ? 0.8 * std::cos(phase) + 0.3 : std::sin(phase) + 0.4 * std::cos(phase);
}

// The guided outputs of three rows, as the papers write them.
std::vector<Values> expected(const GuidanceRule& rule, double scale, double rescale, const std::vector<int>& engines) {
  std::vector<Values> rows;
  Values running(kSize, 0.0);
  for (std::size_t row = 0; row < engines.size(); ++row) {
    Values c(kSize), u(kSize), g(kSize);
    for (std::size_t i = 0; i < kSize; ++i) {
      c[i] = branch(i, static_cast<std::int64_t>(row), false);
      u[i] = branch(i, static_cast<std::int64_t>(row), true);
    }
    if (rule.method == GuidanceMethod::kProjected) {
      if (row > 0 && engines[row] != engines[row - 1]) running.assign(kSize, 0.0);
      for (std::size_t i = 0; i < kSize; ++i) running[i] = c[i] - u[i] + rule.momentum * running[i];
      const double length = std::sqrt(dot(running, running));
      const double limit = rule.norm_threshold > 0 ? std::min(1.0, rule.norm_threshold / length) : 1.0;
      const double along = limit * dot(running, c) / dot(c, c);
      for (std::size_t i = 0; i < kSize; ++i) {
        const double parallel = along * c[i];
        g[i] = c[i] + (scale - 1) * (limit * running[i] - parallel + rule.eta * parallel);
      }
    } else {
      const double factor = rule.method == GuidanceMethod::kZeroStar ? dot(c, u) / dot(u, u) : 1.0;
      for (std::size_t i = 0; i < kSize; ++i) g[i] = factor * u[i] + scale * (c[i] - factor * u[i]);
    }
    const double factor = rescale * spread(c) / spread(g) + 1 - rescale;
    for (double& value : g) value *= factor;
    rows.push_back(g);
  }
  return rows;
}

void check_clip(const GuidanceRule& rule, double rescale, int threads) {
  const std::vector<int> engines = {0, 0, 1, 1};
  const auto want = expected(rule, 4.5, rescale, engines);
  std::vector<Row> rows(engines.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].engine = engines[i];
    rows[i].evaluate = kEvaluate;
    rows[i].input_scale = 1;
    rows[i].guidance_scale = 4.5;
    rows[i].guidance_rescale = rescale;
    rows[i].output = 1;  // the latents are this row's guided output
  }
  std::vector<float> latents(kSize), c(kSize), u(kSize);
  const SamplerBuffers buffers{
      kSize, latents.data(), nullptr, sora::core::DType::kFloat32, c.data(), u.data(), sora::core::DType::kFloat32};
  Sampler sampler(Program(rows), buffers, threads, {}, rule);
  for (int run = 0; run < 2; ++run) {  // the running difference begins anew
    sampler.run(
        [&](const DenoiserCall& call) {
          for (std::size_t i = 0; i < kSize; ++i) {
            (call.unconditional ? u : c)[i] = static_cast<float>(branch(i, call.row, call.unconditional));
          }
        },
        nullptr,
        [&](std::int64_t done) {
          const Values& row = want[static_cast<std::size_t>(done - 1)];
          for (std::size_t i = 0; i < kSize; i += 37) CHECK_NEAR(latents[i], row[i], 5e-6);
        },
        nullptr);
  }
}

}  // namespace

TEST(guidance_methods_are_the_papers) {
  const std::vector<GuidanceRule> rules = {
      {GuidanceMethod::kPlain, 0, 0, 0},          {GuidanceMethod::kZeroStar, 0, 0, 0},
      {GuidanceMethod::kProjected, 1, 0, 0},      {GuidanceMethod::kProjected, 0, 0, 0},
      {GuidanceMethod::kProjected, 0.3, -0.5, 0}, {GuidanceMethod::kProjected, 0.3, -0.5, 20.0},
  };
  for (const GuidanceRule& rule : rules) {
    for (const double rescale : {0.0, 0.7}) {
      for (const int threads : {1, 3}) check_clip(rule, rescale, threads);
    }
  }
}

TEST(guidance_refuses_what_diverges) {
  CHECK_THROWS(check({GuidanceMethod::kProjected, 0, 1.0, 0}), std::invalid_argument);
  CHECK_THROWS(check({GuidanceMethod::kProjected, NAN, 0, 0}), std::invalid_argument);
  CHECK_THROWS(check({GuidanceMethod::kProjected, 0, 0, -1.0}), std::invalid_argument);
}
