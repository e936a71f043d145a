#include "bind_ops.h"
#include "float_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxIndex = INT32_MAX;
constexpr RouteRule kRules[] = {RouteRule::threshold, RouteRule::prefix_topk, RouteRule::topk};

struct RouteInput {
  FloatInput scores;
  std::vector<int32_t> cu;
  RouteRule rule;
  float threshold = 0;
  int32_t alpha = 0;
  // prefix_topk: best scores so far of each sequence, ragged; `room` is cu_best of the state after this call at its largest.
  std::vector<int32_t> cu_best, room;
  std::vector<float> best;
  size_t sequences() const { return cu.size() - 1; }
};

void read_state(const Argument& from, RouteInput& input) {
  const int64_t B = static_cast<int64_t>(input.sequences());
  input.best = from.field("best").f32();
  input.cu_best = from.field("cuBest").i32(B + 1);
  check_offsets("routeTokens", "cuBest", input.cu_best, size_of(input.best));
  int64_t room = 0;
  input.room.push_back(0);
  for (size_t b = 0; b < count(B); ++b) {
    const int64_t before = input.cu_best[b + 1] - input.cu_best[b], length = input.cu[b + 1] - input.cu[b];
    require(before <= input.alpha, "ERR_RANGE",
            "[routeTokens] Expected at most alpha = " + std::to_string(input.alpha) + " best scores of sequence " + std::to_string(b) + " but received " + std::to_string(before));
    room += std::min<int64_t>(input.alpha, before + length);
    require(room <= kMaxIndex, "ERR_RANGE", "[routeTokens] Expected the state to have at most " + std::to_string(kMaxIndex) + " scores but received more");
    input.room.push_back(static_cast<int32_t>(room));
  }
}

RouteInput read_route(const Argument& scores, const Argument& from) {
  RouteInput input{};
  input.scores = FloatInput(scores);
  input.cu = from.field("cuSeqlens").i32();
  check_offsets("routeTokens", "cuSeqlens", input.cu, input.scores.size());
  input.rule = kRules[from.field("rule").choice({"threshold", "prefix-topk", "topk"})];
  if (input.rule == RouteRule::threshold) input.threshold = static_cast<float>(from.field("threshold").real());
  else input.alpha = static_cast<int32_t>(from.field("alpha").integer(1, kMaxIndex));
  if (input.rule == RouteRule::prefix_topk) read_state(from, input);
  return input;
}

// The state of prefix_topk in the form that the backend wants, and back.
class PrefixScores {
 public:
  explicit PrefixScores(const RouteInput& input) : values_(count(input.room.back())) {
    for (size_t b = 0; b + 1 < input.room.size(); ++b) {
      rows_.push_back(values_.data() + input.room[b]);
      counts_.push_back(input.cu_best[b + 1] - input.cu_best[b]);
      std::copy(input.best.begin() + input.cu_best[b], input.best.begin() + input.cu_best[b + 1], rows_.back());
    }
  }
  float* const* rows() const { return rows_.data(); }
  int32_t* counts() { return counts_.data(); }
  std::vector<float> packed() const {
    std::vector<float> packed;
    for (size_t b = 0; b < rows_.size(); ++b) packed.insert(packed.end(), rows_[b], rows_[b] + counts_[b]);
    return packed;
  }
  std::vector<int32_t> offsets() const {
    std::vector<int32_t> offsets{0};
    for (int32_t held : counts_) offsets.push_back(offsets.back() + held);
    return offsets;
  }

 private:
  std::vector<float> values_;
  std::vector<float*> rows_;
  std::vector<int32_t> counts_;
};

Reply route(RouteInput& input, Backend& backend) {
  const auto T = count(input.scores.size());
  std::vector<int32_t> rows(T), cu_routed(input.cu.size()), order(input.rule == RouteRule::topk ? T : 0);
  const Staged<float> threshold(backend, &input.threshold, 1);
  RouteTokens route{input.rule, static_cast<int32_t>(input.sequences()), input.cu.data(), threshold.data(), input.alpha, nullptr, nullptr};
  const auto run = [&] {
    backend.route_tokens(route, input.scores.at(backend), rows.data(), cu_routed.data(), order.empty() ? nullptr : order.data(), RouteGate::raw,
                         nullptr);
    rows.resize(count(cu_routed.back()));
    order.resize(order.empty() ? 0 : rows.size());
  };
  if (input.rule == RouteRule::prefix_topk) {
    PrefixScores best(input);
    route.best_B = best.rows(), route.best_count_B = best.counts();
    run();
    const Reply rest = reply_arrays(std::make_pair("rows", std::move(rows)), std::make_pair("cuRouted", std::move(cu_routed)), std::make_pair("cuBest", best.offsets()));
    return [rest, values = best.packed()](Napi::Env env) -> Napi::Value {
      Napi::Object object = rest(env).As<Napi::Object>();
      object.Set("best", to_array(env, values));
      return object;
    };
  }
  run();
  if (input.rule == RouteRule::threshold) return reply_arrays(std::make_pair("rows", std::move(rows)), std::make_pair("cuRouted", std::move(cu_routed)));
  return reply_arrays(std::make_pair("rows", std::move(rows)), std::make_pair("cuRouted", std::move(cu_routed)), std::make_pair("order", std::move(order)));
}

Napi::Value route_tokens(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("routeTokens", info);
    RouteInput input = read_route(arguments.at(0, "scores"), arguments.at(1, "options"));
    return submit_op(info, arguments.at(2, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) mutable { return route(input, backend); });
  });
}

}  // namespace

void export_routing_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("routeTokens", Napi::Function::New<route_tokens>(env, "routeTokens"));
}

}  // namespace plumbline
