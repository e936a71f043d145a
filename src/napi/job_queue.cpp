#include "job_queue.h"

namespace plumbline {

void JobQueue::Job::run() {
  try {
    if (cancel->is_set()) throw Cancelled{};
    reply = work(*cancel);
  } catch (...) {
    failure = current_failure();
  }
  work = nullptr;
}

void JobQueue::Job::settle(Napi::Env env) {
  settled(env);
  if (failure.code.empty()) {
    try {
      return deferred->Resolve(reply(env));
    } catch (const Napi::Error& raised) {  // the JavaScript heap had no room for the result
      failure = {"ERR_OUT_OF_MEMORY", "[native] Expected room for the result but received \"" + raised.Message() + "\""};
    } catch (...) {
      failure = current_failure();
    }
  }
  reject();
}

void JobQueue::Job::reject() {
  Napi::Object reason = error.Value();
  try {
    reason.Set("message", failure.message);
    reason.Set("code", failure.code);
    const Napi::Value stack = reason.Get("stack");  // runs Error.prepareStackTrace, which is somebody's code and may throw
    if (stack.IsString()) {
      const std::string text = stack.As<Napi::String>().Utf8Value();
      const size_t frames = text.find("\n    at ");
      reason.Set("stack", "Error: " + failure.message + (frames == std::string::npos ? "" : text.substr(frames)));
    }
  } catch (const Napi::Error&) {  // the promise must settle all the same
  }
  deferred->Reject(reason);
}

Napi::Promise JobQueue::submit(Napi::Env env, std::shared_ptr<CancelFlag> cancel, Work work, std::function<void(Napi::Env)> settled) {
  auto job = std::make_unique<Job>();
  job->cancel = cancel ? std::move(cancel) : std::make_shared<CancelFlag>();
  job->work = std::move(work);
  job->settled = std::move(settled);
  job->error = Napi::Persistent(Napi::Error::New(env, "").Value());
  start(env);
  job->deferred = std::make_unique<Napi::Promise::Deferred>(Napi::Promise::Deferred::New(env));
  const Napi::Promise promise = job->deferred->Promise();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
  if (pending_++ == 0) settler_.Ref(env);
  return promise;
}

void JobQueue::post(std::function<void()> task) {
  if (!thread_.joinable()) return task();
  auto job = std::make_unique<Job>();
  job->cancel = std::make_shared<CancelFlag>();
  job->work = [task = std::move(task)](const CancelFlag&) {
    task();
    return Reply();
  };
  {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void JobQueue::start(Napi::Env env) {
  require(!stopping_, "ERR_DISPOSED", "[native] Expected a living environment but received a call while it shuts down");
  if (thread_.joinable()) return;
  if (!registered_) register_with(env);
  thread_ = std::thread([this] { loop(); });
}

void JobQueue::register_with(Napi::Env env) {
  // Node closes what was made last first. So the settler is made before the hook that joins the thread: the thread never sees a
  // settler that is closed.
  settler_ = Settler::New(env, "plumbline", 0, 1, this);
  settler_.Unref(env);
  const auto hook = [](void* queue) { static_cast<JobQueue*>(queue)->shut_down(); };
  require(napi_add_env_cleanup_hook(env, hook, this) == napi_ok, "ERR_INTERNAL", "[native] Expected to register a cleanup hook but received a refusal");
  registered_ = true;
  // process.exit() runs no cleanup hook on the main thread, and destructors of the C++ runtime must not meet a running job.
  const Napi::Object process = env.Global().Get("process").As<Napi::Object>();
  const auto stop = Napi::Function::New(env, [this](const Napi::CallbackInfo&) { shut_down(); });
  process.Get("on").As<Napi::Function>().Call(process, {Napi::String::New(env, "exit"), stop});
}

void JobQueue::loop() {
  for (;;) {
    std::unique_ptr<Job> job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      running_ = nullptr;
      wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      running_ = job->cancel;
    }
    job->run();
    if (job->deferred && settler_.NonBlockingCall(job.get()) == napi_ok) job.release();
    else if (job->deferred) job->abandon();
  }
}

void JobQueue::on_settle(Napi::Env env, Napi::Function, JobQueue* queue, Job* settled) {
  std::unique_ptr<Job> job(settled);
  if (env == nullptr) return job->abandon();
  if (--queue->pending_ == 0) queue->settler_.Unref(env);
  job->settle(env);
}

void JobQueue::shut_down() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (running_) running_->set();
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  for (const auto& job : jobs_) job->abandon();
  jobs_.clear();
}

}  // namespace plumbline
