// Operators that ONNX Runtime loads, on the kernels of tile_kernels.h: those of its domain com.microsoft that int8
// transformers are made of, with the same names, inputs and attributes (and `gelu` and an eighth bit more), and the
// convolution of int8 decoders. Their domain is sora.cpu; a graph's nodes are pointed there when a session is made
// (sora_runtime.engines.own_kernels).
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/tile_kernels.h"
#include "onnxruntime/api.h"
#include "onnxruntime/tensors.h"

namespace sora::onnxruntime {
namespace {

class MultiHeadAttention {
 public:
  static constexpr const char* kName = "MultiHeadAttention";
  static constexpr std::size_t kInputs = 3;

  MultiHeadAttention(const Api& api, const KernelInfo* info) : api_(api) {
    check(attribute(api, info, "num_heads", &heads_));
    if (Status* status = attribute(api, info, "scale", &scale_); status != nullptr) {
      release(api, status);  // not given
      scale_ = 0;
    }
  }

  static ElementType input_type(std::size_t) { return ElementType::kFloat; }
  static bool optional(std::size_t) { return false; }

  void compute(KernelContext* context) const {
    const Tensor q = input_of(api_, context, 0), k = input_of(api_, context, 1), v = input_of(api_, context, 2);
    if (q.shape.size() != 3 || k.shape.size() != 3 || k.shape != v.shape || q.shape[0] != k.shape[0] ||
        q.shape[2] != k.shape[2] || q.shape[2] % heads_ != 0 || q.shape[2] / heads_ > kernels::kMostChannels) {
      throw std::invalid_argument("sora.cpu attention takes [batch, rows, heads * channels], at most 512 channels");
    }
    const std::int64_t channels = q.shape[2] / heads_;
    const float scale = scale_ != 0 ? scale_ : 1.0F / std::sqrt(static_cast<float>(channels));
    float* const out = output_of(api_, context, q.shape);
    kernels::tile_kernels().attention(
        {q.as<float>(), k.as<float>(), v.as<float>(), out, q.shape[0], q.shape[1], k.shape[1], heads_, channels, scale},
        threads_of(api_, context));
  }

 private:
  const Api& api_;
  std::int64_t heads_ = 0;
  float scale_ = 0;
};

class DynamicQuantizeMatMul {
 public:
  static constexpr const char* kName = "DynamicQuantizeMatMul";
  static constexpr std::size_t kInputs =
      6;  // x, weights, their scale, their zero point (none), bias, what an eighth bit adds

  DynamicQuantizeMatMul(const Api& api, const KernelInfo* info) : api_(api) {
    const Tensor weights = constant_of(api, info, 1), scale = constant_of(api, info, 2),
                 bias = constant_of(api, info, 4);
    if (weights.shape.size() != 2 || scale.data == nullptr || (scale.size() != 1 && scale.size() != weights.shape[1])) {
      throw std::invalid_argument(
          "sora.cpu linear takes constant weights [in, out] and a scale, or one for each column");
    }
    std::int64_t gelu = 0;
    if (Status* status = attribute(api, info, "gelu", &gelu); status != nullptr) release(api, status);  // not given
    const Tensor finer = constant_of(api, info, 5);
    weights_ = kernels::pack_linear({weights.as<std::int8_t>(), scale.as<float>(), scale.size() == 1, bias.as<float>(),
                                     weights.shape[0], weights.shape[1], gelu != 0, finer.as<std::uint8_t>()});
    give_back(weights);
    give_back(finer);
  }

  static ElementType input_type(std::size_t index) {
    if (index == 5) return ElementType::kUint8;
    return index == 1 || index == 3 ? ElementType::kInt8 : ElementType::kFloat;
  }
  static bool optional(std::size_t index) { return index > 2; }

  void compute(KernelContext* context) const {
    const Tensor x = input_of(api_, context, 0);
    if (x.shape.empty() || x.shape.back() != weights_.in) {
      throw std::invalid_argument("sora.cpu linear: the last dimension of x is not that of its weights");
    }
    std::vector<std::int64_t> shape = x.shape;
    shape.back() = weights_.out;
    float* const y = output_of(api_, context, shape);
    kernels::tile_kernels().linear(weights_, x.as<float>(), y, x.size() / weights_.in, threads_of(api_, context));
  }

 private:
  const Api& api_;
  kernels::PackedLinear weights_;
};

// ONNX's Conv in two or three dimensions as `sora_export` writes it into int8 decoders, its weights int8.
class Convolution {
 public:
  static constexpr const char* kName = "Conv";
  static constexpr std::size_t kInputs = 4;  // x, weights, their scale, bias

