// Binds the conversion of decoded frames.
#include "bindings/module.h"
#include "core/error.h"
#include "kernels/step.h"

namespace sora::bindings {

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

ByteArray frames_to_rgb8(const FloatArray& frames, int num_threads) {
  core::require(frames.ndim() == 4 && frames.shape(0) == 3,
                "frames must have the shape [3, num_frames, height, width]");
  core::require(num_threads >= 1, "num_threads must be 1 or more");
  ByteArray rgb8({frames.shape(1), frames.shape(2), frames.shape(3), py::ssize_t{3}});
  const float* in = frames.data();
  std::uint8_t* out = rgb8.mutable_data();
  const std::int64_t num_frames = frames.shape(1);
  const std::int64_t plane = frames.shape(2) * frames.shape(3);
  {
    const py::gil_scoped_release release;
    kernels::frames_to_rgb8(in, out, num_frames, plane, num_threads);
  }
  return rgb8;
}

}  // namespace

void bind_frames(py::module_& module) {
  module.def("frames_to_rgb8", &frames_to_rgb8, py::arg("frames").noconvert(), py::kw_only(),
             py::arg("num_threads") = 1,
             "float32 [3, num_frames, height, width] in [-1, 1] to uint8 [num_frames, height, width, 3]:\n"
             "clamped, scaled and rounded to nearest even in one pass; NaN becomes 0.");
}

}  // namespace sora::bindings
