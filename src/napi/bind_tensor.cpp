#include "bind_tensor.h"

#include "cancel_token.h"
#include "reply.h"

namespace plumbline {
namespace {

constexpr napi_type_tag kTensorTag{0x7d3a90c5184be26f, 0xa85f1e07c2946bd3};
constexpr int64_t kMaxElements = kMaxSafeInteger;  // memory is the limit, and it says so

}  // namespace

Napi::Function TensorBinding::define(Napi::Env env) {
  return DefineClass(env, "Tensor",
                     {InstanceMethod<&TensorBinding::read>("read"), InstanceMethod<&TensorBinding::write>("write"), InstanceMethod<&TensorBinding::dispose>("dispose")});
}

TensorBinding::TensorBinding(const Napi::CallbackInfo& info) : ObjectWrap(info), environment_(Environment::of(info.Env())) {
  guarded(info.Env(), [&] {
    const int64_t size = Argument("Tensor", "size", info[0]).integer(0, kMaxElements);
    memory_ = std::make_shared<TensorMemory>(environment_->backend(read_device_name(Argument("Tensor", "device", info[1]))), size);
    account_->now = static_cast<int64_t>(memory_->block.bytes());
    info.This().As<Napi::Object>().TypeTag(&kTensorTag);
    environment_->live.tensors += 1;
    environment_->tell(info.Env(), *account_);
  });
}

TensorBinding::~TensorBinding() { release(Env()); }

void TensorBinding::release(Napi::Env env) {
  if (!memory_) return;
  environment_->live.tensors -= 1;
  environment_->close(env, *account_);
  environment_->post([memory = std::move(memory_)] {});  // freed after the jobs that use it, off this thread
  memory_ = nullptr;
}

bool TensorBinding::is_tensor(Napi::Value value) { return value.IsObject() && value.As<Napi::Object>().CheckTypeTag(&kTensorTag); }

std::shared_ptr<TensorMemory> TensorBinding::memory_of(const Argument& argument) {
  if (!is_tensor(argument.value())) argument.reject("ERR_ARGUMENT", "a Tensor");
  return Unwrap(argument.value().As<Napi::Object>())->living(argument.op());
}

const std::shared_ptr<TensorMemory>& TensorBinding::living(const char* op) const {
  require(memory_ != nullptr, "ERR_DISPOSED", std::string("[") + op + "] Expected a living Tensor but received one that is disposed");
  return memory_;
}

Napi::Value TensorBinding::read(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const std::shared_ptr<TensorMemory> memory = living("read");
    const auto token = read_token(Argument("read", "token", info[0]));
    return environment_->submit(info.Env(), token, nullptr, memory->backend, [memory](Backend& backend, const CancelFlag&) {
      std::vector<float> values(static_cast<size_t>(memory->size));
      backend.download(values.data(), memory->block.data(), values.size() * sizeof(float));
      return reply_array(std::move(values));
    });
  });
}

Napi::Value TensorBinding::write(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("write", info);
    const std::shared_ptr<TensorMemory> memory = living("write");
    const int64_t offset = arguments.at(1, "offset").integer(0, memory->size);
    std::vector<float> values = arguments.at(0, "data").f32();
    require(static_cast<int64_t>(values.size()) <= memory->size - offset, "ERR_SHAPE",
            "[write] Expected data to have at most " + std::to_string(memory->size - offset) + " elements but received " + std::to_string(values.size()));
    const auto token = read_token(arguments.at(2, "token"));
    return environment_->submit(info.Env(), token, nullptr, memory->backend, [memory, offset, values = std::move(values)](Backend& backend, const CancelFlag&) {
      backend.upload(memory->block.floats() + offset, values.data(), values.size() * sizeof(float));
      return reply_nothing();
    });
  });
}

}  // namespace plumbline
