// Tensors, errors and threads of ONNX Runtime for the operators of operators.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <functional>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
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

#if defined(__linux__)
// Whether all that lies in whole pages is what a file holds: a page that was written to, in a private mapping too, is
// an anonymous one (Documentation/admin-guide/mm/pagemap.rst; bits 61 to 63).
inline bool is_unchanged_file(std::uintptr_t begin, std::uintptr_t end, std::uintptr_t page) {
  constexpr std::uint64_t kOfFile = 1ULL << 61, kSwapped = 1ULL << 62, kPresent = 1ULL << 63;
  std::vector<std::uint64_t> pages((end - begin) / page);
  std::ifstream map("/proc/self/pagemap", std::ios::binary);
  map.seekg(static_cast<std::streamoff>(begin / page * sizeof(std::uint64_t)));
  if (!map.read(reinterpret_cast<char*>(pages.data()), static_cast<std::streamsize>(pages.size() * 8))) return false;
  return std::all_of(pages.begin(), pages.end(), [](std::uint64_t entry) {
    return (entry & kSwapped) == 0 && ((entry & kPresent) == 0 || (entry & kOfFile) != 0);
  });
}
#endif

// Takes the pages of what was packed out of this process, where they are a file's: they would be in memory twice.
// Whoever reads them again finds them in the page cache or on the disk.
void give_back(const Tensor& packed) {
#if defined(__linux__)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(packed.data);
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + static_cast<std::uintptr_t>(packed.size())) / page * page;
  if (packed.data != nullptr && begin < end && is_unchanged_file(begin, end, page)) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
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
