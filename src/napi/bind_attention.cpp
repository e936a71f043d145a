#include <cmath>

#include "../model/rotary_table.h"
#include "bind_ops.h"
#include "contiguous_pages.h"
#include "staged.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxHeads = 4096, kMaxHeadDim = 1024, kMaxPosition = int64_t{1} << 24;

struct AttentionInput {
  std::vector<float> q, k, v;
  std::vector<int32_t> cu_q, cu_k, kv_len;
  AttentionShape shape() const {
    AttentionShape s = shape_;
    s.cu_q_B1 = cu_q.data(), s.kv_len_B = kv_len.data();
    return s;
  }
  AttentionShape shape_;  // without its pointers, which a move would leave behind
};

AttentionInput read_attention(const Argument& from) {
  const char* op = from.op();
  AttentionInput input{};
  const int64_t H = from.field("heads").integer(1, kMaxHeads), Hkv = from.field("kvHeads").integer(1, kMaxHeads), d = from.field("headDim").integer(1, kMaxHeadDim);
  require(H % Hkv == 0, "ERR_SHAPE", std::string("[") + op + "] Expected heads to be a multiple of kvHeads = " + std::to_string(Hkv) + " but received " + std::to_string(H));
  input.q = from.field("q").f32();
  input.k = from.field("k").f32();
  input.v = from.field("v").f32(size_of(input.k));
  const int64_t Tq = rows_of(op, "q", input.q.size(), H * d), Tk = rows_of(op, "k", input.k.size(), Hkv * d);
  input.cu_q = from.field("cuQ").i32();
  const int64_t B = check_offsets(op, "cuQ", input.cu_q, Tq);
  input.cu_k = from.field("cuK").i32(B + 1);
  check_offsets(op, "cuK", input.cu_k, Tk);
  for (size_t b = 0; b < count(B); ++b) input.kv_len.push_back(input.cu_k[b + 1] - input.cu_k[b]);
  AttentionShape& shape = input.shape_;
  shape.B = static_cast<int32_t>(B);
  shape.H = static_cast<int32_t>(H), shape.Hkv = static_cast<int32_t>(Hkv), shape.d = static_cast<int32_t>(d);
  shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  shape.causal = from.field("causal").boolean();
  shape.q_row_stride = H * d;
  return input;
}

Napi::Value attention(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("attention", info);
    AttentionInput input = read_attention(arguments.at(0, "input"));
    return submit_op(info, arguments.at(1, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const AttentionShape shape = input.shape();
      const Staged<float> q(backend, input.q), k(backend, input.k), v(backend, input.v);
      const ContiguousPages pages(input.cu_k, shape.Hkv, shape.d, k.data(), v.data());
      Made out(backend, input.q.size()), lse(backend, input.q.size() / count(shape.d));
      backend.attention(shape, q.data(), pages.pages(), out.data(), lse.data());
      return reply_arrays(std::make_pair("out", out.take()), std::make_pair("lse", lse.take()));
    });
  });
}

Napi::Value attention_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("attentionGrad", info);
    AttentionInput input = read_attention(arguments.at(0, "input"));
    std::vector<float> dout = arguments.at(1, "dout").f32(size_of(input.q));
    return submit_op(info, arguments.at(2, "token"), [input = std::move(input), dout = std::move(dout)](Backend& backend, const CancelFlag&) {
      const AttentionShape shape = input.shape();
      const Staged<float> q(backend, input.q), k(backend, input.k), v(backend, input.v), dresult(backend, dout);
      const ContiguousPages pages(input.cu_k, shape.Hkv, shape.d, k.data(), v.data());
      Made out(backend, input.q.size()), lse(backend, input.q.size() / count(shape.d)), dq(backend, input.q.size()), dk(backend, input.k.size()), dv(backend, input.v.size());
      const ContiguousPages gradients(input.cu_k, shape.Hkv, shape.d, dk.data(), dv.data());
      backend.attention(shape, q.data(), pages.pages(), out.data(), lse.data());
      backend.attention_grad(shape, q.data(), pages.pages(), out.data(), lse.data(), dresult.data(), dq.data(), gradients.k(), gradients.v());
      return reply_arrays(std::make_pair("dq", dq.take()), std::make_pair("dk", dk.take()), std::make_pair("dv", dv.take()));
    });
  });
}

Napi::Value mrope(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("mrope", info);
    std::vector<float> x = arguments.at(0, "x").f32();
    std::vector<int32_t> positions = arguments.at(1, "positions").i32();
    const std::vector<int32_t> section = arguments.at(2, "section").i32(3);
    const int64_t heads = arguments.at(3, "heads").integer(1, kMaxHeads), d = arguments.at(4, "headDim").integer(2, kMaxHeadDim);
    const double theta = arguments.at(5, "theta").number(1, 1e15);
    const bool inverse = arguments.at(6, "inverse").boolean();
    const int64_t T = rows_of("mrope", "x", x.size(), heads * d);
    require(static_cast<int64_t>(positions.size()) == 3 * T, "ERR_SHAPE", "[mrope] Expected positions to have 3 * T = " + std::to_string(3 * T) + " elements but received " + std::to_string(positions.size()));
    int64_t sum = 0;
    for (int32_t part : section) {
      require(part >= 0, "ERR_RANGE", "[mrope] Expected section not to be negative but received " + std::to_string(part));
      sum += part;
    }
    require(d % 2 == 0 && sum == d / 2, "ERR_SHAPE", "[mrope] Expected headDim to be even and section to sum to headDim / 2 but received " + std::to_string(d) + " and " + std::to_string(sum));
    for (int32_t position : positions)
      require(position >= 0 && position < kMaxPosition, "ERR_RANGE", "[mrope] Expected positions in 0.." + std::to_string(kMaxPosition - 1) + " but received " + std::to_string(position));
    const std::array<int32_t, 3> sections{section[0], section[1], section[2]};
    return submit_op(info, arguments.at(7, "token"), [x = std::move(x), positions = std::move(positions), sections, heads, d, theta, inverse, T](Backend& backend, const CancelFlag&) mutable {
      std::vector<float> cos(count(T * (d / 2))), sin(cos.size());
      text_rotary_table(positions.data(), T, sections, d, theta, cos.data(), sin.data());
      const Staged<float> cosines(backend, cos), sines(backend, sin);
      Made turned(backend, std::move(x));
      backend.rotary(turned.data(), heads * d, static_cast<int32_t>(heads), static_cast<int32_t>(d), cosines.data(), sines.data(), T, inverse);
      return reply_array(turned.take());
    });
  });
}

}  // namespace

void export_attention_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("attention", Napi::Function::New<attention>(env, "attention"));
  ops.Set("attentionGrad", Napi::Function::New<attention_grad>(env, "attentionGrad"));
  ops.Set("mrope", Napi::Function::New<mrope>(env, "mrope"));
}

}  // namespace plumbline
