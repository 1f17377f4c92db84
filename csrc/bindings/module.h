// What every file of the bindings shares.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace sora::bindings {

void bind_noise(py::module_& module);
void bind_frames(py::module_& module);
void bind_embedding_cache(py::module_& module);
void bind_sampler(py::module_& module);
void bind_cuda(py::module_& module);  // where the CUDA kernels are built

}  // namespace sora::bindings
