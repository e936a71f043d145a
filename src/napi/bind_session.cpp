#include "bind_session.h"

#include <algorithm>
#include <limits>

#include "bind_model.h"
#include "cancel_token.h"
#include "reply.h"

namespace plumbline {
namespace {

constexpr int32_t kMaxId = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxPosition = int64_t{1} << 24;  // beyond it a float cannot tell neighbours apart
constexpr int64_t kMaxSide = int64_t{1} << 20, kMaxFrames = int64_t{1} << 16;

void check_values(const char* op, const char* name, const std::vector<int32_t>& values, int64_t end) {
  for (size_t i = 0; i < values.size(); ++i)
    require(values[i] >= 0 && values[i] < end, "ERR_RANGE",
            std::string("[") + op + "] Expected " + name + " in 0.." + std::to_string(end - 1) + " but received " + std::to_string(values[i]) + " at " + std::to_string(i));
}

// The session checks what depends on its state: sequences, token ids, visual rows, earlier passes.
PassInput read_pass(const Argument& from, int64_t hidden) {
  PassInput pass;
  pass.sequences = from.field("sequences").i32();
  pass.cu_seqlens = from.field("cuSeqlens").i32(static_cast<int64_t>(pass.sequences.size()) + 1);
  pass.kind = from.field("kind").u8();
  const int64_t T = static_cast<int64_t>(pass.kind.size());
  pass.index = from.field("index").i32(T);
  pass.positions = from.field("positions").i32(3 * T);
  check_offsets(from.op(), "cuSeqlens", pass.cu_seqlens, T);
  std::vector<int32_t> sorted = pass.sequences;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  require(twice == sorted.end(), "ERR_ARGUMENT", "[extend] Expected each sequence once in a pass but received id " + std::to_string(twice == sorted.end() ? 0 : *twice) + " twice");
  for (int64_t t = 0; t < T; ++t)
    require(pass.kind[static_cast<size_t>(t)] <= 3, "ERR_RANGE", "[extend] Expected kind in 0..3 but received " + std::to_string(pass.kind[static_cast<size_t>(t)]) + " at " + std::to_string(t));
  check_values("extend", "positions", pass.positions, kMaxPosition);
  const Argument embeddings = from.field("embeddings"), logit_rows = from.field("logitRows"), hidden_rows = from.field("hiddenRows"), keep = from.field("keepLayerInputs");
  if (!embeddings.absent()) pass.embeddings = embeddings.f32();
  require(pass.embeddings.size() % static_cast<size_t>(hidden) == 0, "ERR_SHAPE",
          "[extend] Expected embeddings to be rows of " + std::to_string(hidden) + " but received " + std::to_string(pass.embeddings.size()) + " elements");
  if (!logit_rows.absent()) pass.logit_rows = logit_rows.i32();
  if (!hidden_rows.absent()) pass.hidden_rows = hidden_rows.i32();
  check_values("extend", "logitRows", pass.logit_rows, T);
  check_values("extend", "hiddenRows", pass.hidden_rows, T);
  if (!keep.absent()) pass.keep_layer_inputs = keep.boolean();
  return pass;
}

LossInput read_loss(const Argument& from) {
  LossInput loss;
  loss.pass = from.field("pass").i32();
  const int64_t R = static_cast<int64_t>(loss.pass.size());
  loss.row = from.field("row").i32(R);
  loss.target = from.field("target").i32(R);
  loss.scale = static_cast<float>(from.field("scale").number(-1e30, 1e30));
  return loss;
}

// sizes [n, 3] against the bytes of the frames; keeps every later product inside 64 bits.
void check_pictures(const std::vector<int32_t>& sizes, size_t bytes, const VisionSpec& vision) {
  require(!sizes.empty() && sizes.size() % 3 == 0, "ERR_SHAPE", "[encode] Expected sizes to be n * 3 numbers with n of at least 1 but received " + std::to_string(sizes.size()));
  const int64_t unit = int64_t{vision.patch} * vision.merge;
  uint64_t wanted = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) {
    const int64_t frames = sizes[i], height = sizes[i + 1], width = sizes[i + 2];
    const std::string received = " but received " + std::to_string(frames) + " frames of " + std::to_string(height) + " x " + std::to_string(width);
    require(frames > 0 && frames <= kMaxFrames && height > 0 && height <= kMaxSide && width > 0 && width <= kMaxSide, "ERR_RANGE",
            "[encode] Expected 1 to " + std::to_string(kMaxFrames) + " frames with sides of 1 to " + std::to_string(kMaxSide) + received);
    require(height % unit == 0 && width % unit == 0, "ERR_SHAPE", "[encode] Expected sides to be multiples of patch * merge = " + std::to_string(unit) + received);
    wanted += static_cast<uint64_t>(frames) * static_cast<uint64_t>(height) * static_cast<uint64_t>(width) * 3;
    require(wanted <= bytes, "ERR_SHAPE", "[encode] Expected frames to have at least " + std::to_string(wanted) + " bytes but received " + std::to_string(bytes));
  }
  require(wanted == bytes, "ERR_SHAPE", "[encode] Expected frames to have " + std::to_string(wanted) + " bytes but received " + std::to_string(bytes));
}

}  // namespace

