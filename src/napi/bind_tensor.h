#pragma once
// NativeTensor of lib/native.ts: f32 memory of the backend that JavaScript owns. It never gives out a view of it.
#include <napi.h>

#include "../model/memory.h"
#include "args.h"
#include "environment.h"

namespace plumbline {

// Shared with the jobs that use the Tensor, so that dispose() in the middle of one takes nothing away.
struct TensorMemory {
  TensorMemory(std::shared_ptr<Backend> owner, int64_t elements)
      : backend(std::move(owner)), size(elements), block(*backend, static_cast<size_t>(elements) * sizeof(float), true) {}
  float* floats(const Backend& user) const {
    require(&user == backend.get(), "ERR_ARGUMENT",
            std::string("[Tensor] Expected a Tensor of the device that the operation runs on, '") + user.name() + "', but received one of '" + backend->name() + "'; copy it with read() and write()");
    return block.floats();
  }
  const std::shared_ptr<Backend> backend;  // outlives the block
  const int64_t size;
  const Block block;
};

class TensorBinding : public Napi::ObjectWrap<TensorBinding> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit TensorBinding(const Napi::CallbackInfo& info);
  ~TensorBinding() override;

  static bool is_tensor(Napi::Value value);
  // The memory behind an argument; throws when it is something else or disposed.
  static std::shared_ptr<TensorMemory> memory_of(const Argument& argument);

 private:
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

  void release(Napi::Env env);
  const std::shared_ptr<TensorMemory>& living(const char* op) const;

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<Account> account_ = std::make_shared<Account>();
  std::shared_ptr<TensorMemory> memory_;  // null once disposed
};

}  // namespace plumbline
