// Which buffers a program, a policy of reuse and a rule of guidance need.
#include "sampler/memory.h"

#include <algorithm>

#include "sampler/guidance.h"

namespace sora::sampler {

SamplerMemory memory_of(const Program& program, std::int64_t n, const StepReuse& reuse, const GuidanceRule& guidance) {
  const auto& rows = program.rows();
  const auto any = [&rows](auto&& holds) { return std::any_of(rows.begin(), rows.end(), holds); };
  const bool guided = any([](const Row& row) { return row.guided(); });
  const bool measures = reuse.criterion != Criterion::kNone;
  const int depth = reuse.order + 1;
  SamplerMemory memory{};
  memory.n = n;
  memory.rows = static_cast<std::int64_t>(rows.size());
  memory.history = program.history_depth() == 0 ? 0 : program.history_depth() + 1;
  memory.conditional = measures || program.reuses_conditional() ? depth : 0;
  memory.difference = (measures && guided) || program.reuses_difference() ? depth : 0;
  memory.anchor = reuse.residual && memory.conditional > 0 ? 1 : 0;
  memory.momentum = guided && guidance.method == GuidanceMethod::kProjected && guidance.momentum != 0.0 ? 1 : 0;
  memory.noise = any([](const Row& row) { return row.noise != 0.0; }) ? 1 : 0;
  if (any([&](const Row& row) { return row.guided() && needs_moments(guidance, row.guidance_rescale); })) {
    memory.moments = kernels::moment_blocks(n);
  }
  if (measures) memory.norms = kernels::norm_blocks(n);
  return memory;
}

}  // namespace sora::sampler
