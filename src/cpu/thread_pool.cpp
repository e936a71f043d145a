#include "thread_pool.h"

#include <chrono>
#include <exception>
#include <fstream>
#include <set>
#include <string>
#include <system_error>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../core/error.h"

namespace plumbline {
namespace {

// Long enough to bridge the serial stretch between two operations of a pass, short beside the ~50 us that a sleeping thread
// takes to wake on a busy machine.
constexpr std::chrono::microseconds kSpinTime{40};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

template <typename Ready>
bool spin_until(const Ready& ready, bool may_spin) {
  if (ready()) return true;
  if (!may_spin) return false;
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

#if defined(__linux__)
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Cores that the container's CPU quota pays for, rounded up; 0: no quota. Control groups version 2, then 1.
int32_t quota_cores() {
  const auto cores = [](const std::string& quota, const std::string& period) -> int32_t {
    const double q = std::strtod(quota.c_str(), nullptr), p = std::strtod(period.c_str(), nullptr);
    return q > 0 && p > 0 && q / p < 4096 ? static_cast<int32_t>((q + p - 1) / p) : 0;
  };
  const std::string both = first_line("/sys/fs/cgroup/cpu.max");  // "max 100000" or "150000 100000"
  const size_t space = both.find(' ');
  if (space != std::string::npos) return cores(both.substr(0, space), both.substr(space + 1));
  return cores(first_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), first_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
}

// Distinct cores among the CPUs that this process may run on: two hardware threads of a core share its multipliers.
int32_t affinity_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 0;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu" + std::to_string(cpu) : siblings);
  }
  return static_cast<int32_t>(cores.size());
}
#endif

}  // namespace

int32_t available_cores() {
  int32_t cores = 0;
#if defined(__linux__)
  cores = affinity_cores();
  const int32_t quota = quota_cores();
  if (quota > 0 && quota < cores) cores = quota;
#endif
  if (cores <= 0) cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  return cores > 0 ? cores : 1;
}

// `gate` says in one word which job is open and who works on it: job number << 17 | open << 16 | workers inside. A worker joins
// by raising the count of an open job, so the job's fields are written only while the gate is shut and nobody is inside, and a
// worker that wakes late is not waited for.
struct ThreadPool::State {
  static constexpr uint64_t kOpen = 1u << 16, kInside = kOpen - 1, kJob = kOpen << 1;

  std::atomic<uint64_t> gate{0};
  std::atomic<int32_t> sleepers{0};
  std::atomic<bool> caller_sleeps{false}, stop{false};
  std::mutex mutex;
  std::condition_variable wake, left;
  bool may_spin = true;

  Call call = nullptr;
  const void* context = nullptr;
  const CancelFlag* cancel = nullptr;
  int64_t count = 0;
  alignas(64) std::atomic<int64_t> next{0};
  std::atomic<bool> cancelled{false};
  std::exception_ptr error;  // guarded by mutex

  void work(int32_t thread) {
    for (;;) {
      const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return;
      if (cancel && cancel->is_set()) {
        cancelled.store(true, std::memory_order_relaxed);
        next.store(count, std::memory_order_relaxed);
        return;
      }
      try {
        call(context, index, thread);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count, std::memory_order_relaxed);
        return;
      }
    }
  }

  bool news(uint64_t last_job) const {
    const uint64_t now = gate.load();
    return stop.load() || ((now & kOpen) && now / kJob != last_job);
  }

  void worker(int32_t thread) {
    uint64_t last_job = 0;
    for (;;) {
      if (!spin_until([&] { return news(last_job); }, may_spin)) {
        std::unique_lock<std::mutex> lock(mutex);
        ++sleepers;  // sequentially consistent, as is the gate: the opener sees the sleeper or the sleeper the open gate
        wake.wait(lock, [&] { return news(last_job); });
        --sleepers;
      }
      if (stop.load()) return;
      uint64_t now = gate.load();
      if (!(now & kOpen) || !gate.compare_exchange_strong(now, now + 1)) continue;
      last_job = now / kJob;
      work(thread);
      if (((gate.fetch_sub(1) - 1) & kInside) == 0 && caller_sleeps.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        left.notify_one();
      }
    }
  }

  void open() {
    gate.store((gate.load() / kJob + 1) * kJob | kOpen);
    if (sleepers.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex);
      wake.notify_all();
    }
  }

  void shut_and_wait() {
    gate.fetch_and(~kOpen);
    const auto empty = [&] { return (gate.load() & kInside) == 0; };
    if (spin_until(empty, may_spin)) return;
    std::unique_lock<std::mutex> lock(mutex);
    caller_sleeps.store(true);
    left.wait(lock, empty);
    caller_sleeps.store(false);
  }

  void join(std::vector<std::thread>& workers) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop.store(true);
      wake.notify_all();
    }
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int32_t threads) : state_(new State) {
  state_->may_spin = threads <= static_cast<int32_t>(std::thread::hardware_concurrency());
  State* const state = state_.get();
  try {
    workers_.reserve(static_cast<size_t>(threads) - 1);
    for (int32_t i = 1; i < threads; ++i) workers_.emplace_back([state, i] { state->worker(i); });
  } catch (const std::system_error& error) {
    const size_t started = workers_.size();
    state_->join(workers_);
    fail("ERR_OUT_OF_MEMORY", "[threads] Expected to start " + std::to_string(threads - 1) + " worker threads but received \"" +
                                  error.what() + "\" after " + std::to_string(started));
  }
}

ThreadPool::~ThreadPool() { state_->join(workers_); }

void ThreadPool::run(int64_t count, const CancelFlag* cancel, Call call, const void* context) {
  if (count <= 0) return;
  State& state = *state_;
  state.call = call;
  state.context = context;
  state.cancel = cancel;
  state.count = count;
  state.next.store(0, std::memory_order_relaxed);
  state.cancelled.store(false, std::memory_order_relaxed);
  const bool alone = count == 1 || workers_.empty();
  if (!alone) state.open();
  state.work(0);
  if (!alone) state.shut_and_wait();
  if (state.error) {
    std::exception_ptr error;
    std::swap(error, state.error);
    std::rethrow_exception(error);
  }
  if (state.cancelled.load(std::memory_order_relaxed)) throw Cancelled{};
}

}  // namespace plumbline
