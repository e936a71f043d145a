// raggedAttention, raggedAttentionGrad: packed attention on f32, f16 or bf16.
#include <algorithm>
#include <cmath>

#include "bind_ops.h"
#include "gradient_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxHeads = 4096, kMaxHeadDim = 256;

struct RaggedInput {
  std::shared_ptr<GradientInput> q, k, v, dout;
  std::vector<int32_t> cu_q, cu_k;
  RaggedAttention shape_;  // without its pointers, which a move would leave behind
  RaggedAttention shape() const {
    RaggedAttention s = shape_;
    s.cu_q_B1 = cu_q.data(), s.cu_k_B1 = cu_k.data();
    return s;
  }
};

RaggedInput read_ragged(const Argument& from) {
  const char* op = from.op();
  RaggedInput input{};
  const int64_t H = from.field("heads").integer(1, kMaxHeads), Hkv = from.field("kvHeads").integer(1, kMaxHeads), d = from.field("headDim").integer(1, kMaxHeadDim);
  require(H % Hkv == 0, "ERR_SHAPE", std::string("[") + op + "] Expected heads to be a multiple of kvHeads = " + std::to_string(Hkv) + " but received " + std::to_string(H));
  const DType dtype = read_dtype(from.field("dtype"));
  input.q = std::make_shared<GradientInput>(from.field("q"), dtype);
  input.k = std::make_shared<GradientInput>(from.field("k"), dtype);
  input.v = std::make_shared<GradientInput>(from.field("v"), dtype, input.k->size());
  const int64_t T = rows_of(op, "q", count(input.q->size()), H * d), S = rows_of(op, "k", count(input.k->size()), Hkv * d);
  input.cu_q = from.field("cuQ").i32();
  const int64_t B = check_offsets(op, "cuQ", input.cu_q, T);
  input.cu_k = from.field("cuK").i32(B + 1);
  check_offsets(op, "cuK", input.cu_k, S);
  const bool causal = from.field("causal").boolean();
  for (size_t b = 0; b < count(B); ++b) {
    const int32_t queries = input.cu_q[b + 1] - input.cu_q[b], keys = input.cu_k[b + 1] - input.cu_k[b], least = causal ? queries : std::min(queries, 1);
    require(keys >= least, "ERR_RANGE",
            std::string("[") + op + "] Expected sequence " + std::to_string(b) + " to have at least " + std::to_string(least) + " keys but received " + std::to_string(keys));
  }
  input.shape_ = RaggedAttention{dtype, static_cast<int32_t>(B), nullptr, nullptr, static_cast<int32_t>(H), static_cast<int32_t>(Hkv), static_cast<int32_t>(d),
                                 static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))), causal};
  return input;
}

// An array of the operation's dtype that it writes.
class Output {
 public:
  Output(Backend& backend, DType dtype, int64_t size) : backend_(backend), is_f32_(dtype == DType::f32), size_(count(size)), block_(backend, std::max<size_t>(size_, 1) * dtype_bytes(dtype)) {}
  void* data() const { return block_.data(); }
  Reply take() const {
    if (is_f32_) return fetch<float>();
    return fetch<uint16_t>();
  }

 private:
  template <typename T>
  Reply fetch() const {
    std::vector<T> values(size_);
    backend_.download(values.data(), block_.data(), size_ * sizeof(T));
    return reply_array(std::move(values));
  }
  Backend& backend_;
  const bool is_f32_;
  const size_t size_;
  const Block block_;
};

Reply named(std::vector<std::pair<const char*, Reply>> parts) {
  return [parts = std::move(parts)](Napi::Env env) -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    for (const auto& part : parts) object.Set(part.first, part.second(env));
    return object;
  };
}

Napi::Value ragged_attention(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("raggedAttention", info);
    RaggedInput input = read_ragged(arguments.at(0, "input"));
    return submit_op(info, arguments.at(1, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const RaggedAttention shape = input.shape();
      const Output out(backend, shape.dtype, input.q->size());
      Made lse(backend, count(input.q->size() / shape.d));
      backend.ragged_attention(shape, input.q->at(backend), input.k->at(backend), input.v->at(backend), out.data(), lse.data());
      return named({{"out", out.take()}, {"lse", reply_array(lse.take())}});
    });
  });
}

Napi::Value ragged_attention_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("raggedAttentionGrad", info);
    RaggedInput input = read_ragged(arguments.at(0, "input"));
    input.dout = std::make_shared<GradientInput>(arguments.at(1, "dout"), input.shape_.dtype, input.q->size());
    return submit_op(info, arguments.at(2, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) {
      const RaggedAttention shape = input.shape();
      const void *q = input.q->at(backend), *k = input.k->at(backend), *v = input.v->at(backend);
      const Output out(backend, shape.dtype, input.q->size()), dq(backend, shape.dtype, input.q->size()), dk(backend, shape.dtype, input.k->size()),
          dv(backend, shape.dtype, input.k->size());
      Made lse(backend, count(input.q->size() / shape.d));
      backend.ragged_attention(shape, q, k, v, out.data(), lse.data());
      backend.ragged_attention_grad(shape, q, k, v, out.data(), lse.data(), input.dout->at(backend), dq.data(), dk.data(), dv.data());
      return named({{"dq", dq.take()}, {"dk", dk.take()}, {"dv", dv.take()}});
    });
  });
}

}  // namespace

void export_ragged_attention_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("raggedAttention", Napi::Function::New<ragged_attention>(env, "raggedAttention"));
  ops.Set("raggedAttentionGrad", Napi::Function::New<ragged_attention_grad>(env, "raggedAttentionGrad"));
}

}  // namespace plumbline