int32_t SessionBinding::State::native_id(const char* op, int32_t id) const {
  const auto found = ids.find(id);
  require(found != ids.end(), "ERR_ARGUMENT", std::string("[") + op + "] Expected a live sequence of this session but received id " + std::to_string(id));
  return found->second;
}

void SessionBinding::State::forget_dead() {
  for (auto entry = ids.begin(); entry != ids.end();) entry = session.has(entry->second) ? std::next(entry) : ids.erase(entry);
}

Napi::Function SessionBinding::define(Napi::Env env) {
  return DefineClass(env, "Session",
                     {InstanceMethod<&SessionBinding::add>("add"), InstanceMethod<&SessionBinding::fork>("fork"), InstanceMethod<&SessionBinding::free>("free"),
                      InstanceMethod<&SessionBinding::encode>("encode"), InstanceMethod<&SessionBinding::extend>("extend"), InstanceMethod<&SessionBinding::loss>("loss"),
                      InstanceMethod<&SessionBinding::backward>("backward"), InstanceMethod<&SessionBinding::reset>("reset"), InstanceMethod<&SessionBinding::read>("read"),
                      InstanceMethod<&SessionBinding::token_forwards>("tokenForwards"), InstanceMethod<&SessionBinding::bytes>("bytes"),
                      InstanceMethod<&SessionBinding::dispose>("dispose")});
}

SessionBinding::SessionBinding(const Napi::CallbackInfo& info) : ObjectWrap(info), environment_(Environment::of(info.Env())) {
  guarded(info.Env(), [&] {
    const std::shared_ptr<Model> model = ModelBinding::read(Argument("Session", "model", info[0]));
    const Argument from("Session", "options", info[1]);
    SessionOptions options;
    options.training = from.field("training").boolean();
    options.recompute = from.field("recompute").boolean();
    options.detach_latents = from.field("detachLatents").boolean();
    options.vision_gradient = from.field("visionGradient").boolean();
    state_ = std::make_shared<State>(model, options);
    spec_ = model->spec;
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
  return environment_->submit(env, std::move(cancel), account_, [state = living(op), account = account_, work = std::move(work)](CpuBackend&, const CancelFlag&) {
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
      for (int32_t& sequence : pass.sequences) sequence = state.native_id("extend", sequence);
      PassOutput output = state.session.extend(pass);
      return [output = std::move(output)](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("pass", output.pass);
        result.Set("logits", to_array(env, output.logits));
        result.Set("hidden", to_array(env, output.hidden));
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
    const auto token = read_token(Argument("backward", "token", info[0]));
    return submit(info.Env(), "backward", token, [](State& state) {
      const Forget forget{state};
      state.session.backward();
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::reset(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "reset", nullptr, [](State& state) {
      state.session.reset();
      state.ids.clear();
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::read(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("read", info);
    living("read");
    constexpr const char* kinds[] = {"layer_input", "hidden", "embeds", "visual", "visual_state", "visual_grad"};
    const std::string what = kinds[arguments.at(0, "what").choice({"layer_input", "hidden", "embeds", "visual", "visual_state", "visual_grad"})];
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
