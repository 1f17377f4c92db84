// The kernels on a CUDA device: the entries of step.h once more, for memory of the device and a stream.
//
// But for read() nothing here allocates, waits or copies, so every call may be recorded in a CUDA graph; what changes
// from clip to clip (coefficients, rules of guidance) is read from device memory when the graph runs. Results equal the
// CPU's bit for bit: the same functors in the same order, sums too. All throw std::runtime_error where a launch is
// refused.
#pragma once

#include <cstdint>

#include "kernels/guidance.h"
#include "kernels/step.h"

struct CUstream_st;

namespace sora::kernels::cuda {

using Stream = CUstream_st*;  // cudaStream_t, without CUDA's header

// All buffers in device memory, aligned to 16 bytes or else read element by element; `row` too. `norms` of
// buffers.reuse gets norm_blocks(n) partial sums, which sum_norms adds up.
void fused_step(const StepBuffers& buffers, const StepCoefficients* row, Stream stream);

void prepare_input(const StepBuffers& buffers, float input_scale, Stream stream);

// *sum = the StepNorms of `blocks` partial ones, both in device memory.
void sum_norms(const StepNorms* partial, std::int64_t blocks, StepNorms* sum, Stream stream);

// The sums over the clip into `partial` (room for moment_blocks(n)), then the factors that `guidance` makes of them
// into *row: what kernels::guidance_moments and set_guidance do on the host.
void set_guidance(const StepBuffers& buffers, GuidanceMoments* partial, const RowGuidance* guidance,
                  StepCoefficients* row, Stream stream);

// Sets bytes to 0.
void clear(void* memory, std::int64_t bytes, Stream stream);

// Copies from the device to the host and waits: the one entry that a graph cannot record.
void read(const void* memory, std::int64_t bytes, void* host, Stream stream);

// frames [3, num_frames, plane] in `dtype` to rgb8 [num_frames, plane, 3]; plane = height * width.
void frames_to_rgb8(const void* frames, core::DType dtype, std::uint8_t* rgb8, std::int64_t num_frames,
                    std::int64_t plane, Stream stream);

// Where an encoder of the device wants its pictures: `pitch` bytes from row to row, first `height` rows of luma, then
// height / 2 of interleaved Cb and Cr; `picture_bytes` from picture to picture.
struct Nv12 {
  std::uint8_t* pictures;
  std::int64_t pitch;
  std::int64_t picture_bytes;
};

// frames [3, num_frames, height, width] in `dtype`, height and width even, to BT.709 of limited range. A chroma sample
// is the mean of its four pixels.
void frames_to_nv12(const void* frames, core::DType dtype, std::int64_t num_frames, std::int64_t height,
                    std::int64_t width, const Nv12& to, Stream stream);

// latents float32 [channels, n] to `dtype`: normalised * std + mean, one of each for a channel, in device memory.
void denormalise(const float* latents, std::int64_t channels, std::int64_t n, const float* mean, const float* std,
                 void* decoded, core::DType dtype, Stream stream);

// A seam of two tiles, [outer, shared, inner] of each; `inner` elements lie together.
struct Seam {
  std::int64_t outer, shared, inner;
  std::int64_t before_stride, after_stride;  // elements from one outer index to the next
};

// The head of `after` fades in over `before`, index s of `shared` with the weight s / shared.
void blend(const float* before, float* after, const Seam& seam, Stream stream);

}  // namespace sora::kernels::cuda
