// Fork and join over independent blocks.
#pragma once

#include <cstdint>

namespace sora::core {

namespace detail {
void run_blocks(std::int64_t num_blocks, int num_threads, const void* body,
                void (*call)(const void* body, std::int64_t block));
}  // namespace detail

// Calls body(block) once for every block in [0, num_blocks), on at most num_threads threads.
// Blocks are handed out as contiguous ranges, so which thread runs a block is fixed; a body whose
// blocks do not share results is therefore independent of num_threads. The body must not throw.
template <class Body>
void parallel_for(std::int64_t num_blocks, int num_threads, const Body& body) {
  detail::run_blocks(num_blocks, num_threads, &body,
                     [](const void* self, std::int64_t block) { (*static_cast<const Body*>(self))(block); });
}

}  // namespace sora::core
