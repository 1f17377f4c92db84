// Tensors, errors and threads of ONNX Runtime for the operators of operators.cpp.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

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

// Lets the system take back the pages of what was packed: they are a file's, and would be in memory twice. What they
// hold stays as it is, whatever memory it is (MADV_PAGEOUT); a system that does not know this does nothing.
void give_back(const Tensor& packed) {
#if defined(__linux__) && defined(MADV_PAGEOUT)
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(packed.data) + kPage - 1) / kPage * kPage;
  const auto end =
      (reinterpret_cast<std::uintptr_t>(packed.data) + static_cast<std::uintptr_t>(packed.size())) / kPage * kPage;
  if (packed.data != nullptr && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT);
#else
  (void)packed;
#endif
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

}  // namespace
}  // namespace sora::onnxruntime
