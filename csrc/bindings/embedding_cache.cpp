// Binds the embedding cache: float32 arrays by key, read-only views out.
#include "cache/embedding_cache.h"

#include <cstring>
#include <memory>
#include <string>

#include "bindings/module.h"

namespace sora::bindings {

namespace {

using cache::CacheStats;
using cache::EmbeddingCache;
using cache::Entry;
using cache::EntryPointer;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

Entry entry_from(const FloatArray& array) {
  Entry entry;
  entry.data.resize(static_cast<std::size_t>(array.nbytes()));
  std::memcpy(entry.data.data(), array.data(), entry.data.size());
  entry.shape.assign(array.shape(), array.shape() + array.ndim());
  return entry;
}

// A read-only view that keeps the entry alive, evicted or not.
py::object view_of(const EntryPointer& entry) {
  if (entry == nullptr) return py::none();
  const py::capsule owner(new EntryPointer(entry), [](void* held) { delete static_cast<EntryPointer*>(held); });
  const std::vector<py::ssize_t> shape(entry->shape.begin(), entry->shape.end());
  py::array_t<float> view(shape, reinterpret_cast<const float*>(entry->data.data()), owner);
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

py::object get_or_compute(EmbeddingCache& self, const py::bytes& key, const py::function& compute) {
  const std::string bytes = key;
  EntryPointer entry;
  {
    const py::gil_scoped_release release;  // waiters must not hold what the computing thread needs
    entry = self.get_or_compute(bytes, [&compute] {
      const py::gil_scoped_acquire acquire;
      return entry_from(compute().cast<FloatArray>());
    });
  }
  return view_of(entry);
}

}  // namespace

void bind_embedding_cache(py::module_& module) {
  py::class_<CacheStats>(module, "CacheStats", "Counters of an embedding cache at one moment.")
      .def_readonly("hits", &CacheStats::hits)
      .def_readonly("misses", &CacheStats::misses)
      .def_readonly("evicted", &CacheStats::evicted)
      .def_readonly("bytes", &CacheStats::bytes)
      .def_readonly("entries", &CacheStats::entries)
      .def_readonly("capacity", &CacheStats::capacity);
  py::class_<EmbeddingCache>(module, "EmbeddingCache",
                             "float32 arrays by content key: bounded in bytes, least recently used out first,\n"
                             "safe for threads, each key computed once however many threads ask.")
      .def(py::init<std::int64_t>(), py::arg("capacity_bytes"))
      .def("get_or_compute", &get_or_compute, py::arg("key"), py::arg("compute"),
           "The array of `key` (read-only); compute() -> float32 array runs if it is absent and nobody computes it.")
      .def(
          "find", [](EmbeddingCache& self, const py::bytes& key) { return view_of(self.find(key)); }, py::arg("key"),
          "The array of `key`, or None; counts as a hit or a miss.")
      .def(
          "insert",
          [](EmbeddingCache& self, const py::bytes& key, const FloatArray& value) {
            return view_of(self.insert(key, entry_from(value)));
          },
          py::arg("key"), py::arg("value"), "Keep a copy of `value` and return it as a read-only array.")
      .def(
          "contains", [](const EmbeddingCache& self, const py::bytes& key) { return self.contains(key); },
          py::arg("key"), "Whether `key` is held; counts nothing.")
      .def("clear", &EmbeddingCache::clear)
      .def("set_capacity", &EmbeddingCache::set_capacity, py::arg("capacity_bytes"))
      .def_property_readonly("stats", &EmbeddingCache::stats);
}

}  // namespace sora::bindings
