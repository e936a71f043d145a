// The rows that take another pass: out of the hidden states, and back.
#include "bind_ops.h"
#include "float_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxWidth = INT32_MAX;
constexpr Fusion kFusions[] = {Fusion::interpolate, Fusion::plain, Fusion::scaled};

// Row numbers in 0..rows-1; `distinct`: each at most once, because a scatter by several threads needs it.
std::vector<int32_t> read_rows(const Argument& from, int64_t rows, bool distinct) {
  std::vector<int32_t> list = from.i32();
  std::vector<bool> seen(distinct ? count(rows) : 0);
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = " but received " + std::to_string(list[i]) + " at " + std::to_string(i);
    require(list[i] >= 0 && list[i] < rows, "ERR_RANGE", std::string("[") + from.op() + "] Expected rows in 0.." + std::to_string(rows - 1) + where);
    if (!distinct) continue;
    require(!seen[count(list[i])], "ERR_RANGE", std::string("[") + from.op() + "] Expected rows to be distinct" + where + " again");
    seen[count(list[i])] = true;
  }
  return list;
}

struct GatherInput {
  FloatInput h, weight, step, dy;
  std::vector<int32_t> rows;
  float eps;
  int64_t T, C;
  int64_t n() const { return static_cast<int64_t>(rows.size()); }
};

// h, rows, weight, step, eps, [dy]
GatherInput read_gather(const Arguments& arguments, const char* op, bool has_dy) {
  GatherInput input{};
  input.h = FloatInput(arguments.at(0, "h"));
  input.weight = FloatInput(arguments.at(2, "weight"));
  input.C = input.weight.size();
  input.T = rows_of(op, "h", count(input.h.size()), input.C);
  input.rows = read_rows(arguments.at(1, "rows"), input.T, false);
  input.step = FloatInput::optional(arguments.at(3, "step"), input.C);
  input.eps = static_cast<float>(arguments.at(4, "eps").number(0, 1));
  if (has_dy) input.dy = FloatInput(arguments.at(5, "dy"), input.n() * input.C);
  return input;
}

Napi::Value gather_rms_norm(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gatherRmsNorm", info);
    GatherInput input = read_gather(arguments, "gatherRmsNorm", false);
    const Argument into = arguments.at(5, "into");
    FloatResults results("gatherRmsNorm");
    results.add(into, "x", input.n() * input.C);
    results.add(into, "y", input.n() * input.C);
    results.add(into, "rstd", input.n());
    for (const FloatInput* one : {&input.h, &input.weight, &input.step}) results.keep_apart_from(*one);
    return submit_op(info, arguments.at(6, "token"), [input = std::move(input), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      backend.gather_rms_norm(input.h.at(backend), input.rows.data(), input.step.at(backend), input.weight.at(backend), input.eps, results.at("x", backend), results.at("y", backend),
                              results.at("rstd", backend), input.n(), input.C, nullptr);
      return results.reply();
    });
  });
}

Napi::Value gather_rms_norm_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gatherRmsNormGrad", info);
    GatherInput input = read_gather(arguments, "gatherRmsNormGrad", true);
    const Argument into = arguments.at(6, "into");
    FloatResults results("gatherRmsNormGrad");
    results.add(into, "dh", input.h.size());
    results.add(into, "dstep", input.C);
    results.add(into, "dweight", input.C);
    for (const FloatInput* one : {&input.h, &input.weight, &input.step, &input.dy}) results.keep_apart_from(*one);
    return submit_op(info, arguments.at(7, "token"), [input = std::move(input), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      const int64_t n = input.n(), C = input.C;
      const size_t bytes = count(n * C) * sizeof(float);
      const Block x(backend, bytes), y(backend, bytes), rstd(backend, count(n) * sizeof(float));  // y becomes dx
      backend.gather_rms_norm(input.h.at(backend), input.rows.data(), input.step.at(backend), input.weight.at(backend), input.eps, x.floats(), y.floats(), rstd.floats(), n, C,
                              nullptr);
      backend.rms_norm_grad(input.dy.at(backend), x.floats(), input.weight.at(backend), rstd.floats(), y.floats(), results.zeroed("dweight", backend), nullptr, n, C, false);
      backend.add_rows(y.floats(), nullptr, results.zeroed("dh", backend), input.rows.data(), n, C);
      const std::vector<int32_t> all_to_one(count(n), 0);
      backend.add_rows(y.floats(), nullptr, results.zeroed("dstep", backend), all_to_one.data(), n, C);
      return results.reply();
    });
  });
}

