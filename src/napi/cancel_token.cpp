#include "cancel_token.h"

namespace plumbline {

// Type tags tell our objects from any other that a caller may pass; the numbers are random.
static constexpr napi_type_tag kCancelTokenTag{0x6c1f0a9be2d84c37, 0x91b7d3405ea26f18};

Napi::Function CancelToken::define(Napi::Env env) {
  return DefineClass(env, "CancelToken", {InstanceMethod<&CancelToken::cancel>("cancel")});
}

CancelToken::CancelToken(const Napi::CallbackInfo& info) : ObjectWrap(info) { info.This().As<Napi::Object>().TypeTag(&kCancelTokenTag); }

std::shared_ptr<CancelFlag> read_token(const Argument& argument) {
  if (argument.value().IsEmpty() || argument.value().IsUndefined()) return nullptr;
  if (!argument.value().IsObject() || !argument.value().As<Napi::Object>().CheckTypeTag(&kCancelTokenTag))
    argument.reject("ERR_ARGUMENT", "a CancelToken or undefined");
  return CancelToken::Unwrap(argument.value().As<Napi::Object>())->flag_;
}

}  // namespace plumbline
