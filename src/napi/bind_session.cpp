#include "bind_session.h"

#include <limits>

#include "../core/mix.h"
#include "bind_model.h"
#include "cancel_token.h"
#include "read_session.h"
#include "reply.h"

namespace plumbline {
namespace {

constexpr int32_t kMaxId = std::numeric_limits<int32_t>::max();


Napi::Value routing_array(Napi::Env env, const std::vector<RoutingTrace>& traces) {
  Napi::Array array = Napi::Array::New(env, traces.size());
  for (uint32_t i = 0; i < traces.size(); ++i) {
    const RoutingTrace& trace = traces[i];
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("layer", trace.layer);
    entry.Set("depth", trace.depth);
    entry.Set("candidates", to_array(env, trace.candidates));
    entry.Set("scores", to_array(env, trace.scores));
    entry.Set("gates", to_array(env, trace.gates));
    entry.Set("routed", to_array(env, trace.routed));
    array.Set(i, entry);
  }
  return array;
}

}  // namespace

int32_t SessionBinding::State::native_id(const char* op, int32_t id) const {
  const auto found = ids.find(id);
  require(found != ids.end(), "ERR_ARGUMENT", std::string("[") + op + "] Expected a live sequence of this session but received id " + std::to_string(id));
  return found->second;
}

void SessionBinding::State::to_native(const char* op, std::vector<int32_t>* sequences) const {
  for (int32_t& sequence : *sequences) sequence = native_id(op, sequence);
}

void SessionBinding::State::forget_dead() {
  for (auto entry = ids.begin(); entry != ids.end();) entry = session.has(entry->second) ? std::next(entry) : ids.erase(entry);
}

Napi::Function SessionBinding::define(Napi::Env env) {
  return DefineClass(env, "Session",
                     {InstanceMethod<&SessionBinding::add>("add"), InstanceMethod<&SessionBinding::fork>("fork"), InstanceMethod<&SessionBinding::free>("free"),
                      InstanceMethod<&SessionBinding::encode>("encode"), InstanceMethod<&SessionBinding::extend>("extend"),
                      InstanceMethod<&SessionBinding::set_pictures>("setPictures"), InstanceMethod<&SessionBinding::replay>("replay"),
                      InstanceMethod<&SessionBinding::keep_latents>("keepLatents"), InstanceMethod<&SessionBinding::restart>("restart"),
                      InstanceMethod<&SessionBinding::read_replay>("readReplay"), InstanceMethod<&SessionBinding::routing_figures>("routingFigures"), InstanceMethod<&SessionBinding::loss>("loss"),
                      InstanceMethod<&SessionBinding::backward>("backward"), InstanceMethod<&SessionBinding::gradient_norms>("gradientNorms"), InstanceMethod<&SessionBinding::reset>("reset"), InstanceMethod<&SessionBinding::read>("read"),
                      InstanceMethod<&SessionBinding::token_forwards>("tokenForwards"), InstanceMethod<&SessionBinding::bytes>("bytes"),
                      InstanceMethod<&SessionBinding::dispose>("dispose")});
}

SessionBinding::SessionBinding(const Napi::CallbackInfo& info) : ObjectWrap(info), environment_(Environment::of(info.Env())) {
  guarded(info.Env(), [&] {
    const std::shared_ptr<Model> model = ModelBinding::read(Argument("Session", "model", info[0]));
    const SessionOptions options = read_session_options(Argument("Session", "options", info[1]));
    state_ = std::make_shared<State>(model, options);
    spec_ = model->spec;
    backend_ = model->backend;
    environment_->live.sessions += 1;
  });
}

SessionBinding::~SessionBinding() { release(Env()); }

void SessionBinding::release(Napi::Env env) {
  if (!state_) return;
  environment_->live.sessions -= 1;
  environment_->close(env, *account_);
  environment_->post([state = std::move(state_)] {});  // freed after the jobs that use it, off this thread
  state_ = nullptr;
}

const std::shared_ptr<SessionBinding::State>& SessionBinding::living(const char* op) const {
  require(state_ != nullptr, "ERR_DISPOSED", std::string("[") + op + "] Expected a living Session but received one that is disposed");
  return state_;
}

int32_t SessionBinding::new_id(const char* op) {
  require(next_id_ < kMaxId, "ERR_RANGE", std::string("[") + op + "] Expected fewer than 2^31 sequences in the life of a session; make a new one");
  return next_id_++;
}

Napi::Value SessionBinding::submit(Napi::Env env, const char* op, std::shared_ptr<CancelFlag> cancel, SessionWork work) {
  return environment_->submit(env, std::move(cancel), account_, backend_, [state = living(op), account = account_, work = std::move(work)](Backend&, const CancelFlag&) {
    struct Recount {  // also after a failure
      State& state;
      Account& account;
      ~Recount() {
        account.now = static_cast<int64_t>(state.session.bytes());
        state.token_forwards = state.session.token_forwards();
      }
    } recount{*state, *account};
    return work(*state);
  });
}

Napi::Value SessionBinding::add(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::shared_ptr<State> state = living("add");
    const int32_t id = new_id("add");
    environment_->post([state, id] { state->ids.emplace(id, state->session.add()); });
    return Napi::Number::New(info.Env(), id);
  });
}

