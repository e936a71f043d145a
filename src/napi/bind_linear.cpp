#include "bind_ops.h"
#include "staged.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 31;

struct LinearInput {
  std::vector<float> x, w, bias, dout;
  std::vector<uint16_t> w_bf16;
  bool is_bf16 = false;
  int64_t M, N, K;
};

// The weight where the backend can reach it.
class StagedWeight {
 public:
  StagedWeight(Backend& backend, const LinearInput& input) : f32_(backend, input.w), bf16_(backend, input.w_bf16), input_(input) {}
  Weight weight() const {
    if (input_.is_bf16) return Weight{bf16_.data(), DType::bf16, input_.N, input_.K};
    return Weight{f32_.data(), DType::f32, input_.N, input_.K};
  }

 private:
  Staged<float> f32_;
  Staged<uint16_t> bf16_;
  const LinearInput& input_;
};

// x, w, then bias (linear) or dout (linearGrad), then m, n, k.
LinearInput read_linear(const Arguments& arguments, bool is_gradient) {
  LinearInput input{};
  input.M = arguments.at(3, "m").integer(0, kMaxExtent);
  input.N = arguments.at(4, "n").integer(1, kMaxExtent);
  input.K = arguments.at(5, "k").integer(1, kMaxExtent);
  input.x = arguments.at(0, "x").f32(input.M * input.K);
  const Argument w = arguments.at(1, "w"), third = arguments.at(2, is_gradient ? "dout" : "bias");
  input.is_bf16 = w.is_array_of(napi_uint16_array);
  if (input.is_bf16) input.w_bf16 = w.u16(input.N * input.K);
  else input.w = w.f32(input.N * input.K);
  if (is_gradient) input.dout = third.f32(input.M * input.N);
  else if (!third.absent()) input.bias = third.f32(input.N);
  return input;
}

Napi::Value linear(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("linear", info);
    LinearInput input = read_linear(arguments, false);
    return submit_op(info, arguments.at(6, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const Staged<float> x(backend, input.x), bias(backend, input.bias);
      const StagedWeight w(backend, input);
      Made y(backend, count(input.M * input.N));
      if (input.M > 0) backend.linear(x.data(), w.weight(), input.bias.empty() ? nullptr : bias.data(), y.data(), input.M, false);
      return reply_array(y.take());
    });
  });
}

Napi::Value linear_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("linearGrad", info);
    LinearInput input = read_linear(arguments, true);
    return submit_op(info, arguments.at(6, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const Staged<float> x(backend, input.x), dout(backend, input.dout);
      const StagedWeight w(backend, input);
      Made dx(backend, input.x.size()), dw(backend, count(input.N * input.K)), dbias(backend, count(input.N));
      if (input.M > 0) {
        backend.linear_grad_input(dout.data(), w.weight(), dx.data(), input.M, false);
        backend.linear_grad_weight(dout.data(), x.data(), dw.data(), dbias.data(), input.M, input.N, input.K);
      }
      return reply_arrays(std::make_pair("dx", dx.take()), std::make_pair("dw", dw.take()), std::make_pair("dbias", dbias.take()));
    });
  });
}

Napi::Value cross_entropy(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("crossEntropy", info);
    std::vector<float> logits = arguments.at(0, "logits").f32();
    std::vector<int32_t> targets = arguments.at(1, "targets").i32();
    const float scale = static_cast<float>(arguments.at(2, "scale").number(-1e30, 1e30));
    const int64_t R = static_cast<int64_t>(targets.size());
    const int64_t V = R == 0 ? 1 : size_of(logits) / R;
    require(V >= 1 && size_of(logits) == R * V && V <= kMaxExtent, "ERR_SHAPE",
            "[crossEntropy] Expected logits to have a whole number of elements for each of " + std::to_string(R) + " targets but received " + std::to_string(logits.size()));
    for (size_t r = 0; r < targets.size(); ++r)
      require(targets[r] == -100 || (targets[r] >= 0 && targets[r] < V), "ERR_RANGE",
              "[crossEntropy] Expected targets in 0.." + std::to_string(V - 1) + " or -100 but received " + std::to_string(targets[r]) + " at " + std::to_string(r));
    return submit_op(info, arguments.at(3, "token"), [logits = std::move(logits), targets = std::move(targets), scale, R, V](Backend& backend, const CancelFlag&) mutable {
      Made losses(backend, count(R)), dlogits(backend, std::move(logits));
      std::vector<int32_t> argmax(count(R));
      if (R > 0) backend.cross_entropy(dlogits.data(), targets.data(), scale, losses.data(), argmax.data(), dlogits.data(), R, V);
      return reply_arrays(std::make_pair("losses", losses.take()), std::make_pair("argmax", std::move(argmax)), std::make_pair("dlogits", dlogits.take()));
    });
  });
}

}  // namespace

void export_linear_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("linear", Napi::Function::New<linear>(env, "linear"));
  ops.Set("linearGrad", Napi::Function::New<linear_grad>(env, "linearGrad"));
  ops.Set("crossEntropy", Napi::Function::New<cross_entropy>(env, "crossEntropy"));
}

}  // namespace plumbline
