// Step reuse: what an estimate weighs, when a row reuses, and that the loop runs a plan as written.
#include "sampler/step_reuse.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "sampler/sampler.h"

using namespace sora::sampler;
using sora::kernels::StepNorms;

namespace {

constexpr std::int64_t kSize = 40001;  // more than two blocks of partial sums, with a tail

Row flow_row(Evaluation what, double guidance_scale = 1.0, std::int32_t engine = 0) {
  Row row{};
  row.engine = engine;
  row.evaluate = what;
  row.input_scale = 1;
  row.guidance_scale = guidance_scale;
  row.latents = 1;
  row.output = -0.02;
  return row;
}

std::vector<Row> rows_of(const std::vector<Evaluation>& plan, double guidance_scale) {
  std::vector<Row> rows;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    rows.push_back(flow_row(plan[i], guidance_scale));
    rows.back().timestep = 1000.0 - 20.0 * static_cast<double>(i);
  }
  return rows;
}

double network(double x, double timestep, bool unconditional) {
  return unconditional ? std::sin(x) * (0.4 + timestep / 2000) : std::tanh(0.7 * x + 0.3) * (0.5 + timestep / 1500);
}

// A sampler over its own buffers, with a network written out.
struct Clip {
  std::vector<float> latents = std::vector<float>(kSize);
  std::vector<float> conditional = std::vector<float>(kSize);
  std::vector<float> unconditional = std::vector<float>(kSize);
  RunStatistics statistics;
  int calls = 0;

  void run(const std::vector<Row>& rows, const StepReuse& reuse, int threads = 1, int times = 1) {
    const SamplerBuffers buffers{kSize,
                                 latents.data(),
                                 nullptr,
                                 sora::core::DType::kFloat32,
                                 conditional.data(),
                                 unconditional.data(),
                                 sora::core::DType::kFloat32};
    Sampler sampler(Program(rows), buffers, threads, reuse);
    for (int time = 0; time < times; ++time) {
      for (std::size_t i = 0; i < latents.size(); ++i) {
        latents[i] = static_cast<float>(2 * std::cos(static_cast<double>(i)));
      }
      const Denoiser denoiser = [this](const DenoiserCall& call) {
        ++calls;
        std::vector<float>& out = call.unconditional ? unconditional : conditional;
        for (std::size_t i = 0; i < out.size(); ++i) {
          out[i] = static_cast<float>(network(latents[i], call.timestep, call.unconditional));
        }
      };
      statistics = sampler.run(denoiser, nullptr, nullptr, nullptr);
    }
  }
};

StepReuse output_change(double threshold, std::int64_t rows) {
  StepReuse reuse;
  reuse.criterion = Criterion::kOutputChange;
  reuse.threshold = threshold;
  reuse.first = 3;
  reuse.last = rows - 1;
  return reuse;
}

}  // namespace

TEST(step_reuse_weights_are_a_taylor_series_in_rows) {
  CachedRows rows(2);
  rows.keep(1);
  CHECK_EQUAL(rows.at_hand(), 1);
  CHECK(rows.weights(9) == (std::array<float, 3>{1.0F, 0.0F, 0.0F}));
  for (const std::int64_t row : {2, 4, 7}) rows.keep(row);  // the first one is overwritten
  CHECK_EQUAL(rows.at_hand(), 3);
  // v at rows 2, 4, 7, and its series around 7 at row 9 written out.
  const double v[3] = {5.0, -1.0, 2.0};
  const double slope = (v[2] - v[1]) / 3;
  const double before = (v[1] - v[0]) / 2;
  const double expected = v[2] + 2 * slope + 2 * 2 / 2.0 * (slope - before) / 3;
  const auto weights = rows.weights(9);
  CHECK_NEAR(static_cast<double>(weights[0]) * v[2] + static_cast<double>(weights[1]) * v[1] +
                 static_cast<double>(weights[2]) * v[0],
             expected, 1e-5);
  // Newest first: a ring of three that has seen four.
  CHECK_EQUAL(rows.slot(0), 0);
  CHECK_EQUAL(rows.slot(1), 2);
}

TEST(step_reuse_plan_runs_as_written) {
  const std::vector<Evaluation> plan = {kEvaluate, kReuse, kConditional, kReuse, kEvaluate, kConditional, kReuse};
  for (const bool residual : {false, true}) {
    Clip clip;
    StepReuse reuse;
    reuse.residual = residual;
    clip.run(rows_of(plan, 3.0), reuse, 2);
    CHECK_EQUAL(clip.calls, 2 + 1 + 2 + 1);
    CHECK_EQUAL(clip.statistics.evaluations, 6);
    CHECK_EQUAL(clip.statistics.skipped, 2 + 1 + 2 + 1 + 2);
    CHECK(clip.statistics.done == plan);
    for (std::size_t i = 0; i < clip.latents.size(); i += 97) {
      double x = static_cast<double>(static_cast<float>(2 * std::cos(static_cast<double>(i))));
      double c = 0;
      double difference = 0;
      double anchor = 0;
      for (std::size_t row = 0; row < plan.size(); ++row) {
        const double timestep = 1000.0 - 20.0 * static_cast<double>(row);
        double conditional = c + (residual ? x - anchor : 0.0);
        if (plan[row] != kReuse) {
          c = conditional = network(x, timestep, false);
          anchor = x;
        }
        if (plan[row] == kEvaluate) difference = network(x, timestep, true) - c;
        const double u = conditional + difference;
        x += -0.02 * (u + 3.0 * (conditional - u));
      }
      CHECK_NEAR(clip.latents[i], x, 1e-5);
    }
  }
}

