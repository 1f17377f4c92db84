// The loop itself. Nothing here allocates once the sampler stands.
#include "sampler/sampler.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace sora::sampler {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

Sampler::Sampler(Program program, const SamplerBuffers& buffers, int num_threads, const StepReuse& reuse,
                 const GuidanceRule& guidance)
    : Sampler(
          std::move(program), buffers,
          [num_threads](const SamplerMemory& memory, Table table) {
            core::require(num_threads >= 1, "num_threads must be 1 or more");
            return std::make_unique<HostDevice>(memory, std::move(table), num_threads);
          },
          reuse, guidance) {}

Sampler::Sampler(Program program, const SamplerBuffers& buffers, const MakeDevice& make, const StepReuse& reuse,
                 const GuidanceRule& guidance)
    : program_(std::move(program)), buffers_(buffers), guidance_(guidance), reuse_(reuse) {
  check(guidance_);
  check_buffers();
  const SamplerMemory memory = memory_of(program_, buffers_.n, reuse, guidance_);
  device_ = make(memory, table());
  reserve(memory);
}

void Sampler::check_buffers() const {
  const auto& rows = program_.rows();
  const bool guided = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.guided(); });
  core::require(buffers_.n > 0 && buffers_.latents != nullptr, "latents are empty; give at least one element");
  core::require(buffers_.conditional != nullptr, "the denoiser's output buffer is missing; bind `conditional`");
  core::require(!guided || buffers_.unconditional != nullptr,
                "the program is guided and the unconditional output buffer is missing; bind `unconditional`");
  core::require(buffers_.model_input != nullptr || !program_.scales_input(),
                "the program scales the denoiser's input; bind `model_input` instead of sharing the latents");
}

void Sampler::reserve(const SamplerMemory& memory) {
  const auto take = [this](std::vector<float*>& buffers, int count) {
    for (int i = 0; i < count; ++i) buffers.push_back(device_->take());
  };
  take(history_, memory.history);
  take(conditional_, memory.conditional);
  take(difference_, memory.difference);
  if (memory.anchor > 0) anchor_ = device_->take();
  if (memory.momentum > 0) momentum_ = device_->take();
  if (memory.noise > 0) noise_ = device_->take();
}

Table Sampler::table() const {
  Table table;
  for (std::size_t i = 0; i < program_.rows().size(); ++i) {
    const Row& row = program_.rows()[i];
    kernels::StepCoefficients k{};
    k.evaluated = row.has_output();
    k.guided = row.guided();
    k.guidance_scale = static_cast<float>(row.guidance_scale);
    k.output_factor = k.unconditional_factor = 1.0F;
    k.latents = static_cast<float>(row.latents);
    k.output = static_cast<float>(row.output);
    for (std::size_t j = 0; j < kernels::kMaxHistory; ++j) k.history[j] = static_cast<float>(row.history[j]);
    k.noise = static_cast<float>(row.noise);
    k.store_latents = static_cast<float>(row.store_latents);
    k.store_output = static_cast<float>(row.store_output);
    k.input_scale = next_input_scale(static_cast<std::int64_t>(i));
    table.rows.push_back(k);
    table.guidance.push_back({guidance_, row.guidance_scale, row.guidance_rescale});
  }
  return table;
}

kernels::StepBuffers Sampler::step_buffers() const {
  kernels::StepBuffers b{};
  b.n = buffers_.n;
  b.latents = buffers_.latents;
  b.conditional = buffers_.conditional;
  b.unconditional = buffers_.unconditional;
  b.output_dtype = buffers_.output_dtype;
  b.model_input = buffers_.model_input;
  b.input_dtype = buffers_.input_dtype;
  return b;
}

float Sampler::next_input_scale(std::int64_t index) const {
  const auto next = static_cast<std::size_t>(index) + 1;
  return next < program_.rows().size() ? static_cast<float>(program_.rows()[next].input_scale) : 1.0F;
}

float* Sampler::keep_history_entry() {
  if (history_.empty()) return nullptr;  // no later row reads it
  return history_[static_cast<std::size_t>(kept_++) % history_.size()];
}

