// Thread pool: every tile exactly once, cancellation, exceptions, wake-up from sleep, destruction. Run it under TSan as well.
#include "../../src/cpu/thread_pool.h"

#include <chrono>
#include <memory>
#include <stdexcept>
#include <vector>

#include "check.h"

using namespace plumbline;

namespace {

void every_index_once(int32_t threads) {
  ThreadPool pool(threads);
  CHECK(pool.size() == threads, "size %d of %d", pool.size(), threads);
  for (int64_t count : {0, 1, 2, 3, 31, 32, 33, 1000}) {
    std::vector<int> plain(static_cast<size_t>(count) + 1, 0);  // plain memory: TSan sees a tile handed out twice
    std::atomic<int> bad_thread{0};
    pool.parallel_for(count, nullptr, [&](int64_t index, int32_t thread) {
      ++plain[static_cast<size_t>(index)];
      if (thread < 0 || thread >= threads) ++bad_thread;
    });
    bool once = plain[static_cast<size_t>(count)] == 0;
    for (int64_t i = 0; i < count; ++i) once = once && plain[static_cast<size_t>(i)] == 1;
    CHECK(once, "threads %d count %lld: each index once", threads, static_cast<long long>(count));
    CHECK(bad_thread == 0, "threads %d count %lld: thread index in range", threads, static_cast<long long>(count));
  }
}

// Thousands of short jobs back to back, and jobs after pauses longer than the spin: a lost wake-up would hang or lose tiles.
void many_jobs(int32_t threads) {
  ThreadPool pool(threads);
  std::vector<int64_t> slots(64, 0);
  for (int round = 0; round < 5000; ++round)
    pool.parallel_for(1 + round % 64, nullptr, [&](int64_t index, int32_t) { ++slots[static_cast<size_t>(index)]; });
  int64_t total = 0, want = 0;
  for (int64_t slot : slots) total += slot;
  for (int round = 0; round < 5000; ++round) want += 1 + round % 64;
  CHECK(total == want, "threads %d: %lld tiles of %lld", threads, static_cast<long long>(total), static_cast<long long>(want));
  for (int round = 0; round < 50; ++round) {
    std::this_thread::sleep_for(std::chrono::microseconds(round * 10));
    std::atomic<int> done{0};
    pool.parallel_for(threads * 2, nullptr, [&](int64_t, int32_t) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));  // longer than the spin: the caller sleeps too
      ++done;
    });
    CHECK(done == threads * 2, "threads %d round %d: %d tiles", threads, round, done.load());
  }
}

// Tiles wait for each other: only threads that really run at once get through.
void really_parallel(int32_t threads) {
  ThreadPool pool(threads);
  std::atomic<int> arrived{0};
  std::atomic<bool> late{false};
  pool.parallel_for(threads, nullptr, [&](int64_t, int32_t) {
    ++arrived;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (arrived < threads)
      if (std::chrono::steady_clock::now() > deadline) { late = true; break; }
  });
  CHECK(!late, "%d threads at once", threads);
}

void exceptions(int32_t threads) {
  ThreadPool pool(threads);
  for (int64_t thrower : {0, 7, 99}) {
    bool caught = false;
    try {
      pool.parallel_for(100, nullptr, [&](int64_t index, int32_t) {
        if (index == thrower) fail("ERR_RANGE", "tile");
      });
    } catch (const Error& error) {
      caught = std::string(error.code()) == "ERR_RANGE" && std::string(error.what()) == "tile";
    }
    CHECK(caught, "threads %d: exception of tile %lld", threads, static_cast<long long>(thrower));
  }
  bool caught = false;
  try {
    pool.parallel_for(100, nullptr, [&](int64_t, int32_t) { throw std::bad_alloc(); });  // all of them throw
  } catch (const std::bad_alloc&) {
    caught = true;
  }
  CHECK(caught, "threads %d: every tile throws", threads);
  std::atomic<int> done{0};
  pool.parallel_for(10, nullptr, [&](int64_t, int32_t) { ++done; });
  CHECK(done == 10, "threads %d: pool usable after an exception", threads);
}

bool cancelled(ThreadPool& pool, int64_t count, const CancelFlag& flag, const std::function<void(int64_t)>& body) {
  try {
    pool.parallel_for(count, &flag, [&](int64_t index, int32_t) { body(index); });
  } catch (const Cancelled&) {
    return true;
  }
  return false;
}

void cancellation(int32_t threads) {
  ThreadPool pool(threads);
  CancelFlag before, during, unused;
  std::atomic<int64_t> ran{0};
  before.set();
  CHECK(cancelled(pool, 100, before, [&](int64_t) { ++ran; }) && ran == 0, "threads %d: set before, %lld ran", threads,
        static_cast<long long>(ran));
  CHECK(!cancelled(pool, 0, before, [&](int64_t) {}), "threads %d: nothing to cancel", threads);
  CHECK(cancelled(pool, 100000, during, [&](int64_t) { if (++ran == 50) during.set(); }), "threads %d: set during", threads);
  CHECK(ran < 50 + threads + 1, "threads %d: %lld tiles ran", threads, static_cast<long long>(ran));
  CHECK(!cancelled(pool, 100, unused, [&](int64_t) {}), "threads %d: usable after a cancel", threads);
}

}  // namespace

int main() {
  CHECK(available_cores() >= 1, "%d cores", available_cores());
  for (int32_t threads : {1, 2, 3, 5}) {
    every_index_once(threads);
    many_jobs(threads);
    really_parallel(threads);
    exceptions(threads);
    cancellation(threads);
  }
  for (int round = 0; round < 200; ++round) {  // destruction while workers still start, spin or sleep
    ThreadPool pool(1 + round % 4);
    if (round % 2) pool.parallel_for(3, nullptr, [](int64_t, int32_t) {});
  }
  CHECK(true, "pools destroyed");
  return finish();
}
