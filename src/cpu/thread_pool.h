#pragma once
// Fixed set of threads for one Backend. parallel_for hands out tiles by an atomic counter: which thread runs a tile is not
// fixed, so a tile's result must depend on its index alone.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../core/cancel.h"

namespace plumbline {

// Physical cores that this process may use: its CPU affinity and, in a container, its CPU quota. At least 1.
int32_t available_cores();

class ThreadPool {
 public:
  explicit ThreadPool(int32_t threads);  // total, the calling thread included; >= 1
  ~ThreadPool();
  int32_t size() const { return static_cast<int32_t>(workers_.size()) + 1; }

  // body(index, thread) for index in [0, count); thread in [0, size()) selects scratch memory. Returns when all are done.
  // Polls `cancel` between tiles and throws Cancelled. An exception of a body is rethrown here (the first one).
  template <typename Body>
  void parallel_for(int64_t count, const CancelFlag* cancel, const Body& body) {
    run(count, cancel, [](const void* context, int64_t index, int32_t thread) { (*static_cast<const Body*>(context))(index, thread); },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int64_t index, int32_t thread);
  void run(int64_t count, const CancelFlag* cancel, Call call, const void* context);
  struct State;
  std::unique_ptr<State> state_;
  std::vector<std::thread> workers_;
};

}  // namespace plumbline