void Sampler::evaluate(std::int64_t index, const Row& row, Evaluation what, const Denoiser& denoiser,
                       RunStatistics& statistics) const {
  const int wanted = row.guidance_scale != 1.0 ? 2 : 1;
  int made = 0;
  if (what == kEvaluate || what == kConditional) {
    denoiser({index, row.engine, row.timestep, false});
    ++made;
  }
  if (what == kEvaluate && row.guided()) {
    denoiser({index, row.engine, row.timestep, true});
    ++made;
  }
  statistics.evaluations += made;
  statistics.skipped += wanted - made;
}

kernels::ReuseBuffers Sampler::reuse_buffers(std::int64_t index, const Row& row, Evaluation what) {
  kernels::ReuseBuffers r{};
  r.input_scale = static_cast<float>(row.input_scale);
  if (!row.has_output()) return r;
  const auto estimate = [index](const CachedRows& rows, const std::vector<float*>& buffers, const float** entries,
                                float* weights) {
    const auto found = rows.weights(index);
    for (int m = 0; m < rows.at_hand(); ++m) {
      entries[m] = buffers[static_cast<std::size_t>(rows.slot(m))];
      weights[m] = found[static_cast<std::size_t>(m)];
    }
  };
  if (!conditional_.empty()) {
    if (!reuse_.conditional.empty()) {
      r.previous = conditional_[static_cast<std::size_t>(reuse_.conditional.slot(0))];
    }
    if (what == kReuse) {
      estimate(reuse_.conditional, conditional_, r.conditional, r.conditional_weights);
    } else {
      r.keep_conditional = conditional_[static_cast<std::size_t>(reuse_.conditional.keep(index))];
    }
    r.anchor = anchor_;
  }
  if (difference_.empty() || !row.guided()) return r;
  if (what == kEvaluate) {
    r.keep_difference = difference_[static_cast<std::size_t>(reuse_.difference.keep(index))];
  } else {
    estimate(reuse_.difference, difference_, r.difference, r.difference_weights);
  }
  return r;
}

void Sampler::bind_update(const Row& row, kernels::StepBuffers& b, const NoiseSource& noise) {
  for (std::int64_t j = 0; j < kernels::kMaxHistory; ++j) {
    if (row.history[j] == 0.0) continue;
    b.history[j] = history_[static_cast<std::size_t>(kept_ - 1 - j) % history_.size()];
  }
  if (row.noise != 0.0) {
    noise(noise_, buffers_.n);
    b.noise = noise_;
  }
  if (row.stores()) b.store = keep_history_entry();
}

void Sampler::step(std::int64_t index, const Row& row, Evaluation what, const NoiseSource& noise) {
  kernels::StepBuffers b = step_buffers();
  b.reuse = reuse_buffers(index, row, what);
  if (row.guided()) b.momentum = momentum_;
  bind_update(row, b, noise);
  device_->step(index, b, row.guided() && needs_moments(guidance_, row.guidance_rescale));
}

RunStatistics Sampler::run(const Denoiser& denoiser, const NoiseSource& noise, const OnStep& on_step,
                           const std::atomic<bool>* cancelled) {
  const auto& rows = program_.rows();
  RunStatistics statistics;
  statistics.row_seconds.reserve(rows.size());
  statistics.done.reserve(rows.size());
  if (reuse_.measures()) statistics.norms.reserve(rows.size());
  kept_ = 0;
  reuse_.start();
  auto kernel_start = Clock::now();
  if (buffers_.model_input != nullptr) {
    device_->prepare_input(step_buffers(), static_cast<float>(rows.front().input_scale));
  }
  statistics.kernel_seconds += seconds_since(kernel_start);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
      throw core::Cancelled("cancelled after " + std::to_string(i) + " of " + std::to_string(rows.size()) +
                            " denoising rows");
    }
    const auto index = static_cast<std::int64_t>(i);
    const auto row_start = Clock::now();
    if (momentum_ != nullptr && (i == 0 || rows[i].engine != rows[i - 1].engine)) {
      device_->clear(momentum_);
    }
    const Evaluation what = reuse_.decide(index, rows[i]);
    evaluate(index, rows[i], what, denoiser, statistics);
    kernel_start = Clock::now();
    step(index, rows[i], what, noise);
    if (reuse_.measures()) {
      statistics.norms.push_back(device_->norms());
      reuse_.measured(rows[i], what, statistics.norms.back());
    }
    statistics.kernel_seconds += seconds_since(kernel_start);
    statistics.done.push_back(what);
    statistics.row_seconds.push_back(seconds_since(row_start));
    if (on_step) on_step(index + 1);
  }
  return statistics;
}

}  // namespace sora::sampler
