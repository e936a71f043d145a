#pragma once
// State of one Node environment (main thread or worker): job queue, backend, settings, what is alive. Never a static.
#include <napi.h>

#include <atomic>
#include <memory>

#include "../core/cuda.h"
#include "../cpu/cpu_backend.h"
#include "job_queue.h"

namespace plumbline {

// Bytes of one native object, as V8 and liveObjects() know them.
struct Account {
  std::atomic<int64_t> now{0};  // written by the job thread
  int64_t told = 0;             // JS thread
  bool closed = false;          // JS thread: disposed
};

struct LiveObjects {
  int64_t models = 0, sessions = 0, tensors = 0, bytes = 0;
};

enum class Device { cpu, cuda };

using DeviceWork = std::function<Reply(Backend&, const CancelFlag&)>;

class Environment : public std::enable_shared_from_this<Environment> {
 public:
  Environment();
  static std::shared_ptr<Environment> of(Napi::Env env);
  static void install(Napi::Env env);

  // All on the JS thread. A backend, with its threads or its stream, is made at the first use. backend() throws
  // ERR_BACKEND_UNAVAILABLE when the device is not usable.
  std::shared_ptr<Backend> backend(Device device);
  std::shared_ptr<CpuBackend> cpu();
  const CudaDevice& cuda_device();              // the answer of the probe, which runs once
  DeviceCounters counters() const { return cuda_ ? cuda_counters(*cuda_) : DeviceCounters{}; }
  Napi::Promise submit(Napi::Env env, std::shared_ptr<CancelFlag> cancel, std::shared_ptr<Account> account, std::shared_ptr<Backend> backend, DeviceWork work);
  void post(std::function<void()> task) { queue_.post(std::move(task)); }
  void tell(Napi::Env env, Account& account);   // V8 and liveObjects() learn what `account` holds now
  void close(Napi::Env env, Account& account);  // ... that it holds nothing any more

  // Settings take effect for the next job.
  void set_threads(int32_t threads) { threads_ = threads; }
  void set_device(Device device) { device_ = device; }  // of operations whose token names none
  Device device() const { return device_; }
  void set_gemm(GemmKind kind);
  void set_isa(Isa isa);
  int32_t threads() {
    cpu();
    return threads_.load();
  }
  Isa isa() const { return isa_.load(); }

  LiveObjects live;

 private:
  void apply_settings(CpuBackend& backend);     // queue thread

  Device device_ = Device::cpu;                 // JS thread
  std::shared_ptr<CpuBackend> cpu_;
  std::shared_ptr<Backend> cuda_;
  std::unique_ptr<CudaDevice> cuda_device_;
  std::atomic<int32_t> threads_{0};             // 0: the backend's own choice, filled in when it is made
  std::atomic<GemmKind> gemm_{GemmKind::automatic};
  std::atomic<Isa> isa_;
  GemmKind applied_gemm_ = GemmKind::automatic; // queue thread
  JobQueue queue_;                              // last: joined before the rest goes
};

}  // namespace plumbline
