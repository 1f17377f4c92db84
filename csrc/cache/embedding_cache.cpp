// The embedding cache: a list in order of use, an index into it, and the computations under way.
#include "cache/embedding_cache.h"

#include <utility>

#include "core/error.h"

namespace sora::cache {
namespace {

std::int64_t size_in_bytes(const Entry& entry) { return static_cast<std::int64_t>(entry.data.size()); }

std::int64_t checked_capacity(std::int64_t capacity_bytes) {
  core::require(capacity_bytes >= 0,
                "capacity_bytes = " + std::to_string(capacity_bytes) + " is negative; use 0 to keep nothing");
  return capacity_bytes;
}

}  // namespace

EmbeddingCache::EmbeddingCache(std::int64_t capacity_bytes) { stats_.capacity = checked_capacity(capacity_bytes); }

EntryPointer EmbeddingCache::get_or_compute(const std::string& key, const std::function<Entry()>& compute) {
  core::require(compute != nullptr, "compute is empty; pass a function that returns an Entry");
  std::unique_lock lock(mutex_);
  if (EntryPointer entry = await(key, lock)) {
    ++stats_.hits;
    return entry;
  }
  const auto flight = std::make_shared<Flight>();
  flight->owner = std::this_thread::get_id();
  flights_.emplace(key, flight);
  ++stats_.misses;
  lock.unlock();
  try {
    const auto entry = std::make_shared<const Entry>(compute());
    lock.lock();
    keep(key, entry);
    finish(key, *flight, entry);
    return entry;
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    finish(key, *flight, nullptr);
    throw;
  }
}

EntryPointer EmbeddingCache::find(const std::string& key) {
  const std::lock_guard lock(mutex_);
  EntryPointer entry = touch(key);
  ++(entry ? stats_.hits : stats_.misses);
  return entry;
}

EntryPointer EmbeddingCache::insert(const std::string& key, Entry entry) {
  auto shared = std::make_shared<const Entry>(std::move(entry));
  const std::lock_guard lock(mutex_);
  keep(key, shared);
  return shared;
}

bool EmbeddingCache::contains(const std::string& key) const {
  const std::lock_guard lock(mutex_);
  return node_by_key_.contains(key);
}

void EmbeddingCache::clear() {
  const std::lock_guard lock(mutex_);
  node_by_key_.clear();
  nodes_.clear();
  stats_.bytes = 0;
}

void EmbeddingCache::set_capacity(std::int64_t capacity_bytes) {
  const std::lock_guard lock(mutex_);
  stats_.capacity = checked_capacity(capacity_bytes);
  evict_down_to(stats_.capacity);
}

CacheStats EmbeddingCache::stats() const {
  const std::lock_guard lock(mutex_);
  CacheStats snapshot = stats_;
  snapshot.entries = static_cast<std::int64_t>(nodes_.size());
  return snapshot;
}

EntryPointer EmbeddingCache::touch(const std::string& key) {
  const auto found = node_by_key_.find(key);
  if (found == node_by_key_.end()) return nullptr;
  nodes_.splice(nodes_.begin(), nodes_, found->second);
  return found->second->entry;
}

// The entry, from the cache or from the computation of another thread; null if the caller is to
// compute it.
EntryPointer EmbeddingCache::await(const std::string& key, std::unique_lock<std::mutex>& lock) {
  for (;;) {
    if (EntryPointer entry = touch(key)) return entry;
    const auto found = flights_.find(key);
    if (found == flights_.end()) return nullptr;
    const std::shared_ptr<Flight> flight = found->second;
    core::require(!would_wait_for_itself(*flight), "a computation asks for the key it computes; remove the cycle");
    waiting_[std::this_thread::get_id()] = flight.get();
    flight->ended.wait(lock, [&] { return flight->finished; });
    waiting_.erase(std::this_thread::get_id());
    if (flight->result) return flight->result;
  }
}

// Follows who waits for whom. A finished flight ends the chain: its waiter is about to wake.
bool EmbeddingCache::would_wait_for_itself(const Flight& flight) const {
  const Flight* next = &flight;
  while (!next->finished) {
    if (next->owner == std::this_thread::get_id()) return true;
    const auto found = waiting_.find(next->owner);
    if (found == waiting_.end()) return false;
    next = found->second;
  }
  return false;
}

void EmbeddingCache::keep(const std::string& key, const EntryPointer& entry) {
  if (const auto found = node_by_key_.find(key); found != node_by_key_.end()) drop(found->second);
  const std::int64_t bytes = size_in_bytes(*entry);
  if (bytes > stats_.capacity) return;
  evict_down_to(stats_.capacity - bytes);
  nodes_.push_front({key, entry});
  try {
    node_by_key_.emplace(nodes_.front().key, nodes_.begin());
  } catch (...) {  // out of memory must not leave a node that nothing finds
    nodes_.pop_front();
    throw;
  }
  stats_.bytes += bytes;
}

void EmbeddingCache::drop(std::list<Node>::iterator node) {
  stats_.bytes -= size_in_bytes(*node->entry);
  node_by_key_.erase(node->key);
  nodes_.erase(node);
}

void EmbeddingCache::evict_down_to(std::int64_t bytes) {
  while (stats_.bytes > bytes) {
    drop(std::prev(nodes_.end()));
    ++stats_.evicted;
  }
}

void EmbeddingCache::finish(const std::string& key, Flight& flight, EntryPointer result) noexcept {
  flights_.erase(key);
  flight.finished = true;
  flight.result = std::move(result);
  flight.ended.notify_all();
}

}  // namespace sora::cache
