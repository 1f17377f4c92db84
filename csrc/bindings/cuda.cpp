// Binds the sampler and the pixel kernels on a CUDA device; addresses and streams are integers, as cuda-python gives
// them.
#include "kernels/cuda.h"

#include <memory>
#include <string>

#include "bindings/sampler_parts.h"
#include "sampler/device_cuda.h"

namespace sora::bindings {

namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

kernels::cuda::Stream stream_of(Address stream) { return pointer<CUstream_st>(stream); }

sampler::MakeDevice device_maker(Address workspace, std::int64_t workspace_bytes, Address stream) {
  return [=](const sampler::SamplerMemory& memory, sampler::Table table) {
    const std::int64_t needed = sampler::workspace_of(memory).bytes;
    core::require(workspace % 256 == 0 && workspace_bytes >= needed,
                  "the workspace has " + std::to_string(workspace_bytes) +
                      " bytes at an address that must be aligned " + "to 256; the program needs " +
                      std::to_string(needed));
    return std::make_unique<sampler::CudaDevice>(memory, std::move(table), pointer<std::byte>(workspace),
                                                 stream_of(stream));
  };
}

// Latents, model input and outputs of n elements in the device's memory; 0 where there is none.
struct DeviceBuffers {
  std::int64_t n;
  Address latents, model_input, conditional, unconditional;
  std::string input_dtype, output_dtype;

  sampler::SamplerBuffers buffers() const {
    return {n,
            pointer<float>(latents),
            pointer<void>(model_input),
            dtype_from(input_dtype),
            pointer<const void>(conditional),
            pointer<const void>(unconditional),
            dtype_from(output_dtype)};
  }
};

std::unique_ptr<sampler::Sampler> make_sampler(const py::array_t<sampler::Row>& rows, const DeviceBuffers& buffers,
                                               Address workspace, std::int64_t workspace_bytes, Address stream,
                                               const sampler::StepReuse& reuse, const sampler::GuidanceRule& guidance) {
  return std::make_unique<sampler::Sampler>(program_from(rows), buffers.buffers(),
                                            device_maker(workspace, workspace_bytes, stream), reuse, guidance);
}

sampler::RunStatistics run(sampler::Sampler& sampler, const py::function& denoiser, const py::object& noise,
                           const py::object& on_step, const CancelToken* cancel) {
  const sampler::NoiseSource draw = [&noise](float* out, std::int64_t n) {
    const py::gil_scoped_acquire acquire;
    core::require(!noise.is_none(), "the program adds noise and nothing draws it; pass `noise`");
    noise(reinterpret_cast<Address>(out), n);
  };
  return run_sampler(sampler, denoiser, draw, on_step, cancel);
}

void bind_device_sampler(py::module_& cuda) {
  py::class_<DeviceBuffers>(cuda, "Buffers", "Where a clip's latents and the denoiser's outputs lie, by address.")
      .def(py::init([](std::int64_t n, Address latents, Address conditional, Address model_input, Address unconditional,
                       std::string input_dtype, std::string output_dtype) {
             return DeviceBuffers{
                 n, latents, model_input, conditional, unconditional, std::move(input_dtype), std::move(output_dtype)};
           }),
           py::kw_only(), py::arg("n"), py::arg("latents"), py::arg("conditional"), py::arg("model_input") = 0,
           py::arg("unconditional") = 0, py::arg("input_dtype") = "float32", py::arg("output_dtype") = "float32");

  py::class_<sampler::Sampler>(cuda, "Sampler",
                               "Runs a sampler program on a stream, over memory of the device that the caller owns.\n"
                               "Without a criterion of step reuse a run only records work: it may be captured.")
      .def(py::init(&make_sampler), py::arg("rows"), py::arg("buffers"), py::kw_only(), py::arg("workspace"),
           py::arg("workspace_bytes"), py::arg("stream"), py::arg("reuse") = sampler::StepReuse{},
           py::arg("guidance") = sampler::GuidanceRule{})
      .def_property_readonly(
          "tables",
          [](sampler::Sampler& sampler) {
            const auto bytes = static_cast<sampler::CudaDevice&>(sampler.device()).tables();
            return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          },
          "What must lie at the head of the workspace before a run: coefficients and guidance of every row.")
      .def("run", &run, py::arg("denoiser"), py::kw_only(), py::arg("noise") = py::none(),
           py::arg("on_step") = py::none(), py::arg("cancel") = nullptr,
           "As Sampler.run on the host; noise(address, n) draws n standard normals into the device's memory.");

  cuda.def(
      "workspace_bytes",
      [](const py::array_t<sampler::Row>& rows, std::int64_t n, const sampler::StepReuse& reuse,
         const sampler::GuidanceRule& guidance) {
        return sampler::workspace_of(sampler::memory_of(program_from(rows), n, reuse, guidance)).bytes;
      },
      py::arg("rows"), py::kw_only(), py::arg("n"), py::arg("reuse") = sampler::StepReuse{},
      py::arg("guidance") = sampler::GuidanceRule{}, "Bytes of workspace that a program over n latents needs.");
}

}  // namespace

