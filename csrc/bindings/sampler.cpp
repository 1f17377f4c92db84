// Binds the sampler: numpy buffers in, the loop with the GIL released.
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>

#include "bindings/noise_generator.h"
#include "bindings/sampler_parts.h"

namespace sora::bindings {

namespace {

// The memory of a C-contiguous array of n elements of `dtype` (bfloat16 as 2-byte items).
void* buffer_of(const py::array& array, const char* name, std::int64_t n, core::DType dtype, bool writes) {
  const bool fits = (array.flags() & py::array::c_style) != 0 && array.size() == n &&
                    array.itemsize() == core::size_of(dtype) && (!writes || array.writeable());
  core::require(fits, std::string(name) + " must be a C-contiguous" + (writes ? ", writable" : "") +
                          " array with as many elements as the latents, in the stated dtype");
  return const_cast<void*>(array.data());
}

// Keeps the arrays alive that the sampler points into.
struct BoundSampler {
  std::vector<py::object> arrays;
  std::unique_ptr<sampler::Sampler> sampler;
};

std::unique_ptr<BoundSampler> make_sampler(const py::array_t<sampler::Row>& rows, const py::array& latents,
                                           const py::object& model_input, const py::array& conditional,
                                           const py::object& unconditional, const std::string& input_dtype,
                                           const std::string& output_dtype, int num_threads,
                                           const sampler::StepReuse& reuse, const sampler::GuidanceRule& guidance) {
  auto bound = std::make_unique<BoundSampler>();
  sampler::SamplerBuffers b{};
  b.n = latents.size();
  b.input_dtype = dtype_from(input_dtype);
  b.output_dtype = dtype_from(output_dtype);
  core::require(latents.dtype().kind() == 'f', "latents must be float32");
  b.latents = static_cast<float*>(buffer_of(latents, "latents", b.n, core::DType::kFloat32, true));
  b.conditional = buffer_of(conditional, "conditional", b.n, b.output_dtype, false);
  bound->arrays = {latents, conditional};
  if (!model_input.is_none()) {
    const auto array = model_input.cast<py::array>();
    b.model_input = buffer_of(array, "model_input", b.n, b.input_dtype, true);
    bound->arrays.push_back(array);
  }
  if (!unconditional.is_none()) {
    const auto array = unconditional.cast<py::array>();
    b.unconditional = buffer_of(array, "unconditional", b.n, b.output_dtype, false);
    bound->arrays.push_back(array);
  }
  bound->sampler = std::make_unique<sampler::Sampler>(program_from(rows), b, num_threads, reuse, guidance);
  return bound;
}

sampler::RunStatistics run(BoundSampler& bound, const py::function& denoiser, NoiseGenerator* noise,
                           const py::object& on_step, const CancelToken* cancel) {
  const sampler::NoiseSource draw = [noise](float* out, std::int64_t n) {
    core::require(noise != nullptr, "the program adds noise and no generator was given; pass `noise`");
    noise->fill(out, n);
  };
  return run_sampler(*bound.sampler, denoiser, draw, on_step, cancel);
}

py::dict memory(const py::array_t<sampler::Row>& rows, std::int64_t n, const sampler::StepReuse& reuse,
                const sampler::GuidanceRule& guidance) {
  const sampler::SamplerMemory found = sampler::memory_of(program_from(rows), n, reuse, guidance);
  const auto floats = [n](int buffers) { return buffers * n * static_cast<std::int64_t>(sizeof(float)); };
  py::dict bytes;
  bytes["history"] = floats(found.history);
  bytes["reused outputs"] = floats(found.conditional + found.difference + found.anchor);
  bytes["running difference"] = floats(found.momentum);
  bytes["noise"] = floats(found.noise);
  return bytes;
}

sampler::StepReuse make_reuse(const std::string& criterion, double threshold, std::int64_t first, std::int64_t last,
                              std::int64_t most_in_a_row, int order, bool residual,
                              const std::array<double, sampler::kPolynomial>& polynomial) {
  sampler::StepReuse reuse;
  if (criterion == "output_change") {
    reuse.criterion = sampler::Criterion::kOutputChange;
  } else if (criterion == "input_change") {
    reuse.criterion = sampler::Criterion::kInputChange;
  } else {
    core::require(criterion == "none",
                  "criterion = '" + criterion + "' of step reuse is unknown; use none, output_change or input_change");
  }
  reuse.threshold = threshold;
  reuse.first = first;
  reuse.last = last;
  reuse.most_in_a_row = most_in_a_row;
  reuse.order = order;
  reuse.residual = residual;
  reuse.polynomial = polynomial;
  return reuse;
}

sampler::GuidanceRule make_guidance(const std::string& method, double eta, double momentum, double norm_threshold) {
  sampler::GuidanceRule rule{sampler::GuidanceMethod::kPlain, eta, momentum, norm_threshold};
  if (method == "cfg_zero_star") {
    rule.method = sampler::GuidanceMethod::kZeroStar;
  } else if (method == "apg") {
    rule.method = sampler::GuidanceMethod::kProjected;
  } else {
    core::require(method == "cfg", "method = '" + method + "' of guidance is unknown; use cfg, cfg_zero_star or apg");
  }
  return rule;
}

void bind_rules(py::module_& module) {
  using kernels::StepNorms;
  PYBIND11_NUMPY_DTYPE(StepNorms, output, output_change, residual, input, input_change);
  py::class_<sampler::StepReuse>(module, "StepReuse", "When rows take their output from earlier ones, and how.")
      .def(py::init(&make_reuse), py::kw_only(), py::arg("criterion") = "none", py::arg("threshold") = 0.0,
           py::arg("first") = 0, py::arg("last") = 0, py::arg("most_in_a_row") = 0, py::arg("order") = 0,
           py::arg("residual") = false, py::arg("polynomial") = std::array<double, sampler::kPolynomial>{});
  py::class_<sampler::GuidanceRule>(module, "GuidanceRule", "How the two branches make the guided output.")
      .def(py::init(&make_guidance), py::kw_only(), py::arg("method") = "cfg", py::arg("eta") = 0.0,
           py::arg("momentum") = 0.0, py::arg("norm_threshold") = 0.0);
}

}  // namespace

void bind_sampler(py::module_& module) {
  using sampler::Row;
  PYBIND11_NUMPY_DTYPE(Row, engine, evaluate, timestep, input_scale, guidance_scale, guidance_rescale, latents, output,
                       history, noise, store_latents, store_output);
  module.attr("ROW_DTYPE") = py::dtype::of<Row>();

  bind_rules(module);

  py::class_<CancelToken>(module, "CancelToken", "Asks a running sampler to stop between two rows; thread-safe.")
      .def(py::init<>())
      .def("cancel", &CancelToken::cancel, "Request the stop; may be called from any thread or a signal handler.")
      .def_property_readonly("cancelled", &CancelToken::cancelled);

  py::class_<sampler::RunStatistics>(module, "RunStatistics", "What one run of the sampler did and took.")
      .def_readonly("evaluations", &sampler::RunStatistics::evaluations)
      .def_readonly("skipped", &sampler::RunStatistics::skipped)
      .def_readonly("row_seconds", &sampler::RunStatistics::row_seconds)
      .def_readonly("kernel_seconds", &sampler::RunStatistics::kernel_seconds)
      .def_property_readonly(
          "done", [](const sampler::RunStatistics& s) { return std::vector<int>(s.done.begin(), s.done.end()); })
      .def_property_readonly("norms", [](const sampler::RunStatistics& s) {
        return py::array_t<kernels::StepNorms>(static_cast<py::ssize_t>(s.norms.size()), s.norms.data());
      });

  py::class_<BoundSampler>(module, "Sampler",
                           "Runs a sampler program over caller-owned buffers; allocates only here, never in run().")
      .def(py::init(&make_sampler), py::arg("rows"), py::arg("latents"), py::kw_only(),
           py::arg("model_input") = py::none(), py::arg("conditional"), py::arg("unconditional") = py::none(),
           py::arg("input_dtype") = "float32", py::arg("output_dtype") = "float32", py::arg("num_threads") = 1,
           py::arg("reuse") = sampler::StepReuse{}, py::arg("guidance") = sampler::GuidanceRule{})
      .def("run", &run, py::arg("denoiser"), py::kw_only(), py::arg("noise") = nullptr, py::arg("on_step") = py::none(),
           py::arg("cancel") = nullptr,
           "Run all rows. denoiser(row, engine, timestep, unconditional) reads the model input and fills the\n"
           "branch's output buffer; on_step(rows_done) follows each row. Raises CancelledError between rows.");

  module.def("sampler_memory", &memory, py::arg("rows"), py::kw_only(), py::arg("n"),
             py::arg("reuse") = sampler::StepReuse{}, py::arg("guidance") = sampler::GuidanceRule{},
             "Bytes that a sampler keeps beside the caller's buffers, by kind, for a program over n latents.");
}

}  // namespace sora::bindings
