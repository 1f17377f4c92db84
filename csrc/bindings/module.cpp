// sora_runtime._core: registers what the other files of this folder bind.
#include "bindings/module.h"

#include "core/error.h"
#include "kernels/dispatch.h"
#include "kernels/tile_kernels.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of sora_runtime: sampler, noise, embedding cache, frames.";
  py::register_exception<sora::core::Cancelled>(module, "CancelledError", PyExc_RuntimeError);
  module.def("instruction_set", &sora::kernels::instruction_set,
             "The instruction set the kernels run with here: 'avx2' or 'baseline'.");
  module.def("has_amx", &sora::kernels::has_amx,
             "Whether the processor multiplies tiles (AMX, int8 and bfloat16) and the system lets this process do so.");
  sora::bindings::bind_noise(module);
  sora::bindings::bind_frames(module);
  sora::bindings::bind_embedding_cache(module);
  sora::bindings::bind_sampler(module);
#if defined(SORA_HAS_CUDA)
  sora::bindings::bind_cuda(module);
#endif
}
