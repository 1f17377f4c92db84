// A cache of text embeddings: bounded in bytes, the least recently used goes first, and a key is
// computed once however many ask for it.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

namespace sora::cache {

// One embedding: its elements, row-major, and its shape. The element type is part of the key.
struct Entry {
  std::vector<std::byte> data;
  std::vector<std::int64_t> shape;
};

// An entry as readers hold it: immutable, and alive as long as anyone holds it, evicted or not.
using EntryPointer = std::shared_ptr<const Entry>;

// A snapshot of the counters. Every find and get_or_compute is one hit or one miss.
struct CacheStats {
  std::int64_t hits = 0;     // served without running the caller's own compute
  std::int64_t misses = 0;   // the caller's compute was started, or find returned null
  std::int64_t evicted = 0;  // entries dropped to stay within the capacity
  std::int64_t bytes = 0;    // sum of data sizes now held, at most `capacity`
  std::int64_t entries = 0;
  std::int64_t capacity = 0;  // bytes
};

// Content-addressed cache: the key names everything the embedding depends on (text encoder, token
// ids, element type), so an entry never goes stale and a key always means the same value.
//
// Only Entry::data counts towards the capacity; keys and shapes, some hundred bytes an entry, do
// not. Capacity 0 keeps nothing but still joins simultaneous computations of one key.
//
// All members may be called from any thread. No call may be running when the cache is destroyed.
class EmbeddingCache {
 public:
  // Throws std::invalid_argument if capacity_bytes < 0.
  explicit EmbeddingCache(std::int64_t capacity_bytes);

  // The entry of `key`, computed by `compute` if it is absent and nobody is computing it; never
  // null. Compute runs on the calling thread outside the lock. Callers that ask meanwhile wait and
  // share its result: each counts as a hit.
  //
  // If compute throws, the exception reaches the caller that ran it, nothing is kept, and one of
  // those waiting runs its own compute (a miss). An entry larger than the capacity is returned to
  // all who wait but not kept.
  //
  // Compute may ask this cache for other keys. If it asks for its own key, directly or round a ring
  // of computing threads, the request that would close the ring throws std::invalid_argument.
  // Also throws it if `compute` is empty.
  EntryPointer get_or_compute(const std::string& key, const std::function<Entry()>& compute);

  // The entry of `key`, now the most recently used, or null; counts as a hit or a miss. Does not
  // wait for a computation.
  EntryPointer find(const std::string& key);

  // Makes `entry` the most recently used entry of `key`, in place of what was there, and returns
  // it. Larger than the capacity, it is returned but not kept.
  EntryPointer insert(const std::string& key, Entry entry);

  // Whether `key` is held; changes neither order nor counters.
  bool contains(const std::string& key) const;

  // Drops all entries. Counters stay, and nothing counts as evicted. A computation under way keeps
  // its result when it ends.
  void clear();

  // Changes the bound in bytes and evicts down to it. Throws std::invalid_argument if negative.
  void set_capacity(std::int64_t capacity_bytes);

  CacheStats stats() const;

 private:
  struct Node {
    std::string key;
    EntryPointer entry;
  };

  // One computation and those who wait for it.
  struct Flight {
    std::thread::id owner;
    bool finished = false;
    EntryPointer result;  // null if the computation failed
    std::condition_variable ended;
  };

  // All of these expect mutex_ to be held.
  EntryPointer touch(const std::string& key);
  EntryPointer await(const std::string& key, std::unique_lock<std::mutex>& lock);
  bool would_wait_for_itself(const Flight& flight) const;
  void keep(const std::string& key, const EntryPointer& entry);
  void drop(std::list<Node>::iterator node);
  void evict_down_to(std::int64_t bytes);
  void finish(const std::string& key, Flight& flight, EntryPointer result) noexcept;

  mutable std::mutex mutex_;
  std::list<Node> nodes_;                                                        // most recently used first
  std::unordered_map<std::string_view, std::list<Node>::iterator> node_by_key_;  // views Node::key
  std::unordered_map<std::string, std::shared_ptr<Flight>> flights_;
  std::unordered_map<std::thread::id, const Flight*> waiting_;  // what each blocked thread awaits
  CacheStats stats_;
};

}  // namespace sora::cache
