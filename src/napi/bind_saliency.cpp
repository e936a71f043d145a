// attentionSaliency, attentionSaliencyGrad: a_i = 1/H sum over heads of softmax(scale q k^T)_i for the last query row of each sequence.
// The softmax's log-sum-exp of that row comes from Backend::attention run on the last rows alone, with the keys in place of the
// values: O(B H d) memory beside the inputs, no row of scores is kept, and forward and backward read the same number.
#include <cmath>

#include "bind_ops.h"
#include "contiguous_pages.h"
#include "float_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxHeads = 4096, kMaxHeadDim = 1024;

struct SaliencyInput {
  FloatInput q, k, lse;
  std::vector<int32_t> cu_k, kv_len, cu_columns, columns;
  std::vector<int32_t> last_row, cu_last;  // of each sequence that has query rows; [B+1] offsets into them
  int64_t H, Hkv, d, Tq;

  int64_t rows() const { return static_cast<int64_t>(last_row.size()); }
  AttentionShape shape() const {  // of the last rows, packed
    AttentionShape s{};
    s.B = static_cast<int32_t>(kv_len.size());
    s.cu_q_B1 = cu_last.data(), s.kv_len_B = kv_len.data();
    s.H = static_cast<int32_t>(H), s.Hkv = static_cast<int32_t>(Hkv), s.d = static_cast<int32_t>(d);
    s.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
    s.causal = true;
    s.q_row_stride = H * d;
    return s;
  }
  SaliencyColumns saliency_columns() const { return SaliencyColumns{cu_columns.data(), columns.data()}; }
  float mean_over_heads() const { return static_cast<float>(1.0 / static_cast<double>(H)); }
};

void check_columns(const char* op, const SaliencyInput& input) {
  for (size_t b = 0; b < input.kv_len.size(); ++b)
    for (int32_t i = input.cu_columns[b]; i < input.cu_columns[b + 1]; ++i)
      require(input.columns[count(i)] >= 0 && input.columns[count(i)] < input.kv_len[b], "ERR_RANGE",
              std::string("[") + op + "] Expected columns of sequence " + std::to_string(b) + " in 0.." + std::to_string(input.kv_len[b] - 1) + " but received " +
                  std::to_string(input.columns[count(i)]) + " at " + std::to_string(i));
}

SaliencyInput read_saliency(const Argument& from) {
  const char* op = from.op();
  SaliencyInput input{};
  input.H = from.field("heads").integer(1, kMaxHeads), input.Hkv = from.field("kvHeads").integer(1, kMaxHeads), input.d = from.field("headDim").integer(1, kMaxHeadDim);
  require(input.H % input.Hkv == 0, "ERR_SHAPE",
          std::string("[") + op + "] Expected heads to be a multiple of kvHeads = " + std::to_string(input.Hkv) + " but received " + std::to_string(input.H));
  input.q = FloatInput(from.field("q"));
  input.k = FloatInput(from.field("k"));
  input.Tq = rows_of(op, "q", count(input.q.size()), input.H * input.d);
  const int64_t Tk = rows_of(op, "k", count(input.k.size()), input.Hkv * input.d);
  input.lse = FloatInput::optional(from.field("lse"), input.Tq * input.H);
  const std::vector<int32_t> cu_q = from.field("cuQ").i32();
  const int64_t B = check_offsets(op, "cuQ", cu_q, input.Tq);
  input.cu_k = from.field("cuK").i32(B + 1);
  check_offsets(op, "cuK", input.cu_k, Tk);
  input.columns = from.field("columns").i32();
  input.cu_columns = from.field("cuColumns").i32(B + 1);
  check_offsets(op, "cuColumns", input.cu_columns, static_cast<int64_t>(input.columns.size()));
  input.cu_last.push_back(0);
  for (size_t b = 0; b < count(B); ++b) {
    input.kv_len.push_back(input.cu_k[b + 1] - input.cu_k[b]);
    if (cu_q[b + 1] > cu_q[b]) input.last_row.push_back(cu_q[b + 1] - 1);
    input.cu_last.push_back(static_cast<int32_t>(input.last_row.size()));
  }
  check_columns(op, input);
  return input;
}

