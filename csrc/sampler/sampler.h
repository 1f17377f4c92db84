// The denoising loop: walks a program's rows, calls the denoiser, runs the fused step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "sampler/device.h"
#include "sampler/guidance.h"
#include "sampler/program.h"
#include "sampler/step_reuse.h"

namespace sora::sampler {

// One network call: which row asks, on which denoiser, at what timestep, for which branch of guidance.
struct DenoiserCall {
  std::int64_t row;
  int engine;
  double timestep;
  bool unconditional;
};

// Reads the model input (or the latents when there is none) and fills the branch's output buffer.
using Denoiser = std::function<void(const DenoiserCall&)>;
// Fills `n` standard normals at `out`, in the sampler's device's memory; called only for rows with noise.
using NoiseSource = std::function<void(float* out, std::int64_t n)>;
// Called after each row with the number of rows done.
using OnStep = std::function<void(std::int64_t rows_done)>;

// The caller's memory; it must outlive the sampler. All of n elements.
struct SamplerBuffers {
  std::int64_t n;
  float* latents;     // start noise in, clip latents out
  void* model_input;  // null: the denoiser reads `latents` (float32, no input scale)
  core::DType input_dtype;
  const void* conditional;    // the denoiser's output
  const void* unconditional;  // null when no row is guided
  core::DType output_dtype;
};

struct RunStatistics {
  std::int64_t evaluations = 0;           // network calls; a guided row makes two
  std::int64_t skipped = 0;               // network calls that full evaluation with guidance would have added
  std::vector<double> row_seconds;        // wall time of each row, denoiser included
  double kernel_seconds = 0;              // wall time of the sampler's own kernels over all rows
  std::vector<Evaluation> done;           // what each row did: its own flag, or kReuse by the criterion
  std::vector<kernels::StepNorms> norms;  // of each row; empty without a criterion
};

// Keeps the history and the outputs that are reused; all memory is taken in the constructor and none in run().
class Sampler {
 public:
  // On the host. Throws std::invalid_argument when the buffers do not suffice for the program.
  Sampler(Program program, const SamplerBuffers& buffers, int num_threads, const StepReuse& reuse = {},
          const GuidanceRule& guidance = {});

  // On the device that `make` gives, in whose memory the buffers lie.
  Sampler(Program program, const SamplerBuffers& buffers, const MakeDevice& make, const StepReuse& reuse,
          const GuidanceRule& guidance);

  // Runs all rows. Throws core::Cancelled between two rows once *cancelled is true; what the callables
  // throw passes through. The latents are then those of the last finished row.
  RunStatistics run(const Denoiser& denoiser, const NoiseSource& noise, const OnStep& on_step,
                    const std::atomic<bool>* cancelled);

  const Program& program() const { return program_; }
  Device& device() { return *device_; }

 private:
  void check_buffers() const;
  Table table() const;
  void reserve(const SamplerMemory& memory);
  void evaluate(std::int64_t index, const Row& row, Evaluation what, const Denoiser& denoiser,
                RunStatistics& statistics) const;
  void step(std::int64_t index, const Row& row, Evaluation what, const NoiseSource& noise);
  void bind_update(const Row& row, kernels::StepBuffers& b, const NoiseSource& noise);
  kernels::ReuseBuffers reuse_buffers(std::int64_t index, const Row& row, Evaluation what);
  kernels::StepBuffers step_buffers() const;
  float next_input_scale(std::int64_t index) const;
  float* keep_history_entry();

  Program program_;
  SamplerBuffers buffers_;
  GuidanceRule guidance_;
  ReuseController reuse_;
  std::unique_ptr<Device> device_;   // owns what the pointers below address
  std::vector<float*> history_;      // a ring: entry k lies in history_[k % history_.size()]
  std::int64_t kept_ = 0;            // entries kept so far
  std::vector<float*> conditional_;  // by the slots of reuse_.conditional; empty where none is reused
  std::vector<float*> difference_;
  float* anchor_ = nullptr;
  float* momentum_ = nullptr;  // the running difference of guidance
  float* noise_ = nullptr;
};

}  // namespace sora::sampler
