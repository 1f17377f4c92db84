// Binds the random generators.
#include <string>

#include "bindings/module.h"
#include "bindings/noise_generator.h"
#include "core/error.h"

namespace sora::bindings {

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

py::ssize_t elements(std::int64_t n) {
  core::require(n >= 0, "n = " + std::to_string(n) + " is negative; use 0 or more");
  return n;
}

FloatArray philox_normal(std::int64_t n, std::uint64_t seed, std::uint64_t stream, int num_threads) {
  FloatArray out(elements(n));
  float* data = out.mutable_data();
  const py::gil_scoped_release release;
  core::fill_normal(data, n, seed, stream, num_threads);
  return out;
}

FloatArray torch_randn(core::TorchGenerator& generator, std::int64_t n) {
  FloatArray out(elements(n));
  float* data = out.mutable_data();
  const py::gil_scoped_release release;
  generator.randn(data, n);
  return out;
}

FloatArray normal(NoiseGenerator& generator, const std::vector<py::ssize_t>& shape) {
  FloatArray out(shape);
  float* data = out.mutable_data();
  const std::int64_t n = out.size();
  const py::gil_scoped_release release;
  generator.fill(data, n);
  return out;
}

NoiseGenerator make_generator(std::uint64_t seed, const std::string& rng, std::uint64_t first_stream, int num_threads) {
  core::require(rng == "philox" || rng == "torch", "rng = '" + rng + "' is unknown; use 'philox' or 'torch'");
  return NoiseGenerator(seed, rng == "torch", first_stream, num_threads);
}

}  // namespace

void bind_noise(py::module_& module) {
  module.def("philox_normal", &philox_normal, py::arg("n"), py::kw_only(), py::arg("seed"), py::arg("stream") = 0,
             py::arg("num_threads") = 1,
             "n standard normals, float32 [n], from Philox 4x32-10: stream `stream` of `seed`.\n"
             "Element i depends on (seed, stream, i) alone: not on n, the threads or the device.");
  py::class_<core::TorchGenerator>(module, "TorchGenerator", "torch.Generator('cpu') for torch.randn in float32.")
      .def(py::init<std::uint64_t>(), py::arg("seed"))
      .def("randn", &torch_randn, py::arg("n"),
           "float32 [n], bit for bit torch.randn(n, generator=g); the state carries over to the next call.");
  py::class_<NoiseGenerator>(module, "NoiseGenerator", "The standard normals of one clip.")
      .def(py::init(&make_generator), py::arg("seed"), py::kw_only(), py::arg("rng") = "philox",
           py::arg("first_stream") = 0, py::arg("num_threads") = 1)
      .def("normal", &normal, py::arg("shape"), "float32 standard normals of `shape`: the next draw.");
}

}  // namespace sora::bindings
