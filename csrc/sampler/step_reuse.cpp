// When a row reuses, and how an estimate weighs the outputs at hand.
#include "sampler/step_reuse.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace sora::sampler {

int CachedRows::at_hand() const { return std::min(count_, depth_); }

int CachedRows::keep(std::int64_t row) {
  ++count_;
  rows_[static_cast<std::size_t>(slot(0))] = row;
  return slot(0);
}

std::array<float, kernels::kMaxCached> CachedRows::weights(std::int64_t row) const {
  const auto entry = [this](int m) { return static_cast<double>(rows_[static_cast<std::size_t>(slot(m))]); };
  std::array<float, kernels::kMaxCached> found{1.0F};
  const int available = at_hand();
  if (available < 2) return found;
  const double k = static_cast<double>(row) - entry(0);
  const double gap = entry(0) - entry(1);
  double newest = 1.0 + k / gap;
  double second = -k / gap;
  if (available > 2) {
    const double curvature = k * k / 2.0 / gap;
    const double before = entry(1) - entry(2);
    newest += curvature / gap;
    second -= curvature / gap + curvature / before;
    found[2] = static_cast<float>(curvature / before);
  }
  found[0] = static_cast<float>(newest);
  found[1] = static_cast<float>(second);
  return found;
}

ReuseController::ReuseController(const StepReuse& policy)
    : conditional(std::clamp(policy.order, 0, kernels::kMaxCached - 1)),
      difference(std::clamp(policy.order, 0, kernels::kMaxCached - 1)),
      policy_(policy) {
  core::require(policy.order >= 0 && policy.order < kernels::kMaxCached,
                "order = " + std::to_string(policy.order) + " of step reuse is out of range; use 0 to 2");
  core::require(std::isfinite(policy.threshold) && policy.threshold >= 0.0,
                "the threshold of step reuse is negative or not finite; use 0 for no reuse");
  core::require(policy.first >= 0 && policy.most_in_a_row >= 0, "step reuse counts rows from 0; use 0 or more");
  core::require(std::all_of(policy.polynomial.begin(), policy.polynomial.end(),
                            [](double value) { return std::isfinite(value); }),
                "the polynomial of step reuse is not finite; calibrate it again");
}

void ReuseController::start() {
  engine_ = -1;
  newest_ = {};
}

Evaluation ReuseController::decide(std::int64_t index, const Row& row) {
  if (row.engine != engine_) {  // another expert's outputs and rates say nothing of this one's
    engine_ = row.engine;
    conditional.clear();
    difference.clear();
    accumulated_ = path_ = 0;
    rate_ = -1;
    in_a_row_ = 0;
  }
  const auto planned = static_cast<Evaluation>(row.evaluate);
  if (!row.has_output() || planned == kReuse) return planned;
  if (measures()) {
    accumulated_ += error_of_next();
    if (may_reuse(index, row) && accumulated_ < policy_.threshold) return kReuse;
  }
  return planned;
}

bool ReuseController::may_reuse(std::int64_t index, const Row& row) const {
  const bool known = policy_.criterion != Criterion::kOutputChange || rate_ >= 0.0;
  const bool at_hand = !conditional.empty() && (!row.guided() || !difference.empty());
  const bool within = index >= policy_.first && index < policy_.last;
  return known && at_hand && within && (policy_.most_in_a_row == 0 || in_a_row_ < policy_.most_in_a_row);
}

double ReuseController::error_of_next() const {
  if (policy_.criterion == Criterion::kOutputChange) {
    return newest_.output > 0.0 ? std::max(rate_, 0.0) * newest_.input_change / newest_.output : 0.0;
  }
  const double change = newest_.input > 0.0 ? newest_.input_change / newest_.input : 0.0;
  double value = 0;
  for (auto factor = policy_.polynomial.rbegin(); factor != policy_.polynomial.rend(); ++factor) {
    value = value * change + *factor;
  }
  return std::max(value, 0.0);
}

void ReuseController::measured(const Row& row, Evaluation done, const kernels::StepNorms& norms) {
  if (done == kEvaluate || done == kConditional) {
    if (path_ > 0.0) rate_ = norms.output_change / path_;
    path_ = accumulated_ = 0;
    in_a_row_ = 0;
  } else if (done == kReuse) {
    ++in_a_row_;
  }
  if (!conditional.empty()) path_ += norms.input_change;
  const double output = row.has_output() ? norms.output : newest_.output;
  newest_ = norms;
  newest_.output = output;
}

}  // namespace sora::sampler