  Convolution(const Api& api, const KernelInfo* info) : api_(api) {
    const Tensor weights = constant_of(api, info, 1), scale = constant_of(api, info, 2),
                 bias = constant_of(api, info, 3);
    const std::vector<std::int64_t>& shape = weights.shape;
    rank_ = shape.size();
    if ((rank_ != 4 && rank_ != 5) || scale.size() != shape[0]) {
      throw std::invalid_argument(
          "sora.cpu convolution takes constant weights [out, in, (frames,) rows, columns] and a scale for each output");
    }
    const std::int64_t kernel[3] = {rank_ == 5 ? shape[2] : 1, shape[rank_ - 2], shape[rank_ - 1]};
    weights_ = kernels::pack_convolution(weights.as<std::int8_t>(), scale.as<float>(), bias.as<float>(), shape[0],
                                         shape[1], kernel);
  }

  static ElementType input_type(std::size_t index) { return index == 1 ? ElementType::kInt8 : ElementType::kFloat; }
  static bool optional(std::size_t index) { return index == 3; }

  void compute(KernelContext* context) const {
    const Tensor x = input_of(api_, context, 0);
    if (x.shape.size() != rank_ || x.shape[1] != weights_.in || (rank_ == 5 && x.shape[2] < weights_.kernel[0])) {
      throw std::invalid_argument("sora.cpu convolution: x does not fit its weights");
    }
    std::vector<std::int64_t> shape = x.shape;
    shape[1] = weights_.out;
    if (rank_ == 5) shape[2] -= weights_.kernel[0] - 1;
    float* const y = output_of(api_, context, shape);
    const kernels::ConvolutionArguments arguments{
        x.as<float>(), y, x.shape[0], rank_ == 5 ? x.shape[2] : 1, x.shape[rank_ - 2], x.shape[rank_ - 1]};
    kernels::tile_kernels().convolution(weights_, arguments, threads_of(api_, context));
  }

 private:
  const Api& api_;
  std::size_t rank_ = 0;
  kernels::PackedConvolution weights_{};
};

// The table of functions by which ONNX Runtime makes and runs a kernel.
template <class Kernel>
struct Registered : Operator {
  Registered() : Operator{} {
    version = kApiVersion;
    name = [](const Operator*) { return Kernel::kName; };
    provider = [](const Operator*) -> const char* { return nullptr; };  // the CPU
    input_type = [](const Operator*, std::size_t index) { return Kernel::input_type(index); };
    num_inputs = [](const Operator*) { return Kernel::kInputs; };
    output_type = [](const Operator*, std::size_t) { return ElementType::kFloat; };
    num_outputs = [](const Operator*) { return std::size_t{1}; };
    destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    input_presence = [](const Operator*, std::size_t index) {
      return Kernel::optional(index) ? Presence::kOptional : Presence::kRequired;
    };
    output_presence = [](const Operator*, std::size_t) { return Presence::kRequired; };
    input_memory = [](const Operator*, std::size_t) { return 0; };
    for (auto& each : variadic) each = [](const Operator*) { return 0; };
    create_kernel = [](const Operator*, const Api* api, const KernelInfo* info, void** out) {
      return guarded(*api, [&] { *out = new Kernel(*api, info); });
    };
    compute = [](void* kernel, KernelContext* context) {
      return guarded(*api_of_process, [&] { static_cast<Kernel*>(kernel)->compute(context); });
    };
    first_version = [](const Operator*) { return 1; };
    last_version = [](const Operator*) { return 1; };
  }

  static const Api* api_of_process;
};
template <class Kernel>
const Api* Registered<Kernel>::api_of_process = nullptr;

template <class Kernel>
void add(const Api& api, Domain* domain) {
  static const Registered<Kernel> registered;
  Registered<Kernel>::api_of_process = &api;
  check(add_operator(api, domain, &registered));
}

}  // namespace
}  // namespace sora::onnxruntime

// What ONNX Runtime calls when a session's options name this library.
extern "C" __attribute__((visibility("default"))) sora::onnxruntime::Status* RegisterCustomOps(
    sora::onnxruntime::SessionOptions* options, const sora::onnxruntime::ApiBase* base) {
  using namespace sora::onnxruntime;
  const Api* api = base->get_api(kApiVersion);
  if (api == nullptr) return nullptr;  // an older release: the session finds no such operators and says so
  return guarded(*api, [&] {
    static Domain* const domain = [&] {
      Domain* made = nullptr;
      check(create_domain(*api, "sora.cpu", &made));
      add<MultiHeadAttention>(*api, made);
      add<DynamicQuantizeMatMul>(*api, made);
      add<Convolution>(*api, made);
      return made;
    }();  // lives as long as the process: sessions keep pointers into it
    check(add_domain(*api, options, domain));
  });
}
