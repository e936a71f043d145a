// Visual replay and routing figures of NativeSession.
#include <limits>

#include "bind_session.h"
#include "cancel_token.h"
#include "read_session.h"
#include "reply.h"

namespace plumbline {
namespace {

constexpr int32_t kMaxId = std::numeric_limits<int32_t>::max();

Napi::Value replay_object(Napi::Env env, const ReplayOutput& output, bool with_saliency) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("replay", output.replay);
  result.Set("rows", to_array(env, output.rows));
  result.Set("firstRow", to_array(env, output.first_row));
  result.Set("cuSelected", to_array(env, output.cu_selected));
  result.Set("selected", to_array(env, output.selected));
  result.Set("weights", to_array(env, output.weights));
  result.Set("windows", to_array(env, output.windows));
  result.Set("boxes", to_array(env, output.boxes));
  result.Set("srLosses", to_array(env, output.sr_losses));
  if (with_saliency) result.Set("saliency", to_array(env, output.saliency));
  return result;
}

}  // namespace

Napi::Value SessionBinding::set_pictures(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("setPictures", info);
    living("setPictures");
    const int32_t sequence = static_cast<int32_t>(arguments.at(0, "sequence").integer(0, kMaxId));
    PictureSet pictures = read_pictures(arguments.at(1, "pictures"), spec_.vision);
    return submit(info.Env(), "setPictures", nullptr, [sequence, pictures = std::move(pictures)](State& state) mutable {
      state.session.set_pictures(state.native_id("setPictures", sequence), std::move(pictures));
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::replay(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("replay", info);
    living("replay");
    std::vector<int32_t> sequences = arguments.at(0, "sequences").i32();
    const Argument options = arguments.at(1, "options");
    const bool targets = options.field("targets").boolean(), saliency = options.field("saliency").boolean();
    const auto token = read_token(arguments.at(2, "token"));
    return submit(info.Env(), "replay", token, [sequences = std::move(sequences), targets, saliency](State& state) mutable {
      state.to_native("replay", &sequences);
      ReplayOutput output = state.session.replay(sequences, targets, saliency);
      return [output = std::move(output), saliency](Napi::Env env) { return replay_object(env, output, saliency); };
    });
  });
}

Napi::Value SessionBinding::keep_latents(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("keepLatents");
    std::vector<int32_t> sequences = Argument("keepLatents", "sequences", info[0]).i32();
    return submit(info.Env(), "keepLatents", nullptr, [sequences = std::move(sequences)](State& state) mutable {
      state.to_native("keepLatents", &sequences);
      return reply_number(state.session.keep_latents(sequences));
    });
  });
}

Napi::Value SessionBinding::restart(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("restart");
    std::vector<int32_t> sequences = Argument("restart", "sequences", info[0]).i32();
    return submit(info.Env(), "restart", nullptr, [sequences = std::move(sequences)](State& state) mutable {
      state.to_native("restart", &sequences);
      state.session.restart(sequences);
      return reply_nothing();
    });
  });
}

Napi::Value SessionBinding::read_replay(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("readReplay", info);
    living("readReplay");
    const int32_t replay = static_cast<int32_t>(arguments.at(0, "replay").integer(0, kMaxId)), index = static_cast<int32_t>(arguments.at(1, "index").integer(0, kMaxId));
    return submit(info.Env(), "readReplay", nullptr, [replay, index](State& state) {
      ReplayDetail detail = state.session.read_replay(replay, index);
      return [detail = std::move(detail)](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("block", to_array(env, detail.block));
        result.Set("b", to_array(env, detail.b));
        result.Set("f", to_array(env, detail.f));
        result.Set("u", to_array(env, detail.u));
        result.Set("crop", to_array(env, detail.crop));
        return result;
      };
    });
  });
}

Napi::Value SessionBinding::routing_figures(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "routingFigures", nullptr, [](State& state) {
      const RoutingFigures figures = state.session.routing_figures();
      return [figures](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("scored", static_cast<double>(figures.scored));
        result.Set("routed", static_cast<double>(figures.routed));
        result.Set("extraRows", static_cast<double>(figures.extra_rows));
        result.Set("scores", static_cast<double>(figures.scores));
        result.Set("meanSquare", figures.scores > 0 ? figures.squares / static_cast<double>(figures.scores) : 0.0);
        return result;
      };
    });
  });
}

}  // namespace plumbline
