// The sampler program: a solver and a schedule, compiled ahead of time into one row of coefficients per step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/step.h"

namespace sora::sampler {

// Where a row's output g comes from.
enum Evaluation : std::int32_t {
  kNoOutput = 0,     // no call is made and `output`, `store_output` are 0
  kEvaluate = 1,     // a call of the network, two with guidance
  kReuse = 2,        // no call: every branch is estimated from earlier evaluations (step_reuse.h)
  kConditional = 3,  // the conditional branch is evaluated, the unconditional one estimated
  kZero = 4,         // no call: g is 0 (the zero-init of CFG-Zero*, arXiv:2503.18886)
};

// One row, in the layout of `sora_runtime.sampling.program.ROW_DTYPE` (112 bytes, no padding).
//
//   next latents  = latents * x + output * g + sum_j history[j] * H[j] + noise * z
//   history entry = store_latents * x + store_output * g      (kept when either factor is not zero)
//
// x: the latents the denoiser saw; g: its guided output; H[0]: the entry of the most recent row that
// kept one, H[1] the one before, ...; z: fresh standard normals.
struct Row {
  std::int32_t engine;      // which denoiser
  std::int32_t evaluate;    // an Evaluation
  double timestep;          // what the denoiser is told
  double input_scale;       // denoiser input = cast(input_scale * x)
  double guidance_scale;    // 1: the conditional branch alone
  double guidance_rescale;  // 0: off
  double latents;
  double output;
  double history[kernels::kMaxHistory];
  double noise;
  double store_latents;
  double store_output;

  bool has_output() const { return evaluate != kNoOutput && evaluate != kZero; }
  bool guided() const { return has_output() && guidance_scale != 1.0; }
  bool stores() const { return store_latents != 0.0 || store_output != 0.0; }
};
static_assert(sizeof(Row) == 8 + 13 * 8, "Row must match ROW_DTYPE");

class Program {
 public:
  // Throws std::invalid_argument when there are no rows, a number is not finite, a row without an
  // evaluation uses its output, a row reads history that no earlier row has kept, or a row reuses what no
  // earlier row of the same engine has evaluated.
  explicit Program(std::vector<Row> rows);

  const std::vector<Row>& rows() const { return rows_; }
  int history_depth() const { return history_depth_; }  // history buffers needed
  bool reuses_conditional() const;                      // whether any row is kReuse
  bool reuses_difference() const;                       // whether any row estimates its unconditional branch
  bool scales_input() const;                            // whether any input_scale differs from 1

 private:
  std::vector<Row> rows_;
  int history_depth_ = 0;
};

}  // namespace sora::sampler
