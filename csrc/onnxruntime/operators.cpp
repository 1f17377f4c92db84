// Operators that ONNX Runtime loads: those of its domain com.microsoft that int8 transformers are made of, with the
// same names, inputs and attributes, on the kernels of tile_kernels.h (and one more, `gelu`). Their domain is sora.cpu;
// a graph's nodes are pointed there when a session is made (sora_runtime.engines.own_kernels).
#include <cmath>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/tile_kernels.h"
#include "onnxruntime/api.h"

namespace sora::onnxruntime {
namespace {

using kernels::Parallel;

class Failed {
 public:
  explicit Failed(Status* status) : status(status) {}
  Status* status;
};

inline void check(Status* status) {
  if (status != nullptr) throw Failed(status);
}

// Runs what may throw where nothing may be thrown.
template <class Body>
Status* guarded(const Api& api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::exception& error) {
    return failure(api, error.what());
  }
}

struct Tensor {
  void* data = nullptr;
  std::vector<std::int64_t> shape;

  template <class Element>
  const Element* as() const {
    return static_cast<const Element*>(data);
  }
  std::int64_t size() const {
    std::int64_t product = 1;
    for (const std::int64_t dimension : shape) product *= dimension;
    return product;
  }
};

Tensor tensor_of(const Api& api, const Value* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  check(tensor_data(api, const_cast<Value*>(value), &tensor.data));
  ShapeInfo* info = nullptr;
  check(tensor_shape(api, value, &info));
  std::size_t rank = 0;
  Status* status = dimensions_count(api, info, &rank);
  tensor.shape.resize(rank);
  if (status == nullptr) status = dimensions(api, info, tensor.shape.data(), rank);
  release(api, info);
  check(status);
  return tensor;
}

Tensor input_of(const Api& api, const KernelContext* context, std::size_t index) {
  const Value* value = nullptr;
  check(input(api, context, index, &value));
  return tensor_of(api, value);
}

// An input that is an initialiser of the graph; empty where it is none, or not given.
Tensor constant_of(const Api& api, const KernelInfo* info, std::size_t index) {
  int is_constant = 0;
  const Value* value = nullptr;
  if (Status* status = constant_input(api, info, index, &is_constant, &value); status != nullptr) {
    release(api, status);
    return {};
  }
  return is_constant != 0 ? tensor_of(api, value) : Tensor{};
}

float* output_of(const Api& api, KernelContext* context, const std::vector<std::int64_t>& shape) {
  Value* value = nullptr;
  check(output(api, context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(tensor_data(api, value, &data));
  return static_cast<float*>(data);
}

// The session's own threads.
Parallel threads_of(const Api& api, const KernelContext* context) {
  return [&api, context](std::int64_t n, const std::function<void(std::int64_t)>& body) {
    const auto call_body = [](void* data, std::size_t i) {
      (*static_cast<const std::function<void(std::int64_t)>*>(data))(static_cast<std::int64_t>(i));
    };
    check(parallel_for(api, context, call_body, static_cast<std::size_t>(n), 0,
                       const_cast<std::function<void(std::int64_t)>*>(&body)));
  };
}

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
  static constexpr std::size_t kInputs = 5;  // x, weights, their scale, their zero point (none), bias

  DynamicQuantizeMatMul(const Api& api, const KernelInfo* info) : api_(api) {
    const Tensor weights = constant_of(api, info, 1), scale = constant_of(api, info, 2),
                 bias = constant_of(api, info, 4);
    if (weights.shape.size() != 2 || scale.data == nullptr || (scale.size() != 1 && scale.size() != weights.shape[1])) {
      throw std::invalid_argument(
          "sora.cpu linear takes constant weights [in, out] and a scale, or one for each column");
    }
    std::int64_t gelu = 0;
    if (Status* status = attribute(api, info, "gelu", &gelu); status != nullptr) release(api, status);  // not given
    weights_ = kernels::pack_linear(weights.as<std::int8_t>(), scale.as<float>(), scale.size() == 1, bias.as<float>(),
                                    weights.shape[0], weights.shape[1], gelu != 0);
  }

  static ElementType input_type(std::size_t index) {
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
