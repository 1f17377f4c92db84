// The part of ONNX Runtime's C interface that an operator needs, declared here: its Python package brings no headers.
//
// OrtApi is a table of functions that only grows at its end, so that a position names the same function in every
// release since it was added (onnxruntime.ai/docs/api/c/struct_ort_api.html); the newest used here is of version 17.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sora::onnxruntime {

inline constexpr std::uint32_t kApiVersion = 17;

struct Status;  // null: all is well
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct ShapeInfo;

struct Api {
  const void* functions[275];
};

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*get_version)();
};

// The function at a position of the table, as the type it has there.
template <std::size_t kPosition, class... Arguments>
Status* call(const Api& api, Arguments... arguments) {
  using Function = Status* (*)(Arguments...);
  return reinterpret_cast<Function>(const_cast<void*>(api.functions[kPosition]))(arguments...);
}

inline Status* create_domain(const Api& api, const char* name, Domain** out) { return call<26>(api, name, out); }
inline Status* add_domain(const Api& api, SessionOptions* options, Domain* domain) {
  return call<28>(api, options, domain);
}
inline Status* tensor_data(const Api& api, Value* value, void** out) { return call<51>(api, value, out); }
inline Status* dimensions_count(const Api& api, const ShapeInfo* info, std::size_t* out) {
  return call<61>(api, info, out);
}
inline Status* dimensions(const Api& api, const ShapeInfo* info, std::int64_t* out, std::size_t count) {
  return call<62>(api, info, out, count);
}
inline Status* tensor_shape(const Api& api, const Value* value, ShapeInfo** out) { return call<65>(api, value, out); }
inline Status* attribute(const Api& api, const KernelInfo* info, const char* name, float* out) {
  return call<85>(api, info, name, out);
}
inline Status* attribute(const Api& api, const KernelInfo* info, const char* name, std::int64_t* out) {
  return call<86>(api, info, name, out);
}
inline Status* input_count(const Api& api, const KernelContext* context, std::size_t* out) {
  return call<88>(api, context, out);
}
inline Status* input(const Api& api, const KernelContext* context, std::size_t index, const Value** out) {
  return call<90>(api, context, index, out);
}
inline Status* output(const Api& api, KernelContext* context, std::size_t index, const std::int64_t* shape,
                      std::size_t rank, Value** out) {
  return call<91>(api, context, index, shape, rank, out);
}
inline Status* constant_input(const Api& api, const KernelInfo* info, std::size_t index, int* is_constant,
                              const Value** out) {
  return call<249>(api, info, index, is_constant, out);
}
inline Status* parallel_for(const Api& api, const KernelContext* context, void (*body)(void*, std::size_t),
                            std::size_t total, std::size_t num_batches, void* data) {
  return call<274>(api, context, body, total, num_batches, data);
}
inline Status* failure(const Api& api, const char* message) {
  constexpr int kFail = 1;
  return call<0>(api, kFail, message);
}
inline void release(const Api& api, Status* status) {
  reinterpret_cast<void (*)(Status*)>(const_cast<void*>(api.functions[93]))(status);
}
inline void release(const Api& api, ShapeInfo* info) {
  reinterpret_cast<void (*)(ShapeInfo*)>(const_cast<void*>(api.functions[99]))(info);
}

enum class ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3 };
enum class Presence : int { kRequired = 0, kOptional = 1 };

// OrtCustomOp, up to what version 17 has.
struct Operator {
  std::uint32_t version;
  void* (*create_kernel_v1)(const Operator*, const Api*, const KernelInfo*);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);
  ElementType (*input_type)(const Operator*, std::size_t);
  std::size_t (*num_inputs)(const Operator*);
  ElementType (*output_type)(const Operator*, std::size_t);
  std::size_t (*num_outputs)(const Operator*);
  void (*compute_v1)(void*, KernelContext*);
  void (*destroy)(void*);
  Presence (*input_presence)(const Operator*, std::size_t);
  Presence (*output_presence)(const Operator*, std::size_t);
  int (*input_memory)(const Operator*, std::size_t);
  int (*variadic[4])(const Operator*);
  Status* (*create_kernel)(const Operator*, const Api*, const KernelInfo*, void**);
  Status* (*compute)(void*, KernelContext*);
  Status* (*infer_shape)(const Operator*, void*);
  int (*first_version)(const Operator*);
  int (*last_version)(const Operator*);
};

inline Status* add_operator(const Api& api, Domain* domain, const Operator* op) { return call<27>(api, domain, op); }

}  // namespace sora::onnxruntime
