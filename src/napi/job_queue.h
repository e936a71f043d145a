#pragma once
// One thread per Node environment that runs jobs in the order of their submission. Not Napi::AsyncWorker: that takes libuv's
// four threads from fs and dns, and a promise whose work is cancelled while queued never settles.
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "failure.h"

namespace plumbline {

using Reply = std::function<Napi::Value(Napi::Env)>;       // JS thread: makes the value of the promise out of plain C++ data
using Work = std::function<Reply(const CancelFlag&)>;      // queue thread: no Napi::

class JobQueue {
 public:
  JobQueue() = default;
  ~JobQueue() { shut_down(); }
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  // JS thread. `settled` runs there too, just before the promise settles either way. Captures of `work` die on the queue thread.
  Napi::Promise submit(Napi::Env env, std::shared_ptr<CancelFlag> cancel, Work work, std::function<void(Napi::Env)> settled);
  // JS thread. Runs `task` after the jobs before it, without a promise; at once when the thread is not running.
  void post(std::function<void()> task);
  // JS thread. Cancels everything, joins. Promises that are still pending stay so; later submissions reject.
  void shut_down();

 private:
  struct Job {
    std::shared_ptr<CancelFlag> cancel;
    Work work;
    Reply reply;
    Failure failure;
    std::function<void(Napi::Env)> settled;
    std::unique_ptr<Napi::Promise::Deferred> deferred;  // null for a posted task
    Napi::ObjectReference error;                        // made at the call, for the caller's stack

    void run();
    void settle(Napi::Env env);
    void reject();
    void abandon() { error.SuppressDestruct(); }        // the environment is going: its own teardown frees the reference
  };
  static void on_settle(Napi::Env env, Napi::Function callback, JobQueue* queue, Job* job);
  using Settler = Napi::TypedThreadSafeFunction<JobQueue, Job, &JobQueue::on_settle>;

  void start(Napi::Env env);
  void register_with(Napi::Env env);
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Job>> jobs_;   // guarded by mutex_
  std::shared_ptr<CancelFlag> running_;     // guarded by mutex_
  bool stopping_ = false;                   // guarded by mutex_
  std::thread thread_;
  Settler settler_;
  bool registered_ = false;                 // JS thread: settler, cleanup hook and exit listener are in place
  int64_t pending_ = 0;                     // JS thread: promises not settled; while there are any, the process stays alive
};

}  // namespace plumbline
