#pragma once
#include <atomic>

namespace plumbline {

// Set on the JavaScript thread, polled on the job thread between tiles.
class CancelFlag {
 public:
  void set() { flag_.store(true, std::memory_order_relaxed); }
  bool is_set() const { return flag_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> flag_{false};
};

struct Cancelled {};  // thrown by ThreadPool::parallel_for when the flag of the running job is set

}  // namespace plumbline
