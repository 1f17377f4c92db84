// The embedding cache on many threads: single flight, hand-over after a failure, rings, stress.
#include <atomic>
#include <barrier>
#include <chrono>
#include <latch>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cache/embedding_cache.h"
#include "check.h"

using sora::cache::EmbeddingCache;
using sora::cache::Entry;
using sora::cache::EntryPointer;

namespace {

constexpr int kThreads = 8;

Entry entry_of(std::size_t bytes, int value) {
  return {std::vector<std::byte>(bytes, static_cast<std::byte>(value)), {static_cast<std::int64_t>(bytes)}};
}

template <class Body>
void on_all_threads(const Body& body) {
  std::vector<std::jthread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back([&body, i] { body(i); });
}

}  // namespace

TEST(cache_single_flight) {
  EmbeddingCache cache(100);
  std::atomic<int> calls{0};
  std::latch started(kThreads);
  std::vector<EntryPointer> results(kThreads);
  on_all_threads([&](int i) {
    started.count_down();
    results[static_cast<std::size_t>(i)] = cache.get_or_compute("a", [&] {
      started.wait();
      ++calls;
      return entry_of(10, 1);
    });
  });
  CHECK_EQUAL(calls.load(), 1);
  for (const EntryPointer& result : results) CHECK(result != nullptr && result == results[0]);
  CHECK_EQUAL(cache.stats().misses, 1);
  CHECK_EQUAL(cache.stats().hits, kThreads - 1);
}

// Those who wait get a result that is not kept. The pause lets them arrive; one that comes too late
// computes again, so the counts have room for all but one of them to be late.
TEST(cache_shares_what_it_does_not_keep) {
  EmbeddingCache cache(0);
  std::atomic<int> calls{0};
  std::latch started(kThreads);
  on_all_threads([&](int) {
    started.count_down();
    const EntryPointer entry = cache.get_or_compute("a", [&] {
      started.wait();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      ++calls;
      return entry_of(10, 1);
    });
    CHECK_EQUAL(entry->data.size(), 10U);
  });
  CHECK(calls < kThreads);
  CHECK_EQUAL(cache.stats().misses, calls.load());
  CHECK_EQUAL(cache.stats().hits, kThreads - calls);
  CHECK(!cache.contains("a"));
}

TEST(cache_keys_are_computed_at_the_same_time) {
  EmbeddingCache cache(1000);
  std::barrier together(kThreads);  // opens only if all computes run at once
  on_all_threads([&](int i) {
    cache.get_or_compute(std::to_string(i), [&] {
      together.arrive_and_wait();
      return entry_of(1, i);
    });
  });
  CHECK_EQUAL(cache.stats().entries, kThreads);
}

// The first three computations fail: each failure reaches its own caller, another takes over.
TEST(cache_hands_over_after_an_exception) {
  EmbeddingCache cache(100);
  std::atomic<int> calls{0};
  std::atomic<int> failed{0};
  std::atomic<int> served{0};
  std::atomic<int> at_once{0};
  std::latch waiting(kThreads);
  on_all_threads([&](int) {
    waiting.count_down();
    try {
      const EntryPointer entry = cache.get_or_compute("a", [&] {
        waiting.wait();
        CHECK_EQUAL(++at_once, 1);
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        --at_once;
        if (++calls <= 3) throw std::runtime_error("no memory");
        return entry_of(10, 1);
      });
      served += entry->data.size() == 10;
    } catch (const std::runtime_error&) {
      ++failed;
    }
  });
  CHECK_EQUAL(calls.load(), 4);
  CHECK_EQUAL(failed.load(), 3);
  CHECK_EQUAL(served.load(), kThreads - 3);
  CHECK_EQUAL(cache.stats().misses, 4);
  CHECK_EQUAL(cache.stats().hits, kThreads - 4);
}