Napi::Value SessionBinding::fork(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("fork");
    const int32_t sequence = static_cast<int32_t>(Argument("fork", "sequence", info[0]).integer(0, kMaxId));
    const int32_t id = new_id("fork");
    return submit(info.Env(), "fork", nullptr, [sequence, id](State& state) {
      state.ids.emplace(id, state.session.fork(state.native_id("fork", sequence)));
      return reply_number(id);
    });
  });
}

Napi::Value SessionBinding::free(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("free");
    const int32_t sequence = static_cast<int32_t>(Argument("free", "sequence", info[0]).integer(0, kMaxId));
    return submit(info.Env(), "free", nullptr, [sequence](State& state) {
      state.session.free(state.native_id("free", sequence));
      state.ids.erase(sequence);
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::encode(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("encode", info);
    living("encode");
    std::vector<uint8_t> frames = arguments.at(0, "frames").u8();
    std::vector<int32_t> sizes = arguments.at(1, "sizes").i32();
    const auto token = read_token(arguments.at(2, "token"));
    check_pictures(sizes, frames.size(), spec_.vision);
    return submit(info.Env(), "encode", token, [frames = std::move(frames), sizes = std::move(sizes)](State& state) { return reply_number(state.session.encode(frames, sizes)); });
  });
}

Napi::Value SessionBinding::extend(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("extend", info);
    living("extend");
    PassInput pass = read_pass(arguments.at(0, "pass"), spec_.text.hidden);
    const auto token = read_token(arguments.at(1, "token"));
    return submit(info.Env(), "extend", token, [pass = std::move(pass)](State& state) mutable {
      state.to_native("extend", &pass.sequences);
      const bool traced = pass.trace_routing;
      PassOutput output = state.session.extend(std::move(pass));
      return [output = std::move(output), traced](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("pass", output.pass);
        result.Set("logits", to_array(env, output.logits));
        result.Set("hidden", to_array(env, output.hidden));
        if (traced) result.Set("routing", routing_array(env, output.routing));
        return result;
      };
    });
  });
}

Napi::Value SessionBinding::loss(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("loss", info);
    living("loss");
    LossInput input = read_loss(arguments.at(0, "loss"));
    const auto token = read_token(arguments.at(1, "token"));
    return submit(info.Env(), "loss", token, [input = std::move(input)](State& state) {
      const Forget forget{state};
      LossOutput output = state.session.loss(input);
      return reply_arrays(std::make_pair("losses", std::move(output.losses)), std::make_pair("argmax", std::move(output.argmax)));
    });
  });
}

Napi::Value SessionBinding::backward(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("backward");
    const Arguments arguments("backward", info);
    const float penalty = static_cast<float>(arguments.at(0, "routerPenalty").number(0, 1e6));
    const auto token = read_token(arguments.at(1, "token"));
    return submit(info.Env(), "backward", token, [penalty](State& state) {
      const Forget forget{state};
      state.session.backward(penalty);
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::gradient_norms(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "gradientNorms", nullptr, [](State& state) {
      return [found = state.session.gradient_norms()](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("levels", static_cast<double>(found.levels));
        result.Set("rows", to_array(env, found.rows));
        result.Set("norms", to_array(env, found.norms));
        return result;
      };
    });
  });
}

Napi::Value SessionBinding::reset(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Argument seed("reset", "dropoutSeed", info[0]);
    const uint64_t key = seed.absent() ? 0 : derive_key(1, static_cast<uint64_t>(seed.integer(0, kMaxSafeInteger)));
    return submit(info.Env(), "reset", nullptr, [key](State& state) {
      state.session.reset(key);
      state.ids.clear();
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::read(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("read", info);
    living("read");
    constexpr const char* kinds[] = {"layer_input", "layer_qkv", "hidden", "embeds", "visual", "visual_state", "visual_grad"};
    const std::string what = kinds[arguments.at(0, "what").choice({"layer_input", "layer_qkv", "hidden", "embeds", "visual", "visual_state", "visual_grad"})];
    const int32_t pass = static_cast<int32_t>(arguments.at(1, "pass").integer(0, kMaxId));
    const int32_t layer = static_cast<int32_t>(arguments.at(2, "layer").integer(0, kMaxId));
    return submit(info.Env(), "read", nullptr, [what, pass, layer](State& state) {
      int64_t width = 0;
      std::vector<float> data = state.session.read(what, pass, layer, &width);
      return [data = std::move(data), width](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("data", to_array(env, data));
        result.Set("width", static_cast<double>(width));
        return result;
      };
    });
  });
}

Napi::Value SessionBinding::token_forwards(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Number::New(info.Env(), static_cast<double>(living("tokenForwards")->token_forwards.load())); });
}

Napi::Value SessionBinding::bytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    living("bytes");
    return Napi::Number::New(info.Env(), static_cast<double>(account_->now.load()));
  });
}

}  // namespace plumbline
