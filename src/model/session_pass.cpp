#include <algorithm>

#include "../core/error.h"
#include "../core/mix.h"
#include "rotary_table.h"
#include "session_impl.h"

namespace plumbline {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

Weight as_weight(const Buffer& rows, int64_t count, int64_t width) { return Weight{rows->data(), DType::f32, count, width}; }

}  // namespace

Weight Session::Impl::head() const { return model->parameters.weight(model->spec.text.tied ? "model.embed_tokens.weight" : "lm_head.weight"); }

// Segments of the sequences that asked, empty ones of the others.
void Session::Impl::prepare_saliency(Pass& pass) {
  if (pass.input.saliency.empty()) return;
  auto saliency = std::make_shared<Saliency>();
  saliency->cu_columns.push_back(0);
  int64_t total = 0;
  for (size_t b = 0; b < pass.input.sequences.size(); ++b)
    if (pass.input.saliency[b]) total += static_cast<int64_t>(sequences.at(pass.input.sequences[b]).pictures->columns.size());
  require(total < (int64_t{1} << 31), "ERR_RANGE", "[extend] Expected saliency of fewer than 2^31 image tokens in one pass but received " + text(total));
  for (size_t b = 0; b < pass.input.sequences.size(); ++b) {
    if (pass.input.saliency[b]) {
      const std::vector<int32_t>& columns = sequences.at(pass.input.sequences[b]).pictures->columns;
      saliency->columns.insert(saliency->columns.end(), columns.begin(), columns.end());
    }
    saliency->cu_columns.push_back(static_cast<int32_t>(saliency->columns.size()));
  }
  const TextSpec& spec = model->spec.text;
  saliency->last_q = pool.take(spec.layers * static_cast<int64_t>(pass.input.sequences.size()) * spec.heads * spec.head_dim);
  saliency->scores = zeros(static_cast<int64_t>(saliency->columns.size()));
  pass.saliency = std::move(saliency);
}

std::unique_ptr<Pass> Session::Impl::prepare(PassInput input) {
  auto pass = std::make_unique<Pass>();
  PassRows& rows = pass->rows;
  rows.cu_seqlens = input.cu_seqlens;
  for (int32_t sequence : input.sequences) rows.sequences.push_back(sequences.at(sequence).cache);
  rows.T = static_cast<int64_t>(input.kind.size());
  rows.dropout_key = derive_key(dropout_key, passes.size());
  for (size_t b = 0; b < input.sequences.size(); ++b) {
    const int64_t before = caches.keys_values.length(rows.sequences[b]), count = input.cu_seqlens[b + 1] - input.cu_seqlens[b];
    require(before + count < (int64_t{1} << 30), "ERR_RANGE", "[extend] Expected fewer than 2^30 rows in a sequence");
    caches.keys_values.reserve(rows.sequences[b], count);
    rows.first_row.push_back(static_cast<int32_t>(before));
    rows.kv_len.push_back(static_cast<int32_t>(before + count));
  }
  const TextSpec& spec = model->spec.text;
  const int64_t table = rows.T * (spec.head_dim / 2);
  std::vector<float> cos(static_cast<size_t>(table)), sin(static_cast<size_t>(table));
  text_rotary_table(input.positions.data(), rows.T, spec.mrope_section, spec.head_dim, spec.rope_theta, cos.data(), sin.data());
  rows.cos = pool.take(table), rows.sin = pool.take(table);
  model->backend->upload(rows.cos->data(), cos.data(), cos.size() * sizeof(float));
  model->backend->upload(rows.sin->data(), sin.data(), sin.size() * sizeof(float));
  pass->input = std::move(input);
  prepare_saliency(*pass);
  router.start(std::move(pass->input.forced_routes));
  return pass;
}

