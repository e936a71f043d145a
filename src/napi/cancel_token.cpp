#include "cancel_token.h"

#include "failure.h"

namespace plumbline {

// Type tags tell our objects from any other that a caller may pass; the numbers are random.
static constexpr napi_type_tag kCancelTokenTag{0x6c1f0a9be2d84c37, 0x91b7d3405ea26f18};

Napi::Function CancelToken::define(Napi::Env env) {
  return DefineClass(env, "CancelToken", {InstanceMethod<&CancelToken::cancel>("cancel")});
}

CancelToken::CancelToken(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  guarded(info.Env(), [&] {
    device_ = read_device_name(Argument("CancelToken", "device", info[0]));
    info.This().As<Napi::Object>().TypeTag(&kCancelTokenTag);
  });
}

static CancelToken* token_of(const Argument& argument) {
  if (argument.value().IsEmpty() || argument.value().IsUndefined()) return nullptr;
  if (!argument.value().IsObject() || !argument.value().As<Napi::Object>().CheckTypeTag(&kCancelTokenTag))
    argument.reject("ERR_ARGUMENT", "a CancelToken or undefined");
  return CancelToken::Unwrap(argument.value().As<Napi::Object>());
}

std::shared_ptr<CancelFlag> read_token(const Argument& argument) {
  const CancelToken* token = token_of(argument);
  return token ? token->flag_ : nullptr;
}

Device read_device(const Argument& argument, Device otherwise) {
  const CancelToken* token = token_of(argument);
  return token ? token->device_ : otherwise;
}

Device read_device_name(const Argument& argument) {
  return argument.absent() || argument.choice({"cpu", "cuda"}) == 0 ? Device::cpu : Device::cuda;
}

}  // namespace plumbline
