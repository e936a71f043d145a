#pragma once
// NativeSession of lib/native.ts.
#include <napi.h>

#include <atomic>
#include <unordered_map>

#include "../model/session.h"
#include "args.h"
#include "environment.h"

namespace plumbline {

class SessionBinding : public Napi::ObjectWrap<SessionBinding> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit SessionBinding(const Napi::CallbackInfo& info);
  ~SessionBinding() override;

 private:
  // The session with the ids that JavaScript uses for its sequences. They are given out on the JS thread, so that add() needs not
  // wait for the jobs before it; the session's own ids follow on the queue thread.
  struct State {
    explicit State(std::shared_ptr<Model> model, const SessionOptions& options) : session(std::move(model), options) {}
    int32_t native_id(const char* op, int32_t id) const;
    void to_native(const char* op, std::vector<int32_t>* sequences) const;
    void forget_dead();

    Session session;                            // queue thread
    std::unordered_map<int32_t, int32_t> ids;   // queue thread
    std::atomic<int64_t> token_forwards{0};
  };
  struct Forget {  // a sweep, or a loss that ends half-way, frees sequences
    State& state;
    ~Forget() { state.forget_dead(); }
  };
  using SessionWork = std::function<Reply(State&)>;

  Napi::Value add(const Napi::CallbackInfo& info);
  Napi::Value fork(const Napi::CallbackInfo& info);
  Napi::Value free(const Napi::CallbackInfo& info);
  Napi::Value encode(const Napi::CallbackInfo& info);
  Napi::Value extend(const Napi::CallbackInfo& info);
  Napi::Value set_pictures(const Napi::CallbackInfo& info);
  Napi::Value replay(const Napi::CallbackInfo& info);
  Napi::Value keep_latents(const Napi::CallbackInfo& info);
  Napi::Value restart(const Napi::CallbackInfo& info);
  Napi::Value read_replay(const Napi::CallbackInfo& info);
  Napi::Value gradient_norms(const Napi::CallbackInfo& info);
  Napi::Value routing_figures(const Napi::CallbackInfo& info);
  Napi::Value loss(const Napi::CallbackInfo& info);
  Napi::Value backward(const Napi::CallbackInfo& info);
  Napi::Value reset(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value token_forwards(const Napi::CallbackInfo& info);
  Napi::Value bytes(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

  void release(Napi::Env env);
  const std::shared_ptr<State>& living(const char* op) const;
  int32_t new_id(const char* op);
  Napi::Value submit(Napi::Env env, const char* op, std::shared_ptr<CancelFlag> cancel, SessionWork work);

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<Account> account_ = std::make_shared<Account>();
  std::shared_ptr<State> state_;  // null once disposed
  std::shared_ptr<Backend> backend_;
  ModelSpec spec_;
  int32_t next_id_ = 0;
};

}  // namespace plumbline
