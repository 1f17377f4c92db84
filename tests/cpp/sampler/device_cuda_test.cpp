// Whole runs on the CUDA device, its kernels on the shim: the same latents, bit for bit, as on the host.
#include "sampler/device_cuda.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "sampler/sampler.h"
#include "shim/cuda_runtime.h"

using namespace sora::sampler;

namespace {

constexpr std::int64_t kSize = 20011;  // more than a block of partial sums, with a tail

struct Run {
  std::vector<Row> rows;
  StepReuse reuse{};
  GuidanceRule guidance{};
  std::vector<float> latents = std::vector<float>(kSize), c = latents, u = latents;
  std::vector<std::byte> workspace{};
  CUstream_st stream{};
  RunStatistics statistics{};

  SamplerBuffers buffers() {
    return {
        kSize, latents.data(), nullptr, sora::core::DType::kFloat32, c.data(), u.data(), sora::core::DType::kFloat32};
  }
  void run_on(Sampler& sampler) {
    for (std::size_t i = 0; i < latents.size(); ++i) {
      latents[i] = static_cast<float>(2 * std::cos(static_cast<double>(i)));
    }
    std::int64_t draws = 0;
    statistics = sampler.run(
        [this](const DenoiserCall& call) {
          for (std::size_t i = 0; i < latents.size(); ++i) {
            const double x = latents[i];
            (call.unconditional ? u : c)[i] = static_cast<float>(call.unconditional ? std::sin(x) : std::tanh(0.7 * x));
          }
        },
        [&draws](float* out, std::int64_t n) {
          ++draws;
          for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(std::sin(static_cast<double>(i * draws)));
        },
        nullptr, nullptr);
  }
  void on_host() {
    Sampler sampler(Program(rows), buffers(), 2, reuse, guidance);
    run_on(sampler);
  }
  // Twice over the same workspace, as a graph is replayed: nothing of the first run may be left.
  void on_device() {
    const MakeDevice make = [this](const SamplerMemory& memory, Table table) {
      workspace.assign(static_cast<std::size_t>(workspace_of(memory).bytes) + 256, std::byte{0x7f});
      auto* start =
          reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(workspace.data()) + 255) / 256 * 256);
      auto device = std::make_unique<CudaDevice>(memory, std::move(table), start, &stream);
      const std::vector<std::byte> tables = device->tables();
      std::copy(tables.begin(), tables.end(), start);
      return device;
    };
    Sampler sampler(Program(rows), buffers(), make, reuse, guidance);
    run_on(sampler);
    run_on(sampler);
  }
};

std::vector<Row> rows_of(int count, double guidance_scale) {
  std::vector<Row> rows(static_cast<std::size_t>(count));
  for (Row& row : rows) {
    row.evaluate = kEvaluate;
    row.input_scale = 1;
    row.guidance_scale = guidance_scale;
    row.latents = 1;
    row.output = -0.1;
  }
  return rows;
}

// Both runs; returns the device's.
Run same_on_both(Run host) {
  Run device = host;
  host.on_host();
  device.on_device();
  CHECK(host.latents == device.latents);
  CHECK(host.statistics.done == device.statistics.done);
  CHECK_EQUAL(host.statistics.norms.size(), device.statistics.norms.size());
  for (std::size_t i = 0; i < host.statistics.norms.size(); ++i) {
    CHECK(std::memcmp(&host.statistics.norms[i], &device.statistics.norms[i], sizeof(sora::kernels::StepNorms)) == 0);
  }
  return device;
}

}  // namespace

TEST(cuda_device_runs_history_and_noise) {
  std::vector<Row> rows = rows_of(5, 4.0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].store_output = 1.0;
    rows[i].noise = i % 2 == 0 ? 0.25 : 0.0;
    for (std::size_t j = 0; j < std::min<std::size_t>(i, 3); ++j)
      rows[i].history[j] = 0.05 * static_cast<double>(j + 1);
  }
  Run run = same_on_both({rows});
  CHECK_EQUAL(run.stream.launches, 2 * 5);
  CHECK_EQUAL(run.stream.waits, 0);  // so the run may be captured
}

TEST(cuda_device_computes_guidance_where_its_rows_lie) {
  std::vector<Row> rows = rows_of(4, 4.0);
  rows[2].engine = rows[3].engine = 1;  // the running difference begins anew
  for (Row& row : rows) row.guidance_rescale = 0.7;
  for (const GuidanceRule& rule : {GuidanceRule{}, GuidanceRule{GuidanceMethod::kZeroStar},
                                   GuidanceRule{GuidanceMethod::kProjected, 0.3, -0.5, 20.0}}) {
    Run run = same_on_both({rows, {}, rule});
    CHECK_EQUAL(run.stream.launches, 2 * 4 * 3);
    CHECK_EQUAL(run.stream.waits, 0);
  }
}

TEST(cuda_device_reuses_as_the_host_decides) {
  StepReuse reuse;
  reuse.criterion = Criterion::kOutputChange;
  reuse.threshold = 0.3;
  reuse.first = 2;
  reuse.last = 12;
  reuse.order = 1;
  reuse.residual = true;
  Run run = same_on_both({rows_of(12, 3.0), reuse});
  CHECK(run.statistics.skipped > 0);
  CHECK_EQUAL(run.stream.waits, 2 * 12);
}

TEST(cuda_device_lays_out_its_workspace_without_overlaps) {
  StepReuse reuse;
  reuse.criterion = Criterion::kOutputChange;
  std::vector<Row> rows = rows_of(7, 4.0);
  for (Row& row : rows) row.guidance_rescale = 0.5;
  const SamplerMemory memory = memory_of(Program(rows), kSize, reuse, {});
  const Workspace layout = workspace_of(memory);
  const std::int64_t offsets[] = {layout.rows,    layout.guidance, layout.norms, layout.norm_sum,
                                  layout.moments, layout.buffers,  layout.bytes};
  const std::size_t needed[] = {7 * sizeof(sora::kernels::StepCoefficients),
                                7 * sizeof(sora::kernels::RowGuidance),
                                static_cast<std::size_t>(memory.norms) * sizeof(sora::kernels::StepNorms),
                                sizeof(sora::kernels::StepNorms),
                                static_cast<std::size_t>(memory.moments) * sizeof(sora::kernels::GuidanceMoments),
                                static_cast<std::size_t>(memory.buffers() * kSize) * sizeof(float)};
  for (std::size_t i = 0; i < std::size(needed); ++i) {
    CHECK_EQUAL(offsets[i] % 256, 0);
    CHECK(offsets[i + 1] - offsets[i] >= static_cast<std::int64_t>(needed[i]));
  }
  CHECK_EQUAL(memory.buffers(), 2);  // c and u - c of one evaluation
}
