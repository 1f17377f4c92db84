// What the bindings of the sampler on the host and on a CUDA device share.
#pragma once

#include <atomic>
#include <string>

#include "bindings/module.h"
#include "core/error.h"
#include "sampler/sampler.h"

namespace sora::bindings {

class CancelToken {
 public:
  void cancel() { flag_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return flag_.load(std::memory_order_relaxed); }
  const std::atomic<bool>* flag() const { return &flag_; }

 private:
  std::atomic<bool> flag_{false};
};

inline core::DType dtype_from(const std::string& name) {
  if (name == "float32") return core::DType::kFloat32;
  if (name == "float16") return core::DType::kFloat16;
  if (name == "bfloat16") return core::DType::kBFloat16;
  throw std::invalid_argument("dtype = '" + name +
                              "' is not one the sampler casts to; use float32, float16 or bfloat16");
}

inline sampler::Program program_from(const py::array_t<sampler::Row>& rows) {
  core::require(rows.ndim() == 1, "rows must be one-dimensional");
  const auto view = rows.unchecked<1>();
  std::vector<sampler::Row> copy;
  copy.reserve(static_cast<std::size_t>(rows.size()));
  for (py::ssize_t i = 0; i < rows.size(); ++i) copy.push_back(view(i));
  return sampler::Program(std::move(copy));
}

// Runs with the GIL released; it is taken back for each call of Python only, so that between calls other threads run.
inline sampler::RunStatistics run_sampler(sampler::Sampler& sampler, const py::function& denoiser,
                                          const sampler::NoiseSource& noise, const py::object& on_step,
                                          const CancelToken* cancel) {
  const sampler::Denoiser call = [&denoiser](const sampler::DenoiserCall& c) {
    const py::gil_scoped_acquire acquire;
    denoiser(c.row, c.engine, c.timestep, c.unconditional);
  };
  sampler::OnStep report;
  if (!on_step.is_none()) {
    report = [&on_step](std::int64_t rows_done) {
      const py::gil_scoped_acquire acquire;
      on_step(rows_done);
    };
  }
  const py::gil_scoped_release release;
  return sampler.run(call, noise, report, cancel == nullptr ? nullptr : cancel->flag());
}

}  // namespace sora::bindings
