// Validation of a sampler program: after it, the loop need not check anything.
#include "sampler/program.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"

namespace sora::sampler {

namespace {

bool is_finite(const Row& row) {
  const double* first = &row.timestep;
  return std::all_of(first, &row.store_output + 1, [](double value) {
    return std::abs(value) <= std::numeric_limits<float>::max();  // false for NaN; the kernels work in float32
  });
}

int history_used(const Row& row) {
  int used = 0;
  for (int j = 0; j < kernels::kMaxHistory; ++j) {
    if (row.history[j] != 0.0) used = j + 1;
  }
  return used;
}

// What has been evaluated since the engine last changed: another engine's outputs say nothing of this one's.
struct Evaluated {
  std::int32_t engine = -1;
  bool conditional = false;
  bool difference = false;

  void check(const Row& row, const std::string& name) {
    if (row.engine != engine) *this = {row.engine};
    core::require(row.evaluate != kConditional || row.guidance_scale != 1.0,
                  name + "has no guidance and so no unconditional branch to reuse; set evaluate = 1");
    const bool reuses = row.evaluate == kReuse;
    const bool estimates = row.guided() && (reuses || row.evaluate == kConditional);
    core::require((!reuses || conditional) && (!estimates || difference),
                  name + "reuses an output that no earlier row of its engine has evaluated; set evaluate = 1");
    conditional = conditional || row.evaluate == kEvaluate || row.evaluate == kConditional;
    difference = difference || (row.evaluate == kEvaluate && row.guided());
  }
};

}  // namespace

Program::Program(std::vector<Row> rows) : rows_(std::move(rows)) {
  core::require(!rows_.empty(), "a sampler program needs at least one row; compile it with one step or more");
  int kept = 0;
  Evaluated evaluated;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    const std::string name = "row " + std::to_string(i) + " of the sampler program ";
    core::require(is_finite(row), name + "holds a number that float32 cannot; check schedule and guidance_scale");
    core::require(row.engine >= 0, name + "names a negative engine; engines count from 0");
    core::require(row.evaluate >= kNoOutput && row.evaluate <= kZero,
                  name + "has an unknown evaluate flag; use 0 to 4");
    core::require(row.evaluate != kNoOutput || (row.output == 0.0 && row.store_output == 0.0),
                  name + "uses a model output without an evaluation; set evaluate = 1");
    evaluated.check(row, name);
    const int used = history_used(row);
    core::require(used <= kept, name + "reads history that no earlier row keeps; store an entry first");
    history_depth_ = std::max(history_depth_, used);
    kept += row.stores() ? 1 : 0;
  }
}

bool Program::reuses_conditional() const {
  return std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.evaluate == kReuse; });
}

bool Program::reuses_difference() const {
  return std::any_of(rows_.begin(), rows_.end(), [](const Row& row) {
    return row.guided() && (row.evaluate == kReuse || row.evaluate == kConditional);
  });
}

bool Program::scales_input() const {
  return std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.input_scale != 1.0; });
}

}  // namespace sora::sampler
