// The embedding cache on one thread: order, bounds, counters, failures, re-entrance.
#include "cache/embedding_cache.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

using sora::cache::EmbeddingCache;
using sora::cache::Entry;
using sora::cache::EntryPointer;

namespace {

Entry entry_of(std::size_t bytes, int value = 0) {
  return {std::vector<std::byte>(bytes, static_cast<std::byte>(value)), {static_cast<std::int64_t>(bytes)}};
}

}  // namespace

TEST(cache_computes_once) {
  EmbeddingCache cache(100);
  int calls = 0;
  const auto compute = [&] {
    ++calls;
    return entry_of(10, 7);
  };
  const EntryPointer first = cache.get_or_compute("a", compute);
  const EntryPointer second = cache.get_or_compute("a", compute);
  CHECK_EQUAL(calls, 1);
  CHECK(first == second);
  CHECK(first->data == std::vector<std::byte>(10, std::byte{7}));
  CHECK(first->shape == std::vector<std::int64_t>{10});
  CHECK_EQUAL(cache.stats().hits, 1);
  CHECK_EQUAL(cache.stats().misses, 1);
}

TEST(cache_evicts_the_least_recently_used) {
  EmbeddingCache cache(30);
  for (const char* key : {"a", "b", "c"}) cache.insert(key, entry_of(10));
  CHECK(cache.find("a") != nullptr);
  cache.insert("d", entry_of(10));
  CHECK(cache.contains("a") && !cache.contains("b") && cache.contains("c"));
  cache.get_or_compute("c", [] { return entry_of(10); });
  cache.insert("e", entry_of(10));
  CHECK(!cache.contains("a") && cache.contains("c") && cache.contains("d"));
  CHECK_EQUAL(cache.stats().evicted, 2);
}

TEST(cache_contains_does_not_touch) {
  EmbeddingCache cache(20);
  cache.insert("a", entry_of(10));
  cache.insert("b", entry_of(10));
  CHECK(cache.contains("a"));
  cache.insert("c", entry_of(10));
  CHECK(!cache.contains("a"));
  CHECK_EQUAL(cache.stats().hits + cache.stats().misses, 0);
}

TEST(cache_is_bounded_in_bytes) {
  EmbeddingCache cache(100);
  for (int i = 0; i < 10; ++i) cache.insert(std::to_string(i), entry_of(10));
  CHECK_EQUAL(cache.stats().bytes, 100);
  CHECK_EQUAL(cache.stats().evicted, 0);
  cache.insert("large", entry_of(95));
  CHECK_EQUAL(cache.stats().bytes, 95);
  CHECK_EQUAL(cache.stats().entries, 1);
  CHECK_EQUAL(cache.stats().evicted, 10);
}

TEST(cache_returns_but_does_not_keep_the_oversized) {
  EmbeddingCache cache(20);
  cache.insert("a", entry_of(20));
  CHECK_EQUAL(cache.get_or_compute("b", [] { return entry_of(21); })->data.size(), 21U);
  CHECK_EQUAL(cache.insert("c", entry_of(21))->data.size(), 21U);
  CHECK(cache.contains("a") && !cache.contains("b") && !cache.contains("c"));
  CHECK_EQUAL(cache.stats().evicted, 0);
}

TEST(cache_insert_replaces) {
  EmbeddingCache cache(20);
  cache.insert("a", entry_of(10, 1));
  cache.insert("a", entry_of(15, 2));
  CHECK_EQUAL(cache.stats().bytes, 15);
  CHECK_EQUAL(cache.stats().entries, 1);
  CHECK(cache.find("a")->data.front() == std::byte{2});
  cache.insert("a", entry_of(21));  // the old value does not survive its replacement
  CHECK(cache.find("a") == nullptr);
  CHECK_EQUAL(cache.stats().bytes, 0);
  CHECK_EQUAL(cache.stats().evicted, 0);
}

TEST(cache_of_capacity_zero_keeps_nothing) {
  EmbeddingCache cache(0);
  cache.get_or_compute("a", [] { return entry_of(1); });
  CHECK(!cache.contains("a"));
}

TEST(cache_readers_outlive_eviction) {
  EmbeddingCache cache(10);
  const EntryPointer held = cache.insert("a", entry_of(10, 3));
  cache.insert("b", entry_of(10));
  CHECK(!cache.contains("a"));
  CHECK(held->data[9] == std::byte{3});
}

TEST(cache_set_capacity_evicts_down) {
  EmbeddingCache cache(30);
  for (const char* key : {"a", "b", "c"}) cache.insert(key, entry_of(10));
  cache.set_capacity(15);
  CHECK(cache.contains("c"));
  CHECK_EQUAL(cache.stats().entries, 1);
  CHECK_EQUAL(cache.stats().evicted, 2);
  CHECK_EQUAL(cache.stats().capacity, 15);
  CHECK_THROWS(cache.set_capacity(-1), std::invalid_argument);
  CHECK_EQUAL(cache.stats().capacity, 15);
  CHECK_THROWS(EmbeddingCache(-1), std::invalid_argument);
}

TEST(cache_clear_keeps_the_counters) {
  EmbeddingCache cache(30);
  cache.get_or_compute("a", [] { return entry_of(10); });
  cache.clear();
  CHECK(cache.find("a") == nullptr);
  const auto stats = cache.stats();
  CHECK_EQUAL(stats.bytes, 0);
  CHECK_EQUAL(stats.entries, 0);
  CHECK_EQUAL(stats.misses, 2);
  CHECK_EQUAL(stats.evicted, 0);
}

TEST(cache_failure_is_not_kept) {
  EmbeddingCache cache(30);
  const auto failing = []() -> Entry { throw std::runtime_error("no encoder"); };
  CHECK_THROWS(cache.get_or_compute("a", failing), std::runtime_error);
  CHECK(!cache.contains("a"));
  CHECK_EQUAL(cache.get_or_compute("a", [] { return entry_of(3); })->data.size(), 3U);
  CHECK_EQUAL(cache.stats().misses, 2);
  CHECK_THROWS(cache.get_or_compute("b", nullptr), std::invalid_argument);
}

TEST(cache_compute_may_ask_for_another_key) {
  EmbeddingCache cache(30);
  const auto inner = [] { return entry_of(2); };
  const auto outer = [&] { return entry_of(cache.get_or_compute("inner", inner)->data.size() + 1); };
  CHECK_EQUAL(cache.get_or_compute("outer", outer)->data.size(), 3U);
  CHECK(cache.contains("inner") && cache.contains("outer"));
}

TEST(cache_compute_may_not_ask_for_its_own_key) {
  EmbeddingCache cache(30);
  const auto recursive = [&] { return *cache.get_or_compute("a", [] { return entry_of(1); }); };
  CHECK_THROWS(cache.get_or_compute("a", recursive), std::invalid_argument);
  CHECK_EQUAL(cache.get_or_compute("a", [] { return entry_of(1); })->data.size(), 1U);
}

TEST(cache_insert_during_compute_is_replaced_by_its_result) {
  EmbeddingCache cache(30);
  cache.get_or_compute("a", [&] {
    cache.insert("a", entry_of(5));
    return entry_of(6);
  });
  CHECK_EQUAL(cache.find("a")->data.size(), 6U);
  CHECK_EQUAL(cache.stats().bytes, 6);
}
