#include "router.h"

#include <algorithm>
#include <numeric>

#include "../core/error.h"
#include "../core/mix.h"
#include "extras.h"

namespace plumbline {
namespace {

std::string router_name(int64_t layer) { return "router." + std::to_string(layer) + "."; }
std::string step_name(int32_t depth) { return "step." + std::to_string(depth); }

std::vector<int32_t> count_up(int64_t n) {
  std::vector<int32_t> list(static_cast<size_t>(n));
  std::iota(list.begin(), list.end(), 0);
  return list;
}

// The candidates that are among `rows`, as places; their offsets per sequence.
std::vector<int32_t> intersect(const std::vector<int32_t>& rows, RoutedTape& tape) {
  std::vector<int32_t> cu{0};
  tape.at.clear();
  for (size_t b = 0; b + 1 < tape.cu_candidates.size(); ++b) {
    for (int32_t at = tape.cu_candidates[b]; at < tape.cu_candidates[b + 1]; ++at)
      if (std::binary_search(rows.begin(), rows.end(), tape.candidates[static_cast<size_t>(at)])) tape.at.push_back(at);
    cu.push_back(static_cast<int32_t>(tape.at.size()));
  }
  return cu;
}

}  // namespace

Router::Router(Model& model, Pool& pool, Decoder& decoder, CacheSet& caches, const RoutingSpec& spec)
    : model_(model), pool_(pool), decoder_(decoder), caches_(caches), spec_(spec) {
  const Parameters& p = model.parameters;
  const int64_t D = model.spec.text.hidden;
  for (int64_t layer : spec.layers) {
    require(layer >= 0 && layer < model.spec.text.layers, "ERR_RANGE",
            "[Session] Expected routed layers in 0.." + std::to_string(model.spec.text.layers - 1) + " but received " + std::to_string(layer));
    const std::string name = router_name(layer);
    if (spec.mlp_router) {
      const int64_t narrow = std::max<int64_t>(1, D / 4);
      expect_extra(p, "Session", name + "0.weight", {narrow, D});
      expect_extra(p, "Session", name + "0.bias", {narrow});
      expect_extra(p, "Session", name + "2.weight", {1, narrow});
      expect_extra(p, "Session", name + "2.bias", {1});
    } else {
      expect_extra(p, "Session", name + "weight", {1, D});
      expect_extra(p, "Session", name + "bias", {1});
    }
    if (spec.rule == RouteRule::threshold) expect_extra(p, "Session", name + "threshold", {1});
  }
  for (int32_t depth = 2; !spec.layers.empty() && spec.fusion != Fusion::plain && depth <= spec.max_depth; ++depth)
    expect_extra(p, "Session", step_name(depth), {D});
}
int64_t Router::place(int64_t layer) const {
  const auto found = std::lower_bound(spec_.layers.begin(), spec_.layers.end(), layer);
  return found != spec_.layers.end() && *found == layer ? found - spec_.layers.begin() : -1;
}

const float* Router::threshold(int64_t layer) const {
  return spec_.rule == RouteRule::threshold ? model_.parameters.vector(router_name(layer) + "threshold") : nullptr;
}

// Plain fusion has no step vector.
const float* Router::step(int32_t depth) const { return spec_.fusion == Fusion::plain ? nullptr : model_.parameters.vector(step_name(depth)); }

float* Router::step_gradient(int32_t depth) { return step(depth) ? model_.parameters.gradient(step_name(depth)) : nullptr; }

void Router::score(int64_t layer, RoutedTape& tape, const float* h) {
  Backend& backend = *model_.backend;
  const Parameters& p = model_.parameters;
  const std::string name = router_name(layer);
  const int64_t n = static_cast<int64_t>(tape.candidates.size());
  tape.scores = pool_.take(n);
  if (!spec_.mlp_router) return backend.linear(h, p.weight(name + "weight"), p.vector(name + "bias"), tape.scores->floats(), n, false);
  const Weight first = p.weight(name + "0.weight");
  tape.hidden = pool_.take(n * first.rows);
  backend.linear(h, first, p.vector(name + "0.bias"), tape.hidden->floats(), n, false);
  backend.activate(Activation::relu, tape.hidden->floats(), tape.hidden->floats(), n * first.rows);
  backend.linear(tape.hidden->floats(), p.weight(name + "2.weight"), p.vector(name + "2.bias"), tape.scores->floats(), n, false);
}

void Router::check(const std::vector<ForcedRoute>& forced, int64_t count) const {
  for (size_t i = 0; i < forced.size(); ++i) {
    const ForcedRoute& route = forced[i];
    const std::string received = "layer " + std::to_string(route.layer) + " at depth " + std::to_string(route.depth);
    require(is_routed(route.layer) && route.depth >= 2 && route.depth <= spec_.max_depth, "ERR_ARGUMENT",
            "[extend] Expected forcedRoutes of layers that the session routes, at depths 2.." + std::to_string(spec_.max_depth) + ", but received " + received);
    for (size_t j = 0; j < i; ++j)
      require(forced[j].layer != route.layer || forced[j].depth != route.depth, "ERR_ARGUMENT", "[extend] Expected each layer and depth once in forcedRoutes but received " + received + " twice");
    for (size_t k = 0; k < route.rows.size(); ++k)
      require(route.rows[k] >= 0 && route.rows[k] < count && (k == 0 || route.rows[k] > route.rows[k - 1]), "ERR_RANGE",
              "[extend] Expected rows of forcedRoutes to rise within 0.." + std::to_string(count - 1) + " but received " + std::to_string(route.rows[k]) + " at " + std::to_string(k));
  }
}

const ForcedRoute* Router::forced_route(int64_t layer, int32_t depth) const {
  const auto found = std::find_if(forced_.begin(), forced_.end(), [&](const ForcedRoute& route) { return route.layer == layer && route.depth == depth; });
  return found == forced_.end() ? nullptr : &*found;
}

void Router::choose(int64_t layer, const PassRows& rows, RoutedTape& tape) {
  const size_t B = rows.sequences.size(), n = tape.candidates.size();
  RouteTokens route{spec_.rule, static_cast<int32_t>(B), tape.cu_candidates.data(), threshold(layer), spec_.alpha, nullptr, nullptr};
  std::vector<float*> best(B);
  std::vector<int32_t> counts(B), order;
  if (spec_.rule == RouteRule::prefix_topk) {
    const auto& before = caches_.route(static_cast<size_t>(place(layer)), tape.depth).best;
    Seen seen{layer, tape.depth, std::vector<PrefixBest>(B)};
    for (size_t b = 0; b < B; ++b) {
      const auto found = before.find(rows.sequences[b]);
      if (found != before.end()) seen.best[b] = found->second;
      // Room for as many as there can be: alpha may be far more than the rows of a sequence.
      const int64_t most = int64_t{seen.best[b].count} + tape.cu_candidates[b + 1] - tape.cu_candidates[b];
      seen.best[b].values.resize(static_cast<size_t>(std::min<int64_t>(spec_.alpha, most)));
      best[b] = seen.best[b].values.data(), counts[b] = seen.best[b].count;
    }
    route.best_B = best.data(), route.best_count_B = counts.data();
    seen_.push_back(std::move(seen));
  }
  if (spec_.misordered) order.resize(n);
  tape.at.resize(n);
  std::vector<int32_t> cu_routed(B + 1);
  model_.backend->route_tokens(route, tape.scores->floats(), tape.at.data(), cu_routed.data(), spec_.misordered ? order.data() : nullptr, spec_.gate,
                               tape.gates->floats());
  tape.at.resize(static_cast<size_t>(cu_routed[B]));
  order.resize(spec_.misordered ? tape.at.size() : 0);
  for (size_t b = 0; spec_.rule == RouteRule::prefix_topk && b < B; ++b) seen_.back().best[b].count = counts[b];
  // The rule has seen the scores as ever: later passes that are not forced go on from them.
  if (const ForcedRoute* route = forced_route(layer, tape.depth)) {
    cu_routed = intersect(route->rows, tape);
    if (spec_.misordered) order = tape.at;
  }
  for (int32_t at : tape.at) tape.rows.push_back(tape.candidates[static_cast<size_t>(at)]);
  tape.target_at = spec_.misordered ? std::move(order) : tape.at;
  for (int32_t at : tape.target_at) tape.target_rows.push_back(tape.candidates[static_cast<size_t>(at)]);
  tape.routed.cu_seqlens = std::move(cu_routed);
}

// Room in the cache, positions of the routed rows.
void Router::prepare(int64_t layer, const PassRows& rows, RoutedTape& tape) {
  PassRows& routed = tape.routed;
  KeyValueCache& cache = caches_.route(static_cast<size_t>(place(layer)), tape.depth).keys_values;
  routed.sequences = rows.sequences;
  routed.T = static_cast<int64_t>(tape.rows.size());
  for (size_t b = 0; b < rows.sequences.size(); ++b) {
    const int64_t before = cache.length(rows.sequences[b]), count = routed.cu_seqlens[b + 1] - routed.cu_seqlens[b];
    cache.reserve(rows.sequences[b], count);
    routed.first_row.push_back(static_cast<int32_t>(before));
    routed.kv_len.push_back(static_cast<int32_t>(before + count));
  }
  const int64_t half = model_.spec.text.head_dim / 2;
  routed.dropout_key = derive_key(rows.dropout_key, static_cast<uint64_t>(tape.depth));
  routed.cos = pool_.take(routed.T * half), routed.sin = pool_.take(routed.T * half);
}

void Router::run(int64_t layer, const PassRows& rows, Buffer& x, bool keep, RoutedTape& tape) {
  const int64_t D = model_.spec.text.hidden, n = static_cast<int64_t>(tape.candidates.size());
  Backend& backend = *model_.backend;
  const bool is_chosen = !tape.routed.cu_seqlens.empty();
  // The rows to score: all of x as they are, or a gathered few. Backward needs them as they were before the fusion.
  const float* candidates = x->floats();
  if (keep || n < rows.T) {
    tape.before = pool_.take(n * D);
    backend.copy_rows(Weight{x->data(), DType::f32, rows.T, D}, tape.candidates.data(), tape.before->floats(), nullptr, n);
    candidates = tape.before->floats();
  }
  score(layer, tape, candidates);
  tape.gates = pool_.take(n);
  if (!is_chosen) choose(layer, rows, tape);
  else backend.route_gates(spec_.gate, static_cast<int32_t>(rows.sequences.size()), tape.cu_candidates.data(), tape.scores->floats(), tape.gates->floats());
  if (!keep) tape.before.reset(), tape.hidden.reset();
  if (tape.rows.empty()) return;
  if (!is_chosen) prepare(layer, rows, tape);

  const int64_t routed = tape.routed.T;
  const RotaryRows rotary{rows.cos->floats(), rows.sin->floats(), tape.routed.cos->floats(), tape.routed.sin->floats(), model_.spec.text.head_dim / 2};
  Buffer y = pool_.take(routed * D);
  tape.layer.rstd1 = pool_.take(routed), tape.layer.normed1 = pool_.take(routed * D);
  backend.gather_rms_norm(x->floats(), tape.rows.data(), spec_.fusion == Fusion::interpolate ? step(tape.depth) : nullptr,
                          model_.parameters.vector(layer_name(layer) + "input_layernorm.weight"), model_.spec.text.eps, y->floats(), tape.layer.normed1->floats(),
                          tape.layer.rstd1->floats(), routed, D, is_chosen ? nullptr : &rotary);
  decoder_.forward_normed({layer, &caches_.route(static_cast<size_t>(place(layer)), tape.depth).keys_values, 0}, tape.routed, y, tape.layer);
  backend.gated_scatter(spec_.fusion, y->floats(), tape.gates->floats(), tape.target_at.data(), step(tape.depth), x->floats(), tape.target_rows.data(), routed, D);
  if (keep) tape.y = std::move(y);
  else tape.layer = LayerTape{};
}

void Router::forward(int64_t layer, const PassRows& rows, Buffer& x, bool keep, std::vector<RoutedTape>& passes) {
  const bool is_new = passes.empty();
  for (int32_t depth = 2; depth <= spec_.max_depth; ++depth) {
    const size_t number = static_cast<size_t>(depth - 2);
    if (is_new) {
      RoutedTape tape;
      tape.depth = depth;
      tape.candidates = depth == 2 ? count_up(rows.T) : passes[number - 1].rows;
      tape.cu_candidates = depth == 2 ? rows.cu_seqlens : passes[number - 1].routed.cu_seqlens;
      passes.push_back(std::move(tape));
    }
    if (number >= passes.size()) return;
    run(layer, rows, x, keep, passes[number]);
    if (passes[number].rows.empty()) return;
  }
}

void Router::commit(int64_t layer, const PassRows& rows, const std::vector<RoutedTape>& passes) {
  for (const RoutedTape& tape : passes) {
    if (tape.rows.empty()) continue;
    KeyValueCache& cache = caches_.route(static_cast<size_t>(place(layer)), tape.depth).keys_values;
    for (size_t b = 0; b < rows.sequences.size(); ++b) cache.advance(rows.sequences[b], tape.routed.cu_seqlens[b + 1] - tape.routed.cu_seqlens[b]);
  }
  for (Seen& seen : seen_) {
    if (seen.layer != layer) continue;
    auto& best = caches_.route(static_cast<size_t>(place(layer)), seen.depth).best;
    for (size_t b = 0; b < rows.sequences.size(); ++b) best[rows.sequences[b]] = std::move(seen.best[b]);
  }
}

void Router::backward_scores(int64_t layer, const RoutedTape& tape, const float* dscores, Buffer& dx) {
  Backend& backend = *model_.backend;
  Parameters& p = model_.parameters;
  const std::string name = router_name(layer);
  const int64_t n = static_cast<int64_t>(tape.candidates.size()), D = model_.spec.text.hidden;
  const std::string first = spec_.mlp_router ? name + "0." : name, last = spec_.mlp_router ? name + "2." : name;
  const float* upstream = dscores;
  Buffer dhidden;
  if (spec_.mlp_router) {
    const Weight w = p.weight(last + "weight");
    const auto g = p.linear_gradient(last + "weight", last + "bias");
    if (g.weight) backend.linear_grad_weight(dscores, tape.hidden->floats(), g.weight, g.bias, n, w.rows, w.cols);
    dhidden = pool_.take(n * w.cols);
    backend.linear_grad_input(dscores, w, dhidden->floats(), n, false);
    backend.activate_grad(Activation::relu, tape.hidden->floats(), dhidden->floats(), dhidden->floats(), n * w.cols);
    upstream = dhidden->floats();
  }
  const Weight w = p.weight(first + "weight");
  const auto g = p.linear_gradient(first + "weight", first + "bias");
  if (g.weight) backend.linear_grad_weight(upstream, tape.before->floats(), g.weight, g.bias, n, w.rows, D);
  Buffer dcandidates = pool_.take(n * D);
  backend.linear_grad_input(upstream, w, dcandidates->floats(), n, false);
  backend.add_rows(dcandidates->floats(), nullptr, dx->floats(), tape.candidates.data(), n, D);
}

void Router::backward(int64_t layer, const std::vector<RoutedTape>& passes, float penalty, Buffer& dx) {
  Backend& backend = *model_.backend;
  const int64_t D = model_.spec.text.hidden;
  for (auto tape = passes.rbegin(); tape != passes.rend(); ++tape) {
    const int64_t n = static_cast<int64_t>(tape->candidates.size()), routed = static_cast<int64_t>(tape->rows.size());
    if (n == 0) continue;
    Buffer dgates = pool_.take(n), dscores = pool_.take(n);
    backend.fill(dgates->floats(), 0.0f, n);
    Buffer dy = pool_.take(routed * D);
    if (routed > 0) {
      float* dstep = step_gradient(tape->depth);
      backend.gated_scatter_grad(spec_.fusion, tape->y->floats(), tape->before->floats(), tape->gates->floats(), tape->target_at.data(), step(tape->depth),
                                 dx->floats(), tape->target_rows.data(), dy->floats(), dgates->floats(), spec_.fusion == Fusion::scaled ? dstep : nullptr, routed, D);
      decoder_.backward({layer, &caches_.route(static_cast<size_t>(place(layer)), tape->depth).keys_values, 0}, tape->routed, tape->layer, dy);
      backend.add_rows(dy->floats(), nullptr, dx->floats(), tape->rows.data(), routed, D);
      const std::vector<int32_t> one(tape->rows.size(), 0);
      if (dstep && spec_.fusion == Fusion::interpolate) backend.add_rows(dy->floats(), nullptr, dstep, one.data(), routed, D);
    }
    backend.route_gates_grad(spec_.gate, static_cast<int32_t>(tape->cu_candidates.size()) - 1, tape->cu_candidates.data(), tape->gates->floats(), dgates->floats(),
                             dscores->floats());
    if (penalty != 0.0f) {
      Buffer factor = pool_.take(1);
      backend.fill(factor->floats(), penalty, 1);
      backend.linear(tape->scores->floats(), Weight{factor->data(), DType::f32, 1, 1}, nullptr, dscores->floats(), n, true);  // += penalty * score
    }
    backward_scores(layer, *tape, dscores->floats(), dx);
  }
}

}  // namespace plumbline
