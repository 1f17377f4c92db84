// The sampler program: a solver and a schedule, compiled ahead of time into one row of coefficients per step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/step.h"

namespace sora::sampler {

// One row, in the layout of `sora_runtime.sampling.program.ROW_DTYPE` (112 bytes, no padding).
//
//   next latents  = latents * x + output * g + sum_j history[j] * H[j] + noise * z
//   history entry = store_latents * x + store_output * g      (kept when either factor is not zero)
//
// x: the latents the denoiser saw; g: its guided output; H[0]: the entry of the most recent row that
// kept one, H[1] the one before, ...; z: fresh standard normals.
struct Row {
  std::int32_t engine;      // which denoiser
  std::int32_t evaluate;    // 0: no call is made and `output`, `store_output` are 0
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

  bool evaluates() const { return evaluate != 0; }
  bool guided() const { return evaluates() && guidance_scale != 1.0; }
  bool stores() const { return store_latents != 0.0 || store_output != 0.0; }
};
static_assert(sizeof(Row) == 8 + 13 * 8, "Row must match ROW_DTYPE");

class Program {
 public:
  // Throws std::invalid_argument when there are no rows, a number is not finite, a row without an
  // evaluation uses its output, or a row reads history that no earlier row has kept.
  explicit Program(std::vector<Row> rows);

  const std::vector<Row>& rows() const { return rows_; }
  int history_depth() const { return history_depth_; }  // history buffers needed
  bool scales_input() const;                            // whether any input_scale differs from 1

 private:
  std::vector<Row> rows_;
  int history_depth_ = 0;
};

}  // namespace sora::sampler