struct ScatterInput {
  FloatInput h, y, gate, step, dout;
  std::vector<int32_t> rows, at;  // at: the gate of row i is gate[i]
  Fusion fusion;
  int64_t T, C;
  int64_t n() const { return static_cast<int64_t>(rows.size()); }
};

// h, y, gate, rows, step, fusion, width, [dout]
ScatterInput read_scatter(const Arguments& arguments, const char* op, bool has_dout) {
  ScatterInput input{};
  input.C = arguments.at(6, "width").integer(1, kMaxWidth);
  input.h = FloatInput(arguments.at(0, "h"));
  input.T = rows_of(op, "h", count(input.h.size()), input.C);
  input.rows = read_rows(arguments.at(3, "rows"), input.T, true);
  input.y = FloatInput(arguments.at(1, "y"), input.n() * input.C);
  input.gate = FloatInput(arguments.at(2, "gate"), input.n());
  input.step = FloatInput::optional(arguments.at(4, "step"), input.C);
  input.fusion = kFusions[arguments.at(5, "fusion").choice({"interpolate", "plain", "scaled"})];
  if (has_dout) input.dout = FloatInput(arguments.at(7, "dout"), input.h.size());
  for (int32_t i = 0; i < input.n(); ++i) input.at.push_back(i);
  return input;
}

Napi::Value gated_scatter(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gatedScatter", info);
    ScatterInput input = read_scatter(arguments, "gatedScatter", false);
    FloatResults results("gatedScatter");
    results.add(arguments.at(7, "into"), "out", input.h.size());
    for (const FloatInput* one : {&input.h, &input.y, &input.gate, &input.step}) results.keep_apart_from(*one);
    return submit_op(info, arguments.at(8, "token"), [input = std::move(input), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      float* out = results.at("out", backend);
      backend.copy(out, input.h.at(backend), count(input.h.size()) * sizeof(float));
      backend.gated_scatter(input.fusion, input.y.at(backend), input.gate.at(backend), input.at.data(), input.step.at(backend), out, input.rows.data(), input.n(), input.C);
      return results.reply();
    });
  });
}

Napi::Value gated_scatter_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gatedScatterGrad", info);
    ScatterInput input = read_scatter(arguments, "gatedScatterGrad", true);
    const Argument into = arguments.at(8, "into");
    FloatResults results("gatedScatterGrad");
    results.add(into, "dh", input.h.size());
    results.add(into, "dy", input.y.size());
    results.add(into, "dgate", input.n());
    if (!input.step.absent()) results.add(into, "dstep", input.C);
    for (const FloatInput* one : {&input.h, &input.y, &input.gate, &input.step, &input.dout}) results.keep_apart_from(*one);
    return submit_op(info, arguments.at(9, "token"), [input = std::move(input), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      const Block base(backend, count(input.n() * input.C) * sizeof(float));
      backend.copy_rows(Weight{input.h.at(backend), DType::f32, input.T, input.C}, input.rows.data(), base.floats(), nullptr, input.n());
      float* dh = results.at("dh", backend);
      float* dstep = input.step.absent() ? nullptr : results.zeroed("dstep", backend);
      backend.copy(dh, input.dout.at(backend), count(input.h.size()) * sizeof(float));
      backend.gated_scatter_grad(input.fusion, input.y.at(backend), base.floats(), input.gate.at(backend), input.at.data(), input.step.at(backend), dh, input.rows.data(),
                                 results.at("dy", backend), results.at("dgate", backend), dstep, input.n(), input.C);
      return results.reply();
    });
  });
}

}  // namespace

void export_routed_row_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("gatherRmsNorm", Napi::Function::New<gather_rms_norm>(env, "gatherRmsNorm"));
  ops.Set("gatherRmsNormGrad", Napi::Function::New<gather_rms_norm_grad>(env, "gatherRmsNormGrad"));
  ops.Set("gatedScatter", Napi::Function::New<gated_scatter>(env, "gatedScatter"));
  ops.Set("gatedScatterGrad", Napi::Function::New<gated_scatter_grad>(env, "gatedScatterGrad"));
}

}  // namespace plumbline