TEST(step_reuse_criterion_reuses_below_its_threshold_alone) {
  const std::vector<Row> rows = rows_of(std::vector<Evaluation>(20, kEvaluate), 3.0);
  Clip never, some, always;
  never.run(rows, output_change(0.0, 20));
  some.run(rows, output_change(0.02, 20));
  always.run(rows, output_change(1e9, 20));
  CHECK_EQUAL(never.calls, 40);
  CHECK_EQUAL(always.calls, 2 * 4);  // the first three rows and the last
  CHECK(some.calls > always.calls && some.calls < never.calls);
  CHECK_EQUAL(some.calls, some.statistics.evaluations);
  CHECK_EQUAL(some.statistics.evaluations + some.statistics.skipped, 40);
  Clip plain;
  plain.run(rows, {});
  CHECK(plain.latents == never.latents);  // measuring changes nothing
  StepReuse limited = output_change(1e9, 20);
  limited.most_in_a_row = 1;
  Clip halved;
  halved.run(rows, limited);
  CHECK_EQUAL(halved.calls, 2 * (3 + 8 + 1));  // of rows 3 to 18 every second, and the last
}

TEST(step_reuse_criterion_is_the_papers) {
  // The sums that decide are recomputed here from the outputs: E_t of arXiv:2507.02860 row by row.
  const std::vector<Row> rows = rows_of(std::vector<Evaluation>(24, kEvaluate), 1.0);
  const double threshold = 0.015;
  Clip clip;
  clip.run(rows, output_change(threshold, 24), 3);
  const auto& norms = clip.statistics.norms;
  CHECK_EQUAL(norms.size(), 24);
  double rate = -1, path = 0, accumulated = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i > 0) accumulated += rate * norms[i - 1].input_change / norms[i - 1].output;
    const bool reused = i >= 3 && i < 23 && accumulated < threshold;
    CHECK_EQUAL(clip.statistics.done[i], reused ? kReuse : kEvaluate);
    if (!reused) {
      if (i > 0) rate = norms[i].output_change / path;
      path = accumulated = 0;
    }
    path += norms[i].input_change;
  }
}

TEST(step_reuse_of_the_input_evaluates_its_polynomial) {
  StepReuse reuse;
  reuse.criterion = Criterion::kInputChange;
  reuse.polynomial = {0.5, 2.0, 0.0, -1.0, 3.0};
  reuse.threshold = 2.0;
  reuse.last = 9;
  ReuseController controller(reuse);
  const Row row = flow_row(kEvaluate);
  controller.start();
  CHECK_EQUAL(controller.decide(0, row), kEvaluate);  // nothing is at hand
  controller.conditional.keep(0);
  controller.measured(row, kEvaluate, StepNorms{1, 0, 1, 10.0, 4.0});
  const double z = 0.4;
  const double error = 0.5 + 2 * z - z * z * z + 3 * z * z * z * z;
  int reused = 0;
  while (controller.decide(1 + reused, row) == kReuse) {
    ++reused;
    controller.measured(row, kReuse, StepNorms{1, 0, 1, 10.0, 4.0});
  }
  CHECK_EQUAL(reused, static_cast<int>(2.0 / error));
}

TEST(step_reuse_never_crosses_a_change_of_engine) {
  std::vector<Row> rows = rows_of(std::vector<Evaluation>(12, kEvaluate), 3.0);
  for (std::size_t i = 6; i < rows.size(); ++i) rows[i].engine = 1;
  Clip clip;
  clip.run(rows, output_change(1e9, 12));
  CHECK_EQUAL(clip.statistics.done[5], kReuse);
  // The second engine's rate is known after two evaluations.
  CHECK_EQUAL(clip.statistics.done[6], kEvaluate);
  CHECK_EQUAL(clip.statistics.done[7], kEvaluate);
  CHECK_EQUAL(clip.statistics.done[8], kReuse);
  rows[6].evaluate = kReuse;
  CHECK_THROWS(Program{rows}, std::invalid_argument);
  rows[6].evaluate = kConditional;
  CHECK_THROWS(Program{rows}, std::invalid_argument);
}

TEST(step_reuse_does_not_depend_on_threads_or_on_earlier_runs) {
  for (const int order : {0, 1, 2}) {
    const std::vector<Row> rows = rows_of(std::vector<Evaluation>(20, kEvaluate), 3.0);
    StepReuse reuse = output_change(0.03, 20);
    reuse.order = order;
    reuse.residual = order == 1;
    Clip one, many;
    one.run(rows, reuse, 1);
    many.run(rows, reuse, 5, 2);
    CHECK(one.latents == many.latents);
    CHECK(one.statistics.done == many.statistics.done);
    CHECK(std::memcmp(one.statistics.norms.data(), many.statistics.norms.data(), 20 * sizeof(StepNorms)) == 0);
  }
}

TEST(step_reuse_refuses_what_it_cannot_do) {
  StepReuse reuse;
  reuse.order = 3;
  CHECK_THROWS(ReuseController{reuse}, std::invalid_argument);
  reuse = {};
  reuse.threshold = NAN;
  CHECK_THROWS(ReuseController{reuse}, std::invalid_argument);
  reuse = {};
  reuse.polynomial[2] = INFINITY;
  CHECK_THROWS(ReuseController{reuse}, std::invalid_argument);
  CHECK_THROWS(Program({flow_row(kReuse)}), std::invalid_argument);
  CHECK_THROWS(Program({flow_row(kEvaluate), flow_row(kConditional)}), std::invalid_argument);  // no guidance
  CHECK_THROWS(Program({flow_row(kEvaluate), flow_row(kReuse, 3.0)}), std::invalid_argument);   // no u at hand
  CHECK_THROWS(Program({flow_row(static_cast<Evaluation>(5))}), std::invalid_argument);
}