Buffer Session::Impl::embed(Pass& pass) {
  const PassInput& input = pass.input;
  const int64_t T = pass.rows.T, D = model->spec.text.hidden;
  Buffer x = pool.take(T * D);
  std::vector<int32_t> from[kRowKinds], to[kRowKinds];
  for (size_t b = 0; b < input.sequences.size(); ++b) {
    const SequenceState& sequence = sequences.at(input.sequences[b]);
    for (int32_t row = input.cu_seqlens[b]; row < input.cu_seqlens[b + 1]; ++row) {
      const uint8_t kind = input.kind[static_cast<size_t>(row)];
      const bool is_latent = kind == static_cast<uint8_t>(RowKind::latent);
      if (is_latent) pass.latents.push_back({row, sequence.pass, sequence.row});
      from[kind].push_back(is_latent ? sequence.slot : input.index[static_cast<size_t>(row)]);
      to[kind].push_back(row);
    }
  }
  Buffer given;
  if (!input.embeddings.empty()) {
    given = pool.take(static_cast<int64_t>(input.embeddings.size()));
    model->backend->upload(given->data(), input.embeddings.data(), input.embeddings.size() * sizeof(float));
  }
  for (size_t kind = 0; kind < kRowKinds; ++kind) {
    if (to[kind].empty()) continue;
    const Weight source = kind == 0   ? model->parameters.weight("model.embed_tokens.weight")
                          : kind == 1 ? as_weight(visual, visual_rows, D)
                          : kind == 2 ? as_weight(last_hidden, last_hidden_capacity, D)
                          : kind == 3 ? as_weight(given, static_cast<int64_t>(input.embeddings.size()) / D, D)
                                      : as_weight(stored, stored_rows, D);
    model->backend->copy_rows(source, from[kind].data(), x->floats(), to[kind].data(), static_cast<int64_t>(to[kind].size()));
  }
  std::vector<float>().swap(pass.input.embeddings);  // clear() would keep the memory on the tape
  return x;
}

void Session::Impl::run_layers(Pass& pass, Buffer& x) {
  const TextSpec& spec = model->spec.text;
  const bool keep_all = options.training && !options.recompute;
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    LayerRecord record;
    decoder.forward({layer, &caches.keys_values, layer, pass.saliency.get()}, pass.rows, x, record.ordinary);
    if (router.is_routed(layer)) router.forward(layer, pass.rows, x, keep_all, record.extra);
    if (pass.saliency) {
      pass.saliency->lse.push_back(record.ordinary.lse->floats());
      if (!keep_all) pass.saliency->own_lse.push_back(std::move(record.ordinary.lse));
    }
    if (!keep_all) {
      LayerTape slim;
      if (options.training || pass.input.keep_layer_inputs) slim.input = std::move(record.ordinary.input);
      record.ordinary = std::move(slim);
    }
    pass.layers.push_back(std::move(record));
  }
  if (pass.saliency) decoder.saliency(caches.keys_values, pass.rows, *pass.saliency);
  const int64_t T = pass.rows.T, D = spec.hidden;
  pass.rstd = pool.take(T), pass.hidden = pool.take(T * D);
  model->backend->rms_norm(x->floats(), model->parameters.vector("model.norm.weight"), spec.eps, pass.hidden->floats(), pass.rstd->floats(), T, D);
  pass.final = std::move(x);
}

void Session::Impl::remember_last_rows(const Pass& pass) {
  const int64_t D = model->spec.text.hidden;
  std::vector<int32_t> from, to;
  for (size_t b = 0; b < pass.rows.sequences.size(); ++b) {
    if (pass.rows.cu_seqlens[b + 1] == pass.rows.cu_seqlens[b]) continue;
    SequenceState& sequence = sequences.at(pass.input.sequences[b]);
    from.push_back(pass.rows.cu_seqlens[b + 1] - 1);
    to.push_back(sequence.slot);
    sequence.has_hidden = true;
    sequence.pass = static_cast<int32_t>(passes.size());  // this pass is pushed next
    sequence.row = from.back();
    sequence.saliency = pass.saliency && pass.input.saliency[b] ? pass.saliency : nullptr;
    sequence.segment = static_cast<int32_t>(b);
  }
  model->backend->copy_rows(as_weight(pass.hidden, pass.rows.T, D), from.data(), last_hidden->floats(), to.data(), static_cast<int64_t>(from.size()));
}

// Scores of all rows at each layer's first scoring, which the thresholds follow; and the sum of the squares of all.
std::map<int64_t, std::vector<float>> Session::Impl::router_scores(const Pass& pass) {
  std::map<int64_t, std::vector<float>> scores;
  double squares = 0;
  for (size_t layer = 0; options.training && layer < pass.layers.size(); ++layer)
    for (const RoutedTape& tape : pass.layers[layer].extra) {
      std::vector<float> own(tape.candidates.size());
      model->backend->download(own.data(), tape.scores->data(), own.size() * sizeof(float));
      for (float score : own) squares += static_cast<double>(score) * score;
      if (tape.depth == 2 && options.routing.rule == RouteRule::threshold) scores[static_cast<int64_t>(layer)] = std::move(own);
    }
  figures.squares += squares;
  return scores;
}

