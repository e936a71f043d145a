#pragma once
// NativeModel of lib/native.ts.
#include <napi.h>

#include "../model/model.h"
#include "args.h"
#include "environment.h"

namespace plumbline {

class ModelBinding : public Napi::ObjectWrap<ModelBinding> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit ModelBinding(const Napi::CallbackInfo& info);
  ~ModelBinding() override;
  // The model behind an argument; throws when it is something else or disposed.
  static std::shared_ptr<Model> read(const Argument& argument);

 private:
  using ModelWork = std::function<Reply(Model&, const CancelFlag&)>;
  struct Info {  // what JavaScript sees of a parameter; the job thread has its own
    std::string name;
    std::vector<int64_t> shape;
    bool is_bf16, trainable;
    int64_t size;
  };

  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value bytes(const Napi::CallbackInfo& info);
  void set_trainable(const Napi::CallbackInfo& info);
  Napi::Value load_file(const Napi::CallbackInfo& info);
  Napi::Value read_parameter(const Napi::CallbackInfo& info);
  Napi::Value read_parameter_bf16(const Napi::CallbackInfo& info);
  Napi::Value read_merged(const Napi::CallbackInfo& info);
  Napi::Value merge_adapters(const Napi::CallbackInfo& info);
  Napi::Value merged_adapters(const Napi::CallbackInfo& info);
  Napi::Value unmerge_adapters(const Napi::CallbackInfo& info);
  Napi::Value write_parameter(const Napi::CallbackInfo& info);
  Napi::Value initialize(const Napi::CallbackInfo& info);
  Napi::Value enable_training(const Napi::CallbackInfo& info);
  Napi::Value zero_gradients(const Napi::CallbackInfo& info);
  Napi::Value optimizer_step(const Napi::CallbackInfo& info);
  Napi::Value gradient_norm(const Napi::CallbackInfo& info);
  Napi::Value gradient_spectra(const Napi::CallbackInfo& info);
  Napi::Value update_thresholds(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

  void release(Napi::Env env);
  const std::shared_ptr<Model>& living(const char* op) const;
  Info& info_of(const Argument& name);
  Napi::Value submit(Napi::Env env, const char* op, std::shared_ptr<CancelFlag> cancel, ModelWork work);

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<Account> account_ = std::make_shared<Account>();
  std::shared_ptr<Model> model_;  // null once disposed
  std::vector<Info> infos_;
};

}  // namespace plumbline
