// A test framework in one header: TEST registers a test, CHECK_* record failures and go on.
// Link exactly one file that calls sora::test::run from main (test_main.cpp).
#pragma once

#include <atomic>
#include <cmath>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sora::test {

struct Test {
  Test(const char* n, void (*b)()) : name(n), body(b) { all.push_back(this); }
  const char* name;
  void (*body)();
  static inline std::vector<const Test*> all;
};

inline std::atomic<int> failures{0};  // checks may run on any thread

inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

template <class A, class B>
void check_equal(const A& a, const B& b, const char* expression, const char* file, int line) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B> && !std::is_same_v<A, B>) {
    if (std::cmp_equal(a, b)) return;
  } else {
    if (a == b) return;
  }
  std::ostringstream text;
  text << expression << ": " << a << " != " << b;
  fail(file, line, text.str());
}

inline void check_near(double a, double b, double tolerance, const char* expression, const char* file, int line) {
  if (std::abs(a - b) <= tolerance) return;  // false for NaN
  std::ostringstream text;
  text.precision(17);
  text << expression << ": |" << a << " - " << b << "| > " << tolerance;
  fail(file, line, text.str());
}

// Runs the tests whose name contains argv[1] (all without it). Returns main's exit code: 1 if any
// failed or none ran.
inline int run(int argc, char** argv) {
  int passed = 0;
  int failed = 0;
  for (const Test* test : Test::all) {
    if (argc > 1 && std::string(test->name).find(argv[1]) == std::string::npos) continue;
    const int failures_before = failures;
    try {
      test->body();
    } catch (const std::exception& error) {
      fail(test->name, 0, std::string("unexpected exception: ") + error.what());
    }
    ++(failures == failures_before ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace sora::test

#define TEST(name)                                                       \
  static void test_##name();                                             \
  static const ::sora::test::Test registered_##name{#name, test_##name}; \
  static void test_##name()

#define CHECK(x) ((x) ? (void)0 : ::sora::test::fail(__FILE__, __LINE__, #x " is false"))
#define CHECK_EQUAL(a, b) ::sora::test::check_equal((a), (b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_NEAR(a, b, tolerance) ::sora::test::check_near((a), (b), (tolerance), #a " ~ " #b, __FILE__, __LINE__)
#define CHECK_THROWS(expression, Type)                                           \
  try {                                                                          \
    (void)(expression);                                                          \
    ::sora::test::fail(__FILE__, __LINE__, #expression " did not throw " #Type); \
  } catch (const Type&) {                                                        \
  }