// Two computations ask for each other's key: one is refused, none hangs.
TEST(cache_refuses_a_ring_of_threads) {
  EmbeddingCache cache(100);
  std::barrier both_started(2);
  std::atomic<int> refused{0};
  const auto ask = [&](const std::string& mine, const std::string& other) {
    try {
      cache.get_or_compute(mine, [&] {
        both_started.arrive_and_wait();
        return *cache.get_or_compute(other, [] { return entry_of(1, 0); });
      });
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  };
  {
    std::jthread first([&] { ask("a", "b"); });
    std::jthread second([&] { ask("b", "a"); });
  }
  CHECK_EQUAL(refused.load(), 1);
}

// A thread that has just finished "inner" asks for "outer" while the one computing "outer" has not
// yet woken from its wait for "inner": that is no ring.
TEST(cache_does_not_mistake_a_late_waiter_for_a_ring) {
  EmbeddingCache cache(0);
  for (int round = 0; round < 300; ++round) {
    std::latch outer_started(1);
    std::latch inner_started(1);
    std::atomic<int> refused{0};
    const auto quietly = [&](const auto& body) {
      try {
        body();
      } catch (const std::invalid_argument&) {
        ++refused;
      }
    };
    const auto inner = [&] { return entry_of(1, 0); };
    const auto outer = [&] {
      outer_started.count_down();
      inner_started.wait();
      return *cache.get_or_compute("inner", inner);
    };
    {
      std::jthread first([&] { quietly([&] { cache.get_or_compute("outer", outer); }); });
      std::jthread second([&] {
        quietly([&] {
          outer_started.wait();
          cache.get_or_compute("inner", [&] {
            inner_started.count_down();
            std::this_thread::sleep_for(std::chrono::microseconds(200));
            return entry_of(1, 0);
          });
          cache.get_or_compute("outer", inner);
        });
      });
    }
    CHECK_EQUAL(refused.load(), 0);
  }
}

// Random operations; the value of a key is its number, so a mixed-up entry shows.
TEST(cache_stress) {
  constexpr int kKeys = 24;
  constexpr int kOperations = 4000;
  EmbeddingCache cache(150);
  std::atomic<std::int64_t> lookups{0};
  const auto size_of = [](int key) { return static_cast<std::size_t>(key % 12 * 5); };
  on_all_threads([&](int thread) {
    std::minstd_rand random(static_cast<unsigned>(thread + 1));
    for (int i = 0; i < kOperations; ++i) {
      const int number = static_cast<int>(random() % kKeys);
      const std::string key = std::to_string(number);
      const auto make = [&] { return entry_of(size_of(number), number); };
      EntryPointer entry;
      const auto operation = random() % 100;
      if (operation < 60) {
        const bool fails = random() % 8 == 0;
        ++lookups;
        try {
          entry = cache.get_or_compute(key, [&] {
            if (fails) throw std::runtime_error("fails");
            return make();
          });
        } catch (const std::runtime_error&) {
        }
      } else if (operation < 80) {
        ++lookups;
        entry = cache.find(key);
      } else if (operation < 95) {
        entry = cache.insert(key, make());
      } else if (operation < 98) {
        cache.set_capacity(static_cast<std::int64_t>(100 + random() % 100));
      } else {
        cache.clear();
      }
      if (entry) CHECK(*entry->shape.data() == static_cast<std::int64_t>(size_of(number)));
      if (entry) CHECK(entry->data == make().data);
      const auto stats = cache.stats();
      CHECK(stats.bytes >= 0 && stats.bytes <= stats.capacity);
    }
  });
  cache.set_capacity(200);
  const auto stats = cache.stats();
  std::int64_t bytes = 0;
  std::int64_t entries = 0;
  for (int number = 0; number < kKeys; ++number) {
    if (const EntryPointer entry = cache.find(std::to_string(number))) {
      bytes += static_cast<std::int64_t>(entry->data.size());
      ++entries;
    }
  }
  CHECK_EQUAL(stats.bytes, bytes);
  CHECK_EQUAL(stats.entries, entries);
  CHECK_EQUAL(stats.hits + stats.misses, lookups.load());
  CHECK(stats.evicted > 0);
}