void bind_cuda(py::module_& module) {
  py::module_ cuda = module.def_submodule("cuda", "The sampler and the pixel kernels on a CUDA device.");
  bind_device_sampler(cuda);
  cuda.def(
      "frames_to_rgb8",
      [](Address frames, Address rgb8, std::int64_t num_frames, std::int64_t plane, const std::string& dtype,
         Address stream) {
        kernels::cuda::frames_to_rgb8(pointer<void>(frames), dtype_from(dtype), pointer<std::uint8_t>(rgb8), num_frames,
                                      plane, stream_of(stream));
      },
      py::arg("frames"), py::arg("rgb8"), py::kw_only(), py::arg("num_frames"), py::arg("plane"),
      py::arg("dtype") = "float32", py::arg("stream"), "[3, num_frames, plane] to uint8 [num_frames, plane, 3].");
  cuda.def(
      "frames_to_nv12",
      [](Address frames, Address pictures, std::array<std::int64_t, 3> shape, std::int64_t pitch,
         std::int64_t picture_bytes, const std::string& dtype, Address stream) {
        core::require(shape[1] % 2 == 0 && shape[2] % 2 == 0, "NV12 pictures have an even height and width");
        core::require(pitch >= shape[2] && picture_bytes >= pitch * shape[1] * 3 / 2,
                      "NV12 pictures overlap; raise the pitch or the bytes of a picture");
        kernels::cuda::frames_to_nv12(pointer<void>(frames), dtype_from(dtype), shape[0], shape[1], shape[2],
                                      {pointer<std::uint8_t>(pictures), pitch, picture_bytes}, stream_of(stream));
      },
      py::arg("frames"), py::arg("pictures"), py::kw_only(), py::arg("shape"), py::arg("pitch"),
      py::arg("picture_bytes"), py::arg("dtype") = "float32", py::arg("stream"),
      "[3, *shape] of num_frames, height and width to BT.709 NV12 of limited range.");
  cuda.def(
      "denormalise",
      [](Address latents, Address decoded, std::int64_t channels, std::int64_t n, Address mean, Address std,
         const std::string& dtype, Address stream) {
        kernels::cuda::denormalise(pointer<float>(latents), channels, n, pointer<float>(mean), pointer<float>(std),
                                   pointer<void>(decoded), dtype_from(dtype), stream_of(stream));
      },
      py::arg("latents"), py::arg("decoded"), py::kw_only(), py::arg("channels"), py::arg("n"), py::arg("mean"),
      py::arg("std"), py::arg("dtype") = "float32", py::arg("stream"), "latents * std + mean of each channel.");
  cuda.def(
      "blend",
      [](Address before, Address after, std::array<std::int64_t, 3> shape, std::int64_t before_stride,
         std::int64_t after_stride, Address stream) {
        kernels::cuda::blend(pointer<float>(before), pointer<float>(after),
                             {shape[0], shape[1], shape[2], before_stride, after_stride}, stream_of(stream));
      },
      py::arg("before"), py::arg("after"), py::kw_only(), py::arg("shape"), py::arg("before_stride"),
      py::arg("after_stride"), py::arg("stream"),
      "The head of `after`, [outer, shared, inner], fades in over `before`: as sora_runtime.tiles blends a seam.");
}

}  // namespace sora::bindings
