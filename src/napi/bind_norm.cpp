#include "bind_ops.h"
#include "staged.h"

namespace plumbline {
namespace {

struct NormInput {
  std::vector<float> x, weight, bias, dout;
  float eps;
  int64_t T, C;
};

// x, weight, [bias], [dout], eps, token: the order of all four norm functions.
NormInput read_norm(const Arguments& arguments, const char* op, bool has_bias, bool has_dout) {
  NormInput input{};
  size_t next = 0;
  input.x = arguments.at(next++, "x").f32();
  input.weight = arguments.at(next++, "weight").f32();
  input.C = size_of(input.weight);
  input.T = rows_of(op, "x", input.x.size(), input.C);
  if (has_bias) input.bias = arguments.at(next++, "bias").f32(input.C);
  if (has_dout) input.dout = arguments.at(next++, "dout").f32(size_of(input.x));
  input.eps = static_cast<float>(arguments.at(next, "eps").number(0, 1));
  return input;
}

Napi::Value rms_norm(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("rmsNorm", info);
    NormInput input = read_norm(arguments, "rmsNorm", false, false);
    return submit_op(info, arguments.at(3, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const Staged<float> x(backend, input.x), weight(backend, input.weight);
      Made y(backend, input.x.size()), rstd(backend, count(input.T));
      backend.rms_norm(x.data(), weight.data(), input.eps, y.data(), rstd.data(), input.T, input.C);
      return reply_array(y.take());
    });
  });
}

Napi::Value rms_norm_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("rmsNormGrad", info);
    NormInput input = read_norm(arguments, "rmsNormGrad", false, true);
    return submit_op(info, arguments.at(4, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const Staged<float> x(backend, input.x), weight(backend, input.weight), dout(backend, input.dout);
      Made y(backend, input.x.size()), rstd(backend, count(input.T)), dx(backend, input.x.size()), dweight(backend, count(input.C));
      backend.rms_norm(x.data(), weight.data(), input.eps, y.data(), rstd.data(), input.T, input.C);
      backend.rms_norm_grad(dout.data(), x.data(), weight.data(), rstd.data(), dx.data(), dweight.data(), nullptr, input.T, input.C, false);
      return reply_arrays(std::make_pair("dx", dx.take()), std::make_pair("dweight", dweight.take()));
    });
  });
}

Napi::Value layer_norm(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("layerNorm", info);
    NormInput input = read_norm(arguments, "layerNorm", true, false);
    return submit_op(info, arguments.at(4, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const Staged<float> x(backend, input.x), weight(backend, input.weight), bias(backend, input.bias);
      Made y(backend, input.x.size()), mean(backend, count(input.T)), rstd(backend, count(input.T));
      backend.layer_norm(x.data(), weight.data(), bias.data(), input.eps, y.data(), mean.data(), rstd.data(), input.T, input.C);
      return reply_array(y.take());
    });
  });
}

Napi::Value layer_norm_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("layerNormGrad", info);
    NormInput input = read_norm(arguments, "layerNormGrad", true, true);
    return submit_op(info, arguments.at(5, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const Staged<float> x(backend, input.x), weight(backend, input.weight), bias(backend, input.bias), dout(backend, input.dout);
      Made y(backend, input.x.size()), mean(backend, count(input.T)), rstd(backend, count(input.T));
      Made dx(backend, input.x.size()), dweight(backend, count(input.C)), dbias(backend, count(input.C));
      backend.layer_norm(x.data(), weight.data(), bias.data(), input.eps, y.data(), mean.data(), rstd.data(), input.T, input.C);
      backend.layer_norm_grad(dout.data(), x.data(), weight.data(), mean.data(), rstd.data(), dx.data(), dweight.data(), dbias.data(), input.T, input.C, false);
      return reply_arrays(std::make_pair("dx", dx.take()), std::make_pair("dweight", dweight.take()), std::make_pair("dbias", dbias.take()));
    });
  });
}

}  // namespace

void export_norm_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("rmsNorm", Napi::Function::New<rms_norm>(env, "rmsNorm"));
  ops.Set("rmsNormGrad", Napi::Function::New<rms_norm_grad>(env, "rmsNormGrad"));
  ops.Set("layerNorm", Napi::Function::New<layer_norm>(env, "layerNorm"));
  ops.Set("layerNormGrad", Napi::Function::New<layer_norm_grad>(env, "layerNormGrad"));
}

}  // namespace plumbline