// The last query rows side by side, and their log-sum-exp. At least one row.
class LastRows {
 public:
  LastRows(Backend& backend, SaliencyInput& input, const KeyValuePages& pages)
      : q_(backend, count(input.rows() * input.H * input.d) * sizeof(float)), lse_(backend, count(input.rows() * input.H) * sizeof(float)) {
    const int64_t width = input.H * input.d;
    backend.copy_rows(Weight{input.q.at(backend), DType::f32, input.Tq, width}, input.last_row.data(), q_.floats(), nullptr, input.rows());
    if (!input.lse.absent()) {
      backend.copy_rows(Weight{input.lse.at(backend), DType::f32, input.Tq, input.H}, input.last_row.data(), lse_.floats(), nullptr, input.rows());
      return;
    }
    const Block unused(backend, q_.bytes());
    backend.attention(input.shape(), q_.floats(), pages, unused.floats(), lse_.floats());
  }
  const float* q() const { return q_.floats(); }
  const float* lse() const { return lse_.floats(); }

 private:
  const Block q_, lse_;
};

// Packed row of each sequence's last query, -1 where it has none.
std::vector<int32_t> last_rows(const std::vector<int32_t>& cu) {
  std::vector<int32_t> rows;
  for (size_t b = 0; b + 1 < cu.size(); ++b) rows.push_back(cu[b + 1] > cu[b] ? cu[b + 1] - 1 : -1);
  return rows;
}

ContiguousPages pages_of(const SaliencyInput& input, const float* k) { return ContiguousPages(input.cu_k, input.Hkv, input.d, k, k); }

Napi::Value attention_saliency(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("attentionSaliency", info);
    SaliencyInput input = read_saliency(arguments.at(0, "input"));
    FloatResults results("attentionSaliency");
    results.add(arguments.at(1, "into"), "saliency", static_cast<int64_t>(input.columns.size()));
    for (const FloatInput* one : {&input.q, &input.k, &input.lse}) results.keep_apart_from(*one);
    return submit_op(info, arguments.at(2, "token"), [input = std::move(input), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      float* saliency = results.zeroed("saliency", backend);
      if (input.rows() > 0 && !input.columns.empty()) {
        const ContiguousPages pages = pages_of(input, input.k.at(backend));
        const LastRows last(backend, input, pages.pages());
        const std::vector<int32_t> rows = last_rows(input.cu_last);
        const float *q = last.q(), *lse = last.lse();
        const LastQueries queries{1, &q, &lse, rows.data(), rows.data(), input.H * input.d, 0};
        backend.attention_saliency(input.shape(), queries, pages.pages(), input.saliency_columns(), input.mean_over_heads(), saliency);
      }
      return results.reply();
    });
  });
}

Napi::Value attention_saliency_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("attentionSaliencyGrad", info);
    SaliencyInput input = read_saliency(arguments.at(0, "input"));
    FloatInput dsaliency(arguments.at(1, "dsaliency"), static_cast<int64_t>(input.columns.size()));
    FloatResults results("attentionSaliencyGrad");
    results.add(arguments.at(2, "into"), "dq", input.q.size());
    results.add(arguments.at(2, "into"), "dk", input.k.size());
    for (const FloatInput* one : {&input.q, &input.k, &input.lse, &dsaliency}) results.keep_apart_from(*one);
    return submit_op(info, arguments.at(3, "token"),
                     [input = std::move(input), dsaliency = std::move(dsaliency), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
                       float* dq = results.zeroed("dq", backend);
                       float* dk = results.zeroed("dk", backend);
                       if (input.rows() > 0 && !input.columns.empty()) {
                         const ContiguousPages pages = pages_of(input, input.k.at(backend)), gradients = pages_of(input, dk);
                         const LastRows last(backend, input, pages.pages());
                         const int64_t width = input.H * input.d;
                         const Block dlast(backend, count(input.rows() * width) * sizeof(float), true);
                         backend.attention_saliency_grad(input.shape(), last.q(), pages.pages(), last.lse(), input.saliency_columns(), input.mean_over_heads(),
                                                         dsaliency.at(backend), dlast.floats(), gradients.k());
                         backend.copy_rows(Weight{dlast.floats(), DType::f32, input.rows(), width}, nullptr, dq, input.last_row.data(), input.rows());
                       }
                       return results.reply();
                     });
  });
}

}  // namespace

void export_saliency_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("attentionSaliency", Napi::Function::New<attention_saliency>(env, "attentionSaliency"));
  ops.Set("attentionSaliencyGrad", Napi::Function::New<attention_saliency_grad>(env, "attentionSaliencyGrad"));
}

}  // namespace plumbline
