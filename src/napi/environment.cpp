#include "environment.h"

namespace plumbline {

Environment::Environment() : isa_(best_isa()) {}

std::shared_ptr<Environment> Environment::of(Napi::Env env) { return *env.GetInstanceData<std::shared_ptr<Environment>>(); }

void Environment::install(Napi::Env env) { env.SetInstanceData(new std::shared_ptr<Environment>(std::make_shared<Environment>())); }

std::shared_ptr<CpuBackend> Environment::cpu() {
  if (!cpu_) {
    cpu_ = std::make_shared<CpuBackend>(threads_.load());
    threads_ = cpu_->threads();
  }
  return cpu_;
}

const CudaDevice& Environment::cuda_device() {
  if (!cuda_device_) cuda_device_ = std::make_unique<CudaDevice>(probe_cuda());
  return *cuda_device_;
}

std::shared_ptr<Backend> Environment::backend(Device device) {
  if (device == Device::cpu) return cpu();
  if (!cuda_) cuda_ = make_cuda_backend();
  return cuda_;
}

void Environment::set_gemm(GemmKind kind) {
  require(kind != GemmKind::onednn || CpuBackend::gemm_name() != "portable", "ERR_BACKEND_UNAVAILABLE",
          "[setGemm] Expected a build with oneDNN but received one without it; install libdnnl-dev and run npm run build");
  gemm_ = kind;
}

void Environment::set_isa(Isa isa) {
  require(isa <= best_isa(), "ERR_BACKEND_UNAVAILABLE", "[setIsa] Expected an instruction set of this processor but received one that it lacks");
  isa_ = isa;
}

void Environment::apply_settings(CpuBackend& backend) {
  const int32_t threads = threads_.load();
  const GemmKind gemm = gemm_.load();
  const Isa isa = isa_.load();
  if (threads != backend.threads()) backend.set_threads(threads);
  if (gemm != applied_gemm_) backend.set_gemm(gemm), applied_gemm_ = gemm;
  if (isa != backend.isa()) backend.set_isa(isa);
}

Napi::Promise Environment::submit(Napi::Env env, std::shared_ptr<CancelFlag> cancel, std::shared_ptr<Account> account, std::shared_ptr<Backend> backend,
                                  DeviceWork work) {
  struct Running {  // the backend's flag is that of the running job, whichever way the job ends
    Backend& backend;
    Running(Backend& b, const CancelFlag& flag) : backend(b) { backend.set_cancel(&flag); }
    ~Running() { backend.set_cancel(nullptr); }
  };
  // `this` outlives the queue's thread: ~Environment joins it.
  return queue_.submit(
      env, std::move(cancel),
      [this, backend = std::move(backend), cpu = cpu(), work = std::move(work)](const CancelFlag& flag) {
        apply_settings(*cpu);
        const Running running(*backend, flag);
        return work(*backend, flag);
      },
      [this, account = std::move(account)](Napi::Env current) {
        if (account) tell(current, *account);
      });
}

void Environment::tell(Napi::Env env, Account& account) {
  if (account.closed) return;
  const int64_t change = account.now.load() - account.told;
  int64_t total = 0;
  if (change != 0) napi_adjust_external_memory(env, change, &total);
  live.bytes += change;
  account.told += change;
}

void Environment::close(Napi::Env env, Account& account) {
  if (account.closed) return;
  account.now = 0;
  tell(env, account);
  account.closed = true;
}

}  // namespace plumbline
