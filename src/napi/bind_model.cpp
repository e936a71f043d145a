#include "bind_model.h"

#include <cmath>

#include "../model/gradient_spectra.h"
#include "cancel_token.h"
#include "checkpoint_file.h"
#include "read_spec.h"
#include "reply.h"

namespace plumbline {
namespace {

constexpr napi_type_tag kModelTag{0x2f7be61c94d04a85, 0xb3e05d1877c96f42};
constexpr int64_t kMaxStep = int64_t{1} << 40;
constexpr double kMaxBeta = 1 - 1e-9;  // at 1 the bias correction divides by zero

}  // namespace

Napi::Function ModelBinding::define(Napi::Env env) {
  return DefineClass(env, "Model",
                     {InstanceMethod<&ModelBinding::parameters>("parameters"), InstanceMethod<&ModelBinding::bytes>("bytes"),
                      InstanceMethod<&ModelBinding::set_trainable>("setTrainable"), InstanceMethod<&ModelBinding::load_file>("loadFile"),
                      InstanceMethod<&ModelBinding::read_parameter>("readParameter"), InstanceMethod<&ModelBinding::read_parameter_bf16>("readParameterBf16"),
                      InstanceMethod<&ModelBinding::read_merged>("readMerged"),
                      InstanceMethod<&ModelBinding::merge_adapters>("mergeAdapters"), InstanceMethod<&ModelBinding::unmerge_adapters>("unmergeAdapters"),
                      InstanceMethod<&ModelBinding::merged_adapters>("mergedAdapters"),
                      InstanceMethod<&ModelBinding::write_parameter>("writeParameter"), InstanceMethod<&ModelBinding::initialize>("initialize"),
                      InstanceMethod<&ModelBinding::enable_training>("enableTraining"), InstanceMethod<&ModelBinding::zero_gradients>("zeroGradients"),
                      InstanceMethod<&ModelBinding::optimizer_step>("optimizerStep"), InstanceMethod<&ModelBinding::gradient_norm>("gradientNorm"),
                      InstanceMethod<&ModelBinding::update_thresholds>("updateThresholds"), InstanceMethod<&ModelBinding::gradient_spectra>("gradientSpectra"),
                      InstanceMethod<&ModelBinding::dispose>("dispose")});
}

ModelBinding::ModelBinding(const Napi::CallbackInfo& info) : ObjectWrap(info), environment_(Environment::of(info.Env())) {
  guarded(info.Env(), [&] {
    const ModelSpec spec = read_model_spec(Argument("Model", "spec", info[0]));
    model_ = std::make_shared<Model>(environment_->backend(read_device_name(Argument("Model", "device", info[1]))), spec);
    for (const Parameter& p : model_->parameters.all()) infos_.push_back({p.name, p.shape, p.dtype == DType::bf16, p.trainable, p.size});
    account_->now = static_cast<int64_t>(model_->parameters.bytes());
    info.This().As<Napi::Object>().TypeTag(&kModelTag);
    environment_->live.models += 1;
    environment_->tell(info.Env(), *account_);
  });
}

ModelBinding::~ModelBinding() { release(Env()); }

void ModelBinding::release(Napi::Env env) {
  if (!model_) return;
  environment_->live.models -= 1;
  environment_->close(env, *account_);
  environment_->post([model = std::move(model_)] {});  // freed after the jobs that use it, off this thread
  model_ = nullptr;
}

std::shared_ptr<Model> ModelBinding::read(const Argument& argument) {
  if (!argument.value().IsObject() || !argument.value().As<Napi::Object>().CheckTypeTag(&kModelTag)) argument.reject("ERR_ARGUMENT", "a Model");
  return Unwrap(argument.value().As<Napi::Object>())->living(argument.op());
}

const std::shared_ptr<Model>& ModelBinding::living(const char* op) const {
  require(model_ != nullptr, "ERR_DISPOSED", std::string("[") + op + "] Expected a living Model but received one that is disposed");
  return model_;
}

ModelBinding::Info& ModelBinding::info_of(const Argument& argument) {
  const std::string name = argument.string();
  for (Info& info : infos_)
    if (info.name == name) return info;
  argument.reject("ERR_ARGUMENT", "the name of a parameter");
}

Napi::Value ModelBinding::submit(Napi::Env env, const char* op, std::shared_ptr<CancelFlag> cancel, ModelWork work) {
  const std::shared_ptr<Model> alive = living(op);
  return environment_->submit(env, std::move(cancel), account_, alive->backend, [model = alive, account = account_, work = std::move(work)](Backend&, const CancelFlag& flag) {
    struct Recount {  // also after a failure
      Model& model;
      Account& account;
      ~Recount() { account.now = static_cast<int64_t>(model.parameters.bytes() + model.adapters.bytes()); }
    } recount{*model, *account};
    return work(*model, flag);
  });
}

Napi::Value ModelBinding::parameters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    living("parameters");
    Napi::Array list = Napi::Array::New(info.Env(), infos_.size());
    for (uint32_t i = 0; i < infos_.size(); ++i) {
      Napi::Object item = Napi::Object::New(info.Env());
      Napi::Array shape = Napi::Array::New(info.Env(), infos_[i].shape.size());
      for (uint32_t axis = 0; axis < infos_[i].shape.size(); ++axis) shape.Set(axis, static_cast<double>(infos_[i].shape[axis]));
      item.Set("name", infos_[i].name);
      item.Set("shape", shape);
      item.Set("dtype", infos_[i].is_bf16 ? "bf16" : "f32");
      item.Set("trainable", infos_[i].trainable);
      list.Set(i, item);
    }
    return list;
  });
}

