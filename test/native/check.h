#pragma once
// Harness of the native tests: plain executables, no framework.
//
//   #include "check.h"
//   int main() {
//     CHECK(size == 4, "size of %s is %d", name, size);
//     CHECK_CLOSE(got, want, bound, "row %d", row);      NaN equals NaN here, and nothing else
//     CHECK_THROWS(backend.set_threads(0), "ERR_RANGE", "[set_threads] Expected ... but received 0");
//     return finish();                                   prints "N passed, N failed"; exit status 1 on a failure or without checks
//   }
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "../../src/core/error.h"

namespace plumbline_test {

#ifdef PLUMBLINE_EMULATED_ONLY
constexpr bool kEmulatedOnly = true;   // a sanitizer watches the kernels and the test, slowly; what is about the CPU backend is left out
#else
constexpr bool kEmulatedOnly = false;
#endif
// Of a CPU backend that stands beside one with a single thread. A pool that ThreadSanitizer did not see built looks like races to it.
constexpr int32_t kTwoThreads = kEmulatedOnly ? 1 : 2;

inline long passed = 0, failed = 0, skipped = 0;

inline bool report(bool ok, const char* file, int line, const char* expression, const char* format, ...) __attribute__((format(printf, 5, 6)));

inline bool report(bool ok, const char* file, int line, const char* expression, const char* format, ...) {
  if (ok) {
    ++passed;
    return true;
  }
  ++failed;
  if (failed > 40) return false;  // the first ones tell the story
  std::fprintf(stderr, "%s:%d: FAILED %s: ", file, line, expression);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  return false;
}

// Infinities must be equal; NaN wants NaN; a NaN bound fails.
inline bool close(double got, double want, double bound) {
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got);
  if (std::isinf(want) || std::isinf(got)) return got == want;
  return std::fabs(got - want) <= bound;
}

// "" when `body` throws Error of that code and message (message null: any), else what happened instead.
template <typename Body>
std::string throws(const char* code, const char* message, const Body& body) {
  try {
    body();
  } catch (const plumbline::Error& error) {
    if (std::strcmp(error.code(), code) != 0) return std::string("threw ") + error.code() + ": " + error.what();
    if (message && std::strcmp(error.what(), message) != 0) return std::string("message is: ") + error.what();
    return "";
  } catch (const std::exception& error) {
    return std::string("threw another type: ") + error.what();
  } catch (...) {
    return "threw another type";
  }
  return "did not throw";
}

// A case that this machine cannot run: said loudly, counted, never as passed.
inline void skip(const char* what) {
  ++skipped;
  std::printf("SKIPPED %s\n", what);
}

inline int finish() {
  std::printf("%ld passed, %ld failed", passed, failed);
  if (skipped) std::printf(", %ld skipped", skipped);
  std::printf("\n");
  return failed == 0 && passed > 0 ? 0 : 1;
}

// Deterministic noise in [-1, 1): the same on every machine, unlike <random>'s distributions.
struct Noise {
  uint64_t state;
  explicit Noise(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 0x1234567ull) {}
  uint32_t bits() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
  }
  float next() { return static_cast<float>(bits() >> 8) * (2.0f / 16777216.0f) - 1.0f; }
  int64_t below(int64_t limit) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(limit)); }
};

}  // namespace plumbline_test

#define CHECK(condition, ...) plumbline_test::report((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)
#define CHECK_CLOSE(got, want, bound, ...)                                                                      \
  do {                                                                                                          \
    const double check_got = (got), check_want = (want), check_bound = (bound);                                 \
    if (!plumbline_test::report(plumbline_test::close(check_got, check_want, check_bound), __FILE__, __LINE__,  \
                                #got, __VA_ARGS__) && plumbline_test::failed <= 40)                             \
      std::fprintf(stderr, "    got %.9g, want %.9g, off by %.3g, bound %.3g\n", check_got, check_want,         \
                   std::fabs(check_got - check_want), check_bound);                                             \
  } while (0)
#define CHECK_THROWS(expression, code, message)                                                        \
  do {                                                                                                 \
    const std::string check_result = plumbline_test::throws(code, message, [&] { (void)(expression); }); \
    plumbline_test::report(check_result.empty(), __FILE__, __LINE__, #expression, "%s", check_result.c_str()); \
  } while (0)

using plumbline_test::finish;
using plumbline_test::kEmulatedOnly;
using plumbline_test::kTwoThreads;
using plumbline_test::Noise;
