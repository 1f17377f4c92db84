// Binds the random generators.
#include "bindings/module.h"
#include "bindings/noise_generator.h"
#include "core/error.h"

namespace sora::bindings {

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

FloatArray philox_normal(std::int64_t n, std::uint64_t seed, std::uint64_t stream, int num_threads) {
  core::require(n >= 0, "n must be 0 or more");
  FloatArray out(n);
  core::fill_normal(out.mutable_data(), n, seed, stream, num_threads);
  return out;
}

FloatArray torch_randn(core::TorchGenerator& generator, std::int64_t n) {
  core::require(n >= 0, "n must be 0 or more");
  FloatArray out(n);
  generator.randn(out.mutable_data(), n);
  return out;
}

FloatArray normal(NoiseGenerator& generator, const std::vector<py::ssize_t>& shape) {
  FloatArray out(shape);
  generator.fill(out.mutable_data(), out.size());
  return out;
}

NoiseGenerator make_generator(std::uint64_t seed, const std::string& rng, int num_threads) {
  core::require(rng == "philox" || rng == "torch", "rng = '" + rng + "' is unknown; use 'philox' or 'torch'");
  return NoiseGenerator(seed, rng == "torch", num_threads);
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
           py::arg("num_threads") = 1)
      .def("normal", &normal, py::arg("shape"), "float32 standard normals of `shape`: the next draw.");
}

}  // namespace sora::bindings