Napi::Value ModelBinding::bytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    living("bytes");
    return Napi::Number::New(info.Env(), static_cast<double>(account_->now.load()));
  });
}

void ModelBinding::set_trainable(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const Arguments arguments("setTrainable", info);
    const std::shared_ptr<Model> model = living("setTrainable");
    Info& parameter = info_of(arguments.at(0, "name"));
    const bool trainable = arguments.at(1, "trainable").boolean();
    parameter.trainable = trainable;
    environment_->post([model, name = parameter.name, trainable] { model->parameters.set_trainable(name, trainable); });
  });
}

Napi::Value ModelBinding::load_file(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("loadFile", info);
    living("loadFile");
    const std::string path = arguments.at(0, "path").string();
    std::vector<FileTensor> tensors;
    for (const Argument& item : arguments.at(1, "tensors").elements(1u << 20)) {
      FileTensor tensor;
      const Info& parameter = info_of(item.field("name"));
      constexpr const char* kinds[] = {"F32", "F16", "BF16"};
      const size_t kind = item.field("dtype").choice({"F32", "F16", "BF16"});
      tensor.name = parameter.name;
      tensor.kind = kinds[kind];
      tensor.offset = item.field("offset").integer(0, kMaxSafeInteger);
      const Argument first = item.field("first");
      const bool is_part = !first.absent();
      tensor.first = is_part ? first.integer(0, parameter.size) : 0;
      const int64_t width = kind == 0 ? 4 : 2, bytes = (parameter.size - tensor.first) * width;
      tensor.bytes = item.field("bytes").integer(0, kMaxSafeInteger);
      require(tensor.bytes == bytes || (is_part && tensor.bytes < bytes && tensor.bytes % width == 0), "ERR_CHECKPOINT",
              "[loadFile] Expected '" + tensor.name + "' to have " + (is_part ? "at most " : "") + std::to_string(bytes) + " bytes but received " + std::to_string(tensor.bytes));
      tensors.push_back(std::move(tensor));
    }
    const auto token = read_token(arguments.at(2, "token"));
    return submit(info.Env(), "loadFile", token, [path, tensors = std::move(tensors), cpu = environment_->cpu()](Model& model, const CancelFlag& flag) {
      require(model.adapters.merged() == 0, "ERR_ARGUMENT", "[loadFile] Expected an adapter that is not merged into the weights, because they are replaced; call unmergeAdapter first, or load the model anew");
      load_tensors(path, tensors, model.parameters, cpu->pool(), flag);
      return reply_nothing();
    });
  });
}

