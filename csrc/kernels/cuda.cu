// The CUDA kernels and their entries; also compiled as plain C++ by the tests (see launch_cuda.cuh).
#include "kernels/cuda.h"
#include "kernels/dispatch.h"
#include "kernels/launch_cuda.cuh"
#include "kernels/pixels.h"
#include "kernels/step_element.h"

namespace sora::kernels::cuda {
namespace {

struct Step {
  StepBuffers buffers;
  const StepCoefficients* row;
  template <int kWidth>
  __device__ void run(std::int64_t i) const {
    step_at<kWidth>(buffers, *row, i, NoSums{});
  }
};

struct Prepare {
  StepBuffers buffers;
  float input_scale;
  template <int kWidth>
  __device__ void run(std::int64_t i) const {
    Floats<kWidth> x = load<kWidth>(static_cast<const float*>(buffers.latents), i);
    for (int j = 0; j < kWidth; ++j) x.v[j] = Scale{input_scale}(x.v[j]);
    store<kWidth>(buffers.model_input, buffers.input_dtype, i, x);
  }
};

// The CPU's order of sums (sum_tile of step.inl): tiles of kTile elements, kLanes interleaved lanes in each, folded by
// a tree, tile after tile. One thread is one lane of one tile.
inline constexpr int kLanes = 16;
inline constexpr int kTile = static_cast<int>(kNormBlock) / (kThreads / kLanes);
inline constexpr int kNorms = sizeof(StepNorms) / sizeof(double);

__global__ void __launch_bounds__(kThreads) measured_step_kernel(StepBuffers b, const StepCoefficients* row) {
  __shared__ double values[kNorms][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * kNormBlock + thread / kLanes * kTile;
  StepNorms sums{};
  for (std::int64_t i = tile + lane; i < std::min(b.n, tile + kTile); i += kLanes) {
    step_at<1>(b, *row, i, ThreadSums{&sums});
  }
  values[0][thread] = sums.output;
  values[1][thread] = sums.output_change;
  values[2][thread] = sums.residual;
  values[3][thread] = sums.input;
  values[4][thread] = sums.input_change;
  for (auto& of_norm : values) fold(of_norm, thread, lane, kLanes / 2);
  if (thread >= kNorms) return;
  double sum = 0;
  for (int first = 0; first < kThreads; first += kLanes) sum += values[thread][first];
  reinterpret_cast<double*>(b.reuse.norms + blockIdx.x)[thread] = sum;
}

// One thread for each kind of sum, which adds the blocks up in their order.
template <class Sums>
__device__ inline void add_blocks(const Sums* partial, std::int64_t blocks, Sums* sum) {
  const int kind = static_cast<int>(threadIdx.x);
  double total = 0;
  for (std::int64_t i = 0; i < blocks; ++i) total += reinterpret_cast<const double*>(partial + i)[kind];
  reinterpret_cast<double*>(sum)[kind] = total;
}

__global__ void sum_norms_kernel(const StepNorms* partial, std::int64_t blocks, StepNorms* sum) {
  add_blocks(partial, blocks, sum);
}

inline constexpr int kMoments = sizeof(GuidanceMoments) / sizeof(double);

// A thread is one of the CPU's 256 lanes (MomentLanes of step.inl).
__global__ void __launch_bounds__(kThreads) moments_kernel(StepBuffers b, GuidanceMoments* partial) {
  __shared__ double values[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kMomentBlock;
  double sums[kMoments] = {};
  for (std::int64_t i = begin + thread; i < std::min(b.n, begin + kMomentBlock); i += kThreads) {
    const Floats<1> latents = load<1>(static_cast<const float*>(b.latents), i);
    const Floats<1> conditional = conditional_at<1>(b, i, latents);
    const double c = conditional.v[0];
    const double u = unconditional_at<1>(b, i, conditional).v[0];
    const double m = b.momentum == nullptr ? 0.0 : static_cast<double>(b.momentum[i]);
    const double terms[kMoments] = {c, u, m, c * c, u * u, c * u, m * m, m * c, m * u};
    for (int kind = 0; kind < kMoments; ++kind) sums[kind] += terms[kind];
  }
  for (int kind = 0; kind < kMoments; ++kind) {
    values[thread] = sums[kind];
    fold(values, thread, thread, kThreads / 2);
    if (thread == 0) reinterpret_cast<double*>(partial + blockIdx.x)[kind] = values[0];
    __syncthreads();
  }
}

__global__ void set_guidance_kernel(const GuidanceMoments* partial, std::int64_t blocks, const RowGuidance* guidance,
                                    std::int64_t n, StepCoefficients* row) {
  __shared__ GuidanceMoments sums;
  add_blocks(partial, blocks, &sums);
  __syncthreads();
  if (threadIdx.x == 0) kernels::set_guidance(*guidance, sums, n, row);
}

template <int kWidth>
struct alignas(kWidth) Pixels {
  std::uint8_t v[3 * kWidth];
};

struct ToRgb8 {
  const void* frames;
  core::DType dtype;
  std::uint8_t* rgb8;
  std::int64_t channel;
  template <int kWidth>
  __device__ void run(std::int64_t i) const {
    Pixels<kWidth> pixels;
    SORA_UNROLL
    for (int c = 0; c < 3; ++c) {
      const Floats<kWidth> values = load<kWidth>(frames, dtype, c * channel + i);
      for (int j = 0; j < kWidth; ++j) pixels.v[3 * j + c] = to_rgb8(values.v[j]);
    }
    *reinterpret_cast<Pixels<kWidth>*>(rgb8 + 3 * i) = pixels;
  }
};

// Two by two pixels, which share a sample of chroma.
struct ToNv12 {
  const void* frames;
  core::DType dtype;
  std::int64_t channel, height, width;
  Nv12 to;

  __device__ float level(int color, std::int64_t pixel) const {
    return static_cast<float>(to_rgb8(load<1>(frames, dtype, color * channel + pixel).v[0]));
  }
  template <int kWidth>
  __device__ void run(std::int64_t i) const {
    const std::int64_t columns = width / 2;
    const std::int64_t row = i / columns % (height / 2);
    const std::int64_t column = i % columns;
    const std::int64_t frame = i / columns / (height / 2);
    std::uint8_t* picture = to.pictures + frame * to.picture_bytes;
    Rgb pixels[4];
    SORA_UNROLL
    for (int p = 0; p < 4; ++p) {
      const std::int64_t y = 2 * row + p / 2;
      const std::int64_t x = 2 * column + p % 2;
      const std::int64_t pixel = (frame * height + y) * width + x;
      pixels[p] = {level(0, pixel), level(1, pixel), level(2, pixel)};
      picture[y * to.pitch + x] = round_to_byte(pixels[p].y());
    }
    const Rgb mean = mean_of(pixels);
    std::uint8_t* chroma = picture + (height + row) * to.pitch + 2 * column;
    chroma[0] = round_to_byte(mean.cb());
    chroma[1] = round_to_byte(mean.cr());
  }
};

struct Decoded {
  const float* latents;
  std::int64_t n;
  const float* mean;
  const float* std;
  void* decoded;
  core::DType dtype;
  template <int kWidth>
  __device__ void run(std::int64_t i) const {
    Floats<kWidth> values = load<kWidth>(latents, i);
    for (int j = 0; j < kWidth; ++j) {
      const std::int64_t channel = (i + j) / n;
      values.v[j] = Denormalise{mean[channel], std[channel]}(values.v[j]);
    }
    store<kWidth>(decoded, dtype, i, values);
  }
};

struct BlendSeam {
  const float* before;
  float* after;
  Seam seam;
  template <int kWidth>
  __device__ void run(std::int64_t i) const {
    const std::int64_t part = seam.shared * seam.inner;
    const std::int64_t outer = i / part;
    const std::int64_t within = i % part;
    const float weight = static_cast<float>(within / seam.inner) / static_cast<float>(seam.shared);
    float* value = after + outer * seam.after_stride + within;
    *value = Blend{weight}(before[outer * seam.before_stride + within], *value);
  }
};

bool vectors_fit(const StepBuffers& b) {
  const ReuseBuffers& r = b.reuse;
  bool fit = aligned({b.latents, b.conditional, b.unconditional, b.noise, b.momentum, b.store, b.model_input,
                      r.keep_conditional, r.keep_difference, r.anchor, r.previous});
  for (const float* entry : b.history) fit = fit && aligned({entry});
  for (const float* entry : r.conditional) fit = fit && aligned({entry});
  for (const float* entry : r.difference) fit = fit && aligned({entry});
  return fit;
}

}  // namespace

void fused_step(const StepBuffers& buffers, const StepCoefficients* row, Stream stream) {
  if (buffers.reuse.norms != nullptr) {
    launch(&measured_step_kernel, norm_blocks(buffers.n), kThreads, stream, buffers, row);
  } else {
    map(Step{buffers, row}, buffers.n, vectors_fit(buffers), stream);
  }
}

void prepare_input(const StepBuffers& buffers, float input_scale, Stream stream) {
  map(Prepare{buffers, input_scale}, buffers.n, vectors_fit(buffers), stream);
}

void sum_norms(const StepNorms* partial, std::int64_t blocks, StepNorms* sum, Stream stream) {
  launch(&sum_norms_kernel, 1, kNorms, stream, partial, blocks, sum);
}

void set_guidance(const StepBuffers& buffers, GuidanceMoments* partial, const RowGuidance* guidance,
                  StepCoefficients* row, Stream stream) {
  const std::int64_t blocks = moment_blocks(buffers.n);
  launch(&moments_kernel, blocks, kThreads, stream, buffers, partial);
  launch(&set_guidance_kernel, 1, kMoments, stream, partial, blocks, guidance, buffers.n, row);
}

void clear(void* memory, std::int64_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, static_cast<std::size_t>(bytes), stream), "clear memory");
}

void read(const void* memory, std::int64_t bytes, void* host, Stream stream) {
  check(cudaMemcpyAsync(host, memory, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream), "copy memory");
  check(cudaStreamSynchronize(stream), "finish the work of a stream");
}

void frames_to_rgb8(const void* frames, core::DType dtype, std::uint8_t* rgb8, std::int64_t num_frames,
                    std::int64_t plane, Stream stream) {
  const std::int64_t channel = num_frames * plane;
  map(ToRgb8{frames, dtype, rgb8, channel}, channel, channel % kVector == 0 && aligned({frames, rgb8}), stream);
}

void frames_to_nv12(const void* frames, core::DType dtype, std::int64_t num_frames, std::int64_t height,
                    std::int64_t width, const Nv12& to, Stream stream) {
  const std::int64_t plane = height * width;
  map_by<1>(ToNv12{frames, dtype, num_frames * plane, height, width, to}, num_frames * plane / 4, stream);
}

void denormalise(const float* latents, std::int64_t channels, std::int64_t n, const float* mean, const float* std,
                 void* decoded, core::DType dtype, Stream stream) {
  map(Decoded{latents, n, mean, std, decoded, dtype}, channels * n, aligned({latents, decoded}), stream);
}

void blend(const float* before, float* after, const Seam& seam, Stream stream) {
  map_by<1>(BlendSeam{before, after, seam}, seam.outer * seam.shared * seam.inner, stream);
}

}  // namespace sora::kernels::cuda
