// Step reuse: which rows take their output from earlier evaluations instead of the network, and how.
//
// A fixed plan is in the rows themselves (Evaluation). A criterion decides at run time, by sums that the fused
// kernel takes in its one pass. Either way the estimate of a branch at row t, from outputs v of rows i > j > l, is
//
//   order 0:  v_i                                            the last output again
//   order 1:  v_i + k D                                      D = (v_i - v_j) / (i - j), k = t - i
//   order 2:  v_i + k D + k^2 / 2 (D - D') / (i - j)         D' the difference before
//
// (TaylorSeer, arXiv:2503.06923: a Taylor series in the step with finite differences for derivatives.) With
// `residual`, EasyCache's transformation vector v - x is reused in the place of v (arXiv:2507.02860: the output at
// x_t is x_t + (v_i - x_i)), which adds x_t - x_i. Of a flow model, whose output is noise - data and constant along a
// straight path, v itself moves less than v - x: hence both.
#pragma once

#include <array>
#include <cstdint>

#include "sampler/program.h"

namespace sora::sampler {

enum class Criterion : std::int32_t {
  kNone = 0,  // the plan alone
  // EasyCache (arXiv:2507.02860): sum over the reused rows of k_i |x_t - x_(t-1)| / |v_(t-1)| stays below the
  // threshold; k_i = |v_i - v_j| / |x_i - x_j| of the last two evaluations, |x_i - x_j| measured along the path between
  // them.
  kOutputChange = 1,
  // TeaCache (arXiv:2411.19108), on the network's input: sum of P(|x_t - x_(t-1)| / |x_(t-1)|) with a calibrated
  // polynomial P. The paper's indicator, the input modulated by the timestep, is inside the network.
  kInputChange = 2,
};

inline constexpr int kPolynomial = 5;  // coefficients, the constant first

struct StepReuse {
  Criterion criterion = Criterion::kNone;
  double threshold = 0;            // reuse while the accumulated error is below it
  std::int64_t first = 0;          // rows before it are evaluated whatever the criterion says
  std::int64_t last = 0;           // so are this row and all later ones
  std::int64_t most_in_a_row = 0;  // 0: no limit
  int order = 0;                   // 0 to 2
  bool residual = false;
  std::array<double, kPolynomial> polynomial{};
};

// The rows whose outputs of one branch are at hand, and how an estimate weighs them.
class CachedRows {
 public:
  explicit CachedRows(int order) : depth_(order + 1) {}
  void clear() { count_ = 0; }
  bool empty() const { return count_ == 0; }
  int depth() const { return depth_; }
  int at_hand() const;  // entries that may be read: at most `depth`
  // The buffer of the m-th newest entry, and of the next one, which overwrites the oldest.
  int slot(int m) const { return (count_ - 1 - m) % depth_; }
  int keep(std::int64_t row);
  // Weights of the entries, newest first, for an estimate at `row`; 0 beyond at_hand().
  std::array<float, kernels::kMaxCached> weights(std::int64_t row) const;

 private:
  int depth_;
  int count_ = 0;
  std::array<std::int64_t, kernels::kMaxCached> rows_{};  // by slot
};

// Decides row by row; what it knows comes from the rows before.
class ReuseController {
 public:
  // Throws std::invalid_argument when a number of `policy` makes no sense.
  explicit ReuseController(const StepReuse& policy);

  void start();
  // What row `index` does: its own flag, or kReuse where the criterion allows it.
  Evaluation decide(std::int64_t index, const Row& row);
  // The sums of the row that was just stepped.
  void measured(const Row& row, Evaluation done, const kernels::StepNorms& norms);

  bool measures() const { return policy_.criterion != Criterion::kNone; }
  const StepReuse& policy() const { return policy_; }
  CachedRows conditional;
  CachedRows difference;  // of u - c

 private:
  bool may_reuse(std::int64_t index, const Row& row) const;
  double error_of_next() const;

  StepReuse policy_;
  std::int32_t engine_ = -1;
  double accumulated_ = 0;       // E_t of the papers, over the reused rows since the last evaluation
  double rate_ = -1;             // k_i; negative: not known yet
  double path_ = 0;              // |x| travelled since the last evaluation
  kernels::StepNorms newest_{};  // of the row before
  std::int64_t in_a_row_ = 0;
};

}  // namespace sora::sampler
