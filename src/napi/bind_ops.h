#pragma once
// `ops` of lib/native.ts: Backend methods on copied typed arrays (and, through float_arrays.h, Tensors). One bind_ file per family.
#include <napi.h>

#include "args.h"
#include "cancel_token.h"
#include "environment.h"
#include "reply.h"

namespace plumbline {

void export_norm_ops(Napi::Env env, Napi::Object ops);
void export_activation_ops(Napi::Env env, Napi::Object ops);
void export_attention_ops(Napi::Env env, Napi::Object ops);
void export_linear_ops(Napi::Env env, Napi::Object ops);
void export_image_ops(Napi::Env env, Napi::Object ops);
void export_saliency_ops(Napi::Env env, Napi::Object ops);
void export_replay_ops(Napi::Env env, Napi::Object ops);
void export_routing_ops(Napi::Env env, Napi::Object ops);
void export_routed_row_ops(Napi::Env env, Napi::Object ops);
void export_ragged_ops(Napi::Env env, Napi::Object ops);
void export_ragged_attention_ops(Napi::Env env, Napi::Object ops);
void export_grad_norm_ops(Napi::Env env, Napi::Object ops);
void export_spectra_ops(Napi::Env env, Napi::Object ops);
Napi::Value bench(const Napi::CallbackInfo& info);

inline Napi::Value submit_op(const Napi::CallbackInfo& info, const Argument& token, DeviceWork work) {
  const auto environment = Environment::of(info.Env());
  return environment->submit(info.Env(), read_token(token), nullptr, environment->backend(read_device(token, environment->device())), std::move(work));
}

// Rows of `columns` elements in `elements`; ERR_SHAPE when they do not divide.
inline int64_t rows_of(const char* op, const char* name, size_t elements, int64_t columns) {
  require(columns > 0 && static_cast<int64_t>(elements) % columns == 0, "ERR_SHAPE",
          std::string("[") + op + "] Expected " + name + " to be rows of " + std::to_string(columns) + " but received " + std::to_string(elements) + " elements");
  return static_cast<int64_t>(elements) / columns;
}

inline size_t count(int64_t value) { return static_cast<size_t>(value); }

inline int64_t size_of(const std::vector<float>& values) { return static_cast<int64_t>(values.size()); }

}  // namespace plumbline
