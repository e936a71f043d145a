#pragma once
#include <napi.h>

#include <memory>

#include "../core/cancel.h"
#include "args.h"
#include "environment.h"

namespace plumbline {

// Made by JavaScript, given to a job; cancel() may be called at any time and any number of times. It also says on which device an
// operation of `ops` runs.
class CancelToken : public Napi::ObjectWrap<CancelToken> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit CancelToken(const Napi::CallbackInfo& info);

 private:
  friend std::shared_ptr<CancelFlag> read_token(const Argument& argument);
  friend Device read_device(const Argument& argument, Device otherwise);
  void cancel(const Napi::CallbackInfo&) { flag_->set(); }
  Device device_ = Device::cpu;
  std::shared_ptr<CancelFlag> flag_ = std::make_shared<CancelFlag>();
};

// The flag of an optional CancelToken; null when absent.
std::shared_ptr<CancelFlag> read_token(const Argument& argument);
// Its device; `otherwise` when absent.
Device read_device(const Argument& argument, Device otherwise);
// 'cpu' or 'cuda'; the CPU when absent.
Device read_device_name(const Argument& argument);

}  // namespace plumbline
