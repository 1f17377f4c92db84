// The two ways in which the core refuses: the caller's fault and the world's.
#pragma once

#include <stdexcept>
#include <string>

namespace sora::core {

// Thrown between two steps after a cancellation; bindings turn it into sora_runtime.Cancelled.
class Cancelled : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws std::invalid_argument with `message` unless `condition` holds.
inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace sora::core
