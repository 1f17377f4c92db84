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

}  // namespace

Program::Program(std::vector<Row> rows) : rows_(std::move(rows)) {
  core::require(!rows_.empty(), "a sampler program needs at least one row; compile it with one step or more");
  int kept = 0;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    const std::string name = "row " + std::to_string(i) + " of the sampler program ";
    core::require(is_finite(row), name + "holds a number that float32 cannot; check schedule and guidance_scale");
    core::require(row.engine >= 0, name + "names a negative engine; engines count from 0");
    core::require(row.evaluates() || (row.output == 0.0 && row.store_output == 0.0),
                  name + "uses a model output without an evaluation; set evaluate = 1");
    const int used = history_used(row);
    core::require(used <= kept, name + "reads history that no earlier row keeps; store an entry first");
    history_depth_ = std::max(history_depth_, used);
    kept += row.stores() ? 1 : 0;
  }
}

bool Program::scales_input() const {
  return std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.input_scale != 1.0; });
}

}  // namespace sora::sampler
