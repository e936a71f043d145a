#pragma once
#include <napi.h>

#include <memory>

#include "../core/cancel.h"
#include "args.h"

namespace plumbline {

// Made by JavaScript, given to a job; cancel() may be called at any time and any number of times.
class CancelToken : public Napi::ObjectWrap<CancelToken> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit CancelToken(const Napi::CallbackInfo& info);

 private:
  friend std::shared_ptr<CancelFlag> read_token(const Argument& argument);
  void cancel(const Napi::CallbackInfo&) { flag_->set(); }
  std::shared_ptr<CancelFlag> flag_ = std::make_shared<CancelFlag>();
};

// The flag of an optional CancelToken; null when absent.
std::shared_ptr<CancelFlag> read_token(const Argument& argument);

}  // namespace plumbline
