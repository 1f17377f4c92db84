// Fork and join on short-lived threads: a step is tens of milliseconds, a thread tens of microseconds.
#include "core/parallel.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace sora::core::detail {

void run_blocks(std::int64_t num_blocks, int num_threads, const void* body,
                void (*call)(const void* body, std::int64_t block)) {
  const std::int64_t threads = std::clamp<std::int64_t>(num_threads, 1, std::max<std::int64_t>(num_blocks, 1));
  const auto run_range = [=](std::int64_t thread) {
    const std::int64_t end = num_blocks * (thread + 1) / threads;
    for (std::int64_t block = num_blocks * thread / threads; block < end; ++block) call(body, block);
  };
  std::vector<std::jthread> others;
  others.reserve(static_cast<std::size_t>(threads - 1));
  for (std::int64_t thread = 1; thread < threads; ++thread) others.emplace_back(run_range, thread);
  run_range(0);
}

}  // namespace sora::core::detail
