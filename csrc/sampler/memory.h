// What a sampler keeps beside the caller's buffers, known before anything is allocated.
#pragma once

#include <cstdint>

#include "kernels/guidance.h"
#include "sampler/program.h"
#include "sampler/step_reuse.h"

namespace sora::sampler {

struct SamplerMemory {
  std::int64_t n;     // elements of the latents, and of every buffer here, float32
  std::int64_t rows;  // of the program
  int history;        // a ring with one spare: a row reads up to the program's depth while it writes a new entry
  int conditional;    // outputs that step reuse has at hand
  int difference;     // u - c of as many
  int anchor;
  int momentum;  // the running difference of guidance
  int noise;
  std::int64_t moments;  // partial sums of guidance
  std::int64_t norms;    // partial sums of step reuse

  std::int64_t buffers() const { return std::int64_t{history} + conditional + difference + anchor + momentum + noise; }
};

SamplerMemory memory_of(const Program& program, std::int64_t n, const StepReuse& reuse,
                        const kernels::GuidanceRule& guidance);

}  // namespace sora::sampler
