// A program refuses what the loop could not run.
#include "sampler/program.h"

#include <cmath>
#include <stdexcept>

#include "check.h"

using sora::sampler::Program;
using sora::sampler::Row;

namespace {
Row euler_row() {
  Row row{};
  row.evaluate = 1;
  row.input_scale = 1;
  row.guidance_scale = 1;
  row.latents = 1;
  row.output = -0.5;
  return row;
}
}  // namespace

TEST(program_refuses_no_rows) { CHECK_THROWS(Program({}), std::invalid_argument); }

TEST(program_refuses_numbers_that_are_not_finite) {
  Row row = euler_row();
  row.guidance_scale = NAN;
  CHECK_THROWS(Program({row}), std::invalid_argument);
  row = euler_row();
  row.store_output = INFINITY;
  CHECK_THROWS(Program({row}), std::invalid_argument);
  row = euler_row();
  row.guidance_scale = 1e300;  // finite, but not in float32
  CHECK_THROWS(Program({row}), std::invalid_argument);
}

TEST(program_refuses_output_without_evaluation) {
  Row row = euler_row();
  row.evaluate = 0;
  CHECK_THROWS(Program({row}), std::invalid_argument);
}

TEST(program_refuses_history_that_nobody_kept) {
  Row keeps = euler_row();
  keeps.store_output = 1;
  Row reads_two = euler_row();
  reads_two.history[1] = 0.1;
  CHECK_THROWS(Program({keeps, reads_two}), std::invalid_argument);
  CHECK_EQUAL(Program({keeps, keeps, reads_two}).history_depth(), 2);
  CHECK_THROWS(Program({reads_two}), std::invalid_argument);
}

TEST(program_knows_whether_it_scales_the_input) {
  Row row = euler_row();
  CHECK(!Program({row}).scales_input());
  row.input_scale = 0.5;
  CHECK(Program({row}).scales_input());
}