void Session::Impl::commit_routing(const Pass& pass) {
  for (size_t layer = 0; layer < pass.layers.size(); ++layer) {
    const std::vector<RoutedTape>& extra = pass.layers[layer].extra;
    if (!extra.empty()) router.commit(static_cast<int64_t>(layer), pass.rows, extra);
    for (const RoutedTape& tape : extra) {
      figures.scores += static_cast<int64_t>(tape.candidates.size());
      figures.extra_rows += static_cast<int64_t>(tape.rows.size());
      if (tape.depth > 2) continue;
      figures.scored += static_cast<int64_t>(tape.candidates.size());
      figures.routed += static_cast<int64_t>(tape.rows.size());
    }
  }
}

// Nothing here can be cancelled: the sequences grow only when the whole pass is done. What may lack memory comes first.
void Session::Impl::commit(Pass& pass) {
  model->backend->set_cancel(nullptr);
  if (passes.size() == passes.capacity()) passes.reserve(2 * passes.size() + 16);
  if (events.size() == events.capacity()) events.reserve(2 * events.size() + 16);
  grow_last_hidden();
  for (auto& [layer, scores] : router_scores(pass)) {
    std::vector<float>& all = collected_scores[layer];
    all.insert(all.end(), scores.begin(), scores.end());
  }
  commit_routing(pass);
  remember_last_rows(pass);
  for (size_t b = 0; b < pass.rows.sequences.size(); ++b)
    caches.keys_values.advance(pass.rows.sequences[b], pass.rows.cu_seqlens[b + 1] - pass.rows.cu_seqlens[b]);
  token_forwards += pass.rows.T;
}

std::vector<RoutingTrace> Session::Impl::routing_traces(const Pass& pass) {
  std::vector<RoutingTrace> traces;
  for (size_t layer = 0; layer < pass.layers.size(); ++layer)
    for (const RoutedTape& tape : pass.layers[layer].extra) {
      RoutingTrace trace{static_cast<int32_t>(layer), tape.depth, tape.candidates, tape.rows, {}, {}};
      trace.scores.resize(tape.candidates.size()), trace.gates.resize(tape.candidates.size());
      model->backend->download(trace.scores.data(), tape.scores->data(), trace.scores.size() * sizeof(float));
      model->backend->download(trace.gates.data(), tape.gates->data(), trace.gates.size() * sizeof(float));
      traces.push_back(std::move(trace));
    }
  return traces;
}

void Session::Impl::read_rows(const Pass& pass, const std::vector<int32_t>& rows, bool as_logits, std::vector<float>* out) {
  const int64_t D = model->spec.text.hidden, V = model->spec.text.vocab, width = as_logits ? V : D, count = static_cast<int64_t>(rows.size());
  out->resize(static_cast<size_t>(count * width));
  const int64_t chunk = std::max<int64_t>(1, kLogitBytes / (V * 4));
  for (int64_t start = 0; start < count; start += chunk) {
    const int64_t n = std::min(chunk, count - start);
    Buffer hidden = pool.take(n * D);
    model->backend->copy_rows(as_weight(pass.hidden, pass.rows.T, D), rows.data() + start, hidden->floats(), nullptr, n);
    if (as_logits) {
      Buffer logits = pool.take(n * V);
      model->backend->linear(hidden->floats(), head(), nullptr, logits->floats(), n, false);
      hidden = std::move(logits);
    }
    model->backend->download(out->data() + start * width, hidden->data(), static_cast<size_t>(n * width) * sizeof(float));
  }
}

PassOutput Session::extend(PassInput given) {
  Impl& s = *impl_;
  s.check_training();
  s.check(given);
  std::unique_ptr<Pass> pass = s.prepare(std::move(given));
  const PassInput& input = pass->input;
  Buffer x = s.embed(*pass);
  s.run_layers(*pass, x);
  PassOutput output;
  s.read_rows(*pass, input.logit_rows, true, &output.logits);
  s.read_rows(*pass, input.hidden_rows, false, &output.hidden);
  if (input.trace_routing) output.routing = s.routing_traces(*pass);
  s.commit(*pass);
  output.pass = static_cast<int32_t>(s.passes.size());
  const bool keep = s.options.training || input.keep_layer_inputs;
  if (s.options.training) s.events.push_back({Event::pass, s.passes.size()});
  s.passes.push_back(keep ? std::move(pass) : nullptr);
  return output;
}

}  // namespace plumbline