Napi::Value ModelBinding::initialize(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("initialize", info);
    living("initialize");
    const std::string name = info_of(arguments.at(0, "name")).name;
    const char* kind = arguments.at(1, "kind").choice({"normal", "constant"}) == 0 ? "normal" : "constant";
    const float scale = static_cast<float>(arguments.at(2, "scale").number(-1e30, 1e30));
    const uint64_t seed = static_cast<uint64_t>(arguments.at(3, "seed").integer(0, kMaxSafeInteger));
    return submit(info.Env(), "initialize", nullptr, [name, kind, scale, seed](Model& model, const CancelFlag&) {
      model.parameters.initialize(model.parameters.find(name), kind, scale, seed);
      return reply_nothing();
    });
  });
}

Napi::Value ModelBinding::enable_training(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "enableTraining", nullptr, [](Model& model, const CancelFlag&) {
      model.parameters.enable_training();
      return reply_nothing();
    });
  });
}

Napi::Value ModelBinding::zero_gradients(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "zeroGradients", nullptr, [](Model& model, const CancelFlag&) {
      model.parameters.zero_gradients();
      model.router_scores.clear();
      return reply_nothing();
    });
  });
}

Napi::Value ModelBinding::optimizer_step(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("optimizerStep", info);
    const Argument from = arguments.at(0, "options");
    living("optimizerStep");
    OptimizerOptions options{};
    options.learning_rate = static_cast<decltype(options.learning_rate)>(from.field("learningRate").number(0, 1e6));
    options.beta1 = static_cast<decltype(options.beta1)>(from.field("beta1").number(0, kMaxBeta));
    options.beta2 = static_cast<decltype(options.beta2)>(from.field("beta2").number(0, kMaxBeta));
    options.epsilon = static_cast<decltype(options.epsilon)>(from.field("epsilon").number(1e-30, 1e6));
    options.weight_decay = static_cast<decltype(options.weight_decay)>(from.field("weightDecay").number(0, 1e6));
    options.max_norm = static_cast<decltype(options.max_norm)>(from.field("maxNorm").number(0, 1e30));
    options.step = from.field("step").integer(1, kMaxStep);
    const auto token = read_token(arguments.at(1, "token"));
    return submit(info.Env(), "optimizerStep", token,
                  [options](Model& model, const CancelFlag&) { return reply_number(model.parameters.step(options)); });
  });
}

Napi::Value ModelBinding::gradient_norm(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "gradientNorm", nullptr, [](Model& model, const CancelFlag&) { return reply_number(model.parameters.gradient_norm()); });
  });
}

Napi::Value ModelBinding::gradient_spectra(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gradientSpectra", info);
    living("gradientSpectra");
    std::vector<std::string> names;
    for (const Argument& name : arguments.at(0, "names").elements(1u << 20)) names.push_back(info_of(name).name);
    const auto token = read_token(arguments.at(1, "token"));
    return submit(info.Env(), "gradientSpectra", token, [names = std::move(names)](Model& model, const CancelFlag&) { return reply_array(plumbline::gradient_spectra(model, names)); });
  });
}

Napi::Value ModelBinding::update_thresholds(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("updateThresholds", info);
    living("updateThresholds");
    const double rate = arguments.at(0, "rate").number(0, 1), fraction = arguments.at(1, "fraction").number(0, 1);
    return submit(info.Env(), "updateThresholds", nullptr, [rate, fraction](Model& model, const CancelFlag&) {
      ThresholdUpdate update = plumbline::update_thresholds(model, rate, fraction);
      return reply_arrays(std::make_pair("layers", std::move(update.layers)), std::make_pair("thresholds", std::move(update.thresholds)));
    });
  });
}

}  // namespace plumbline
