// Exports only. The surface is typed in lib/native.ts.
#include "bind_model.h"
#include "bind_ops.h"
#include "bind_session.h"
#include "bind_tensor.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxThreads = 1024;

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

Napi::Value build_info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto environment = Environment::of(info.Env());
    Napi::Array backends = Napi::Array::New(info.Env());
    backends.Set(uint32_t{0}, "cpu");
    if (has_cuda_code()) backends.Set(uint32_t{1}, "cuda");
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("version", PLUMBLINE_VERSION);
    result.Set("backends", backends);
    result.Set("gemm", CpuBackend::gemm_name());
    result.Set("isa", isa_name(environment->isa()));
    result.Set("threads", environment->threads());
    result.Set("compiler", __VERSION__);
    return result;
  });
}

// What the probe found. Asking starts the device's runtime: not on import.
Napi::Value cuda_device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto environment = Environment::of(info.Env());
    const CudaDevice& device = environment->cuda_device();
    const DeviceCounters counters = environment->counters();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("isBuilt", device.is_built);
    result.Set("isUsable", device.is_usable);
    result.Set("reason", device.reason);
    result.Set("name", device.name);
    result.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
    result.Set("multiprocessors", device.multiprocessors);
    result.Set("driverVersion", device.driver_version);
    result.Set("runtimeVersion", device.runtime_version);
    result.Set("memoryBytes", static_cast<double>(device.memory_bytes));
    result.Set("freeBytes", static_cast<double>(device.free_bytes));
    result.Set("launches", static_cast<double>(counters.launches));
    result.Set("downloads", static_cast<double>(counters.downloads));
    return result;
  });
}

void set_threads(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { Environment::of(info.Env())->set_threads(static_cast<int32_t>(Argument("setThreads", "count", info[0]).integer(1, kMaxThreads))); });
}

void set_device(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { Environment::of(info.Env())->set_device(read_device_name(Argument("setDevice", "device", info[0]))); });
}

void set_gemm(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    constexpr GemmKind kinds[] = {GemmKind::automatic, GemmKind::onednn, GemmKind::portable};
    Environment::of(info.Env())->set_gemm(kinds[Argument("setGemm", "kind", info[0]).choice({"auto", "onednn", "portable"})]);
  });
}

void set_isa(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Isa isas[] = {best_isa(), Isa::baseline, Isa::avx2, Isa::avx512};
    Environment::of(info.Env())->set_isa(isas[Argument("setIsa", "isa", info[0]).choice({"auto", "baseline", "avx2", "avx512"})]);
  });
}

Napi::Value live_objects(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const LiveObjects& live = Environment::of(info.Env())->live;
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("models", static_cast<double>(live.models));
    result.Set("sessions", static_cast<double>(live.sessions));
    result.Set("tensors", static_cast<double>(live.tensors));
    result.Set("bytes", static_cast<double>(live.bytes));
    return result;
  });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  Environment::install(env);
  Napi::Object ops = Napi::Object::New(env);
  export_norm_ops(env, ops);
  export_activation_ops(env, ops);
  export_attention_ops(env, ops);
  export_linear_ops(env, ops);
  export_image_ops(env, ops);
  export_saliency_ops(env, ops);
  export_replay_ops(env, ops);
  export_routing_ops(env, ops);
  export_routed_row_ops(env, ops);
  export_ragged_ops(env, ops);
  export_ragged_attention_ops(env, ops);
  export_grad_norm_ops(env, ops);
  export_spectra_ops(env, ops);
  exports.Set("CancelToken", CancelToken::define(env));
  exports.Set("Model", ModelBinding::define(env));
  exports.Set("Session", SessionBinding::define(env));
  exports.Set("Tensor", TensorBinding::define(env));
  exports.Set("ops", ops);
  exports.Set("buildInfo", Napi::Function::New<build_info>(env, "buildInfo"));
  exports.Set("cudaDevice", Napi::Function::New<cuda_device>(env, "cudaDevice"));
  exports.Set("setThreads", Napi::Function::New<set_threads>(env, "setThreads"));
  exports.Set("setDevice", Napi::Function::New<set_device>(env, "setDevice"));
  exports.Set("setGemm", Napi::Function::New<set_gemm>(env, "setGemm"));
  exports.Set("setIsa", Napi::Function::New<set_isa>(env, "setIsa"));
  exports.Set("liveObjects", Napi::Function::New<live_objects>(env, "liveObjects"));
  exports.Set("bench", Napi::Function::New<bench>(env, "bench"));
  return exports;
}

}  // namespace
}  // namespace plumbline

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) { return plumbline::init(env, exports); }

NODE_API_MODULE(plumbline, init_addon)
