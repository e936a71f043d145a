#include <algorithm>

#include "../core/error.h"
#include "session_impl.h"

namespace plumbline {
void Session::Impl::check_loss(const LossInput& input) const {
  const int64_t V = model->spec.text.vocab;
  require(options.training, "ERR_ARGUMENT", "[loss] Expected a training session");
  require(input.row.size() == input.pass.size() && input.target.size() == input.pass.size(), "ERR_SHAPE",
          "[loss] Expected pass, row and target to have one length but received " + std::to_string(input.pass.size()) + ", " + std::to_string(input.row.size()) + " and " +
              std::to_string(input.target.size()));
  for (size_t i = 0; i < input.pass.size(); ++i) {
    const int32_t number = input.pass[i];
    require(number >= 0 && static_cast<size_t>(number) < passes.size() && passes[static_cast<size_t>(number)], "ERR_RANGE",
            "[loss] Expected passes in 0.." + std::to_string(static_cast<int64_t>(passes.size()) - 1) + " but received " + std::to_string(number));
    require(input.row[i] >= 0 && input.row[i] < passes[static_cast<size_t>(number)]->rows.T, "ERR_RANGE",
            "[loss] Expected rows below the pass's " + std::to_string(passes[static_cast<size_t>(number)]->rows.T) + " but received " + std::to_string(input.row[i]));
    require(input.target[i] >= 0 && input.target[i] < V, "ERR_RANGE", "[loss] Expected targets in 0.." + std::to_string(V - 1) + " but received " + std::to_string(input.target[i]));
  }
  require(input.index.size() == input.replay.size() && input.weight.size() == input.replay.size(), "ERR_SHAPE",
          "[loss] Expected replay, index and weight to have one length but received " + std::to_string(input.replay.size()) + ", " + std::to_string(input.index.size()) + " and " +
              std::to_string(input.weight.size()));
  for (size_t q = 0; q < input.replay.size(); ++q) {
    require(input.replay[q] >= 0 && static_cast<size_t>(input.replay[q]) < replays.size(), "ERR_RANGE",
            "[loss] Expected replays in 0.." + std::to_string(static_cast<int64_t>(replays.size()) - 1) + " but received " + std::to_string(input.replay[q]));
    const ReplayStep& step = *replays[static_cast<size_t>(input.replay[q])];
    require(step.u && std::count(step.blocks.begin(), step.blocks.end(), input.index[q]) == 1, "ERR_RANGE",
            "[loss] Expected sequences that have a super-resolution loss in replay " + std::to_string(input.replay[q]) + " but received index " + std::to_string(input.index[q]));
  }
}

Buffer Session::Impl::gather_hidden(const LossInput& input, size_t first, size_t count) {
  const int64_t D = model->spec.text.hidden;
  Buffer rows = pool.take(static_cast<int64_t>(count) * D);
  for (size_t number = 0; number < passes.size(); ++number) {
    std::vector<int32_t> from, to;
    for (size_t i = 0; i < count; ++i)
      if (static_cast<size_t>(input.pass[first + i]) == number) from.push_back(input.row[first + i]), to.push_back(static_cast<int32_t>(i));
    if (from.empty()) continue;
    const Weight hidden{passes[number]->hidden->data(), DType::f32, passes[number]->rows.T, D};
    model->backend->copy_rows(hidden, from.data(), rows->floats(), to.data(), static_cast<int64_t>(from.size()));
  }
  return rows;
}

void Session::Impl::scatter_hidden_gradient(const LossInput& input, size_t first, size_t count, const float* drows) {
  const int64_t D = model->spec.text.hidden;
  for (size_t number = 0; number < passes.size(); ++number) {
    std::vector<int32_t> from, to;
    for (size_t i = 0; i < count; ++i)
      if (static_cast<size_t>(input.pass[first + i]) == number) from.push_back(static_cast<int32_t>(i)), to.push_back(input.row[first + i]);
    if (from.empty()) continue;
    Pass& pass = *passes[number];
    if (!pass.dhidden) pass.dhidden = zeros(pass.rows.T * D);
    model->backend->add_rows(drows, from.data(), pass.dhidden->floats(), to.data(), static_cast<int64_t>(from.size()), D);
  }
}

LossOutput Session::loss(const LossInput& input) {
  Impl& s = *impl_;
  s.check_loss(input);
  const int64_t D = s.model->spec.text.hidden, V = s.model->spec.text.vocab;
  const size_t R = input.pass.size(), chunk = static_cast<size_t>(std::max<int64_t>(1, kLogitBytes / (V * 4)));
  const Weight head = s.head();
  Backend& backend = *s.model->backend;
  float* dhead = s.model->parameters.gradient(s.model->spec.text.tied ? "model.embed_tokens.weight" : "lm_head.weight");
  LossOutput output;
  output.losses.resize(R), output.argmax.resize(R);
  for (size_t q = 0; q < input.replay.size(); ++q) {
    ReplayStep& step = *s.replays[static_cast<size_t>(input.replay[q])];
    const auto block = std::find(step.blocks.begin(), step.blocks.end(), input.index[q]) - step.blocks.begin();
    step.sr_weight[static_cast<size_t>(block)] += input.weight[q];
  }
  // A loss that ends half-way has added half its gradients: the tape is spent, or a second call would count them twice.
  struct Spend {
    Impl* s;
    ~Spend() {
      if (s) s->drop_tape();
    }
  } spend{&s};
  for (size_t first = 0; first < R; first += chunk) {
    const size_t count = std::min(chunk, R - first);
    const int64_t n = static_cast<int64_t>(count);
    Buffer rows = s.gather_hidden(input, first, count), logits = s.pool.take(n * V), losses = s.pool.take(n);
    backend.linear(rows->floats(), head, nullptr, logits->floats(), n, false);
    backend.cross_entropy(logits->floats(), input.target.data() + first, input.scale, losses->floats(), output.argmax.data() + first, logits->floats(), n, V);
    backend.download(output.losses.data() + first, losses->data(), count * sizeof(float));
    if (dhead) backend.linear_grad_weight(logits->floats(), rows->floats(), dhead, nullptr, n, V, D);
    Buffer drows = s.pool.take(n * D);
    backend.linear_grad_input(logits->floats(), head, drows->floats(), n, false);
    s.scatter_hidden_gradient(input, first, count, drows->floats());
  }
  spend.s = nullptr;
  return output;
}

void Session::Impl::backward_hidden(int32_t pass, int32_t row, const float* dx, int32_t from_row) {
  const int64_t D = model->spec.text.hidden;
  Pass& source = *passes[static_cast<size_t>(pass)];
  if (!source.dhidden) source.dhidden = zeros(source.rows.T * D);
  model->backend->add_rows(dx, &from_row, source.dhidden->floats(), &row, 1, D);
}

void Session::Impl::backward_embed(Pass& pass, const float* dx) {
  const int64_t D = model->spec.text.hidden;
  float* const stores[kRowKinds] = {model->parameters.gradient("model.embed_tokens.weight"), visual_gradient ? visual_gradient->floats() : nullptr, nullptr, nullptr,
                                    stored_gradient ? stored_gradient->floats() : nullptr};
  std::vector<int32_t> from[kRowKinds], to[kRowKinds];
  for (int64_t t = 0; t < pass.rows.T; ++t) {
    const uint8_t kind = pass.input.kind[static_cast<size_t>(t)];
    from[kind].push_back(static_cast<int32_t>(t));
    to[kind].push_back(pass.input.index[static_cast<size_t>(t)]);
  }
  for (size_t kind = 0; kind < kRowKinds; ++kind)
    if (stores[kind] && !to[kind].empty()) model->backend->add_rows(dx, from[kind].data(), stores[kind], to[kind].data(), static_cast<int64_t>(to[kind].size()), D);
  if (options.detach_latents) return;
  for (const Pass::Origin& latent : pass.latents) backward_hidden(latent.pass, latent.source_row, dx, latent.row);
}

// penalty: of each router score's square, already divided by their number; times 2 for the gradient.
void Session::Impl::backward_pass(Pass& pass, float penalty) {
  const TextSpec& spec = model->spec.text;
  const int64_t T = pass.rows.T, D = spec.hidden;
  if (!pass.dhidden) pass.dhidden = zeros(T * D);
  Buffer dx = pool.take(T * D);
  model->backend->rms_norm_grad(pass.dhidden->floats(), pass.final->floats(), model->parameters.vector("model.norm.weight"), pass.rstd->floats(), dx->floats(),
                                model->parameters.gradient("model.norm.weight"), profile_norms(pass, spec.layers), T, D, false);
  profile_sum(pass, spec.layers, dx);
  for (int64_t layer = spec.layers - 1; layer >= 0; --layer) {
    LayerRecord& record = pass.layers[static_cast<size_t>(layer)];
    if (options.recompute) {
      Buffer x = std::move(record.ordinary.input);
      decoder.forward({layer, &caches.keys_values, layer}, pass.rows, x, record.ordinary);
      if (!record.extra.empty()) router.forward(layer, pass.rows, x, true, record.extra);
    }
    if (!record.extra.empty()) router.backward(layer, record.extra, 2 * penalty, dx);
    decoder.backward({layer, &caches.keys_values, layer, pass.saliency.get()}, pass.rows, record.ordinary, dx, profile_norms(pass, layer));
    profile_sum(pass, layer, dx);
    record = LayerRecord{};
  }
  backward_embed(pass, dx->floats());
}

void Session::backward(float router_penalty) {
  Impl& s = *impl_;
  require(s.options.training, "ERR_ARGUMENT", "[backward] Expected a training session");
  require(!s.passes.empty(), "ERR_ARGUMENT", "[backward] Expected at least one pass since the last backward");
  s.check_training();
  // Whatever happens, the tape is spent: a cancelled sweep leaves gradients to be zeroed, never half a tape to run again.
  struct Spend {
    Impl& s;
    ~Spend() { s.drop_tape(); }
  } spend{s};
  s.gradient_norms = GradientNorms{};
  if (s.options.profile) s.start_profile();
  s.caches.zero_gradients();
  const int64_t width = s.model->spec.vision.out_width;
  s.visual_gradient.reset();
  s.visual_gradient_rows = s.visual_rows;
  if (s.visual_rows > 0) s.visual_gradient = s.zeros(s.visual_rows * width);
  if (s.stored_rows > 0) s.stored_gradient = s.zeros(s.stored_rows * s.model->spec.text.hidden);
  const float penalty = s.figures.scores > 0 ? router_penalty / static_cast<float>(s.figures.scores) : 0.0f;
  for (auto event = s.events.rbegin(); event != s.events.rend(); ++event) {
    if (event->kind == Event::pass) {
      s.backward_pass(*s.passes[event->number], penalty);
    } else if (event->kind == Event::replay) {
      s.backward_replay(*s.replays[event->number]);
    } else if (!s.options.detach_latents) {
      const KeptLatents& kept = s.kept_latents[event->number];
      for (size_t i = 0; i < kept.pass.size(); ++i)
        s.backward_hidden(kept.pass[i], kept.row[i], s.stored_gradient->floats(), static_cast<int32_t>(kept.first_row + static_cast<int64_t>(i)));
    }
  }
  for (auto picture = s.pictures.rbegin(); picture != s.pictures.rend(); ++picture)
    s.vision.backward(picture->second, s.visual_gradient->floats() + picture->first * width);
  if (s.options.profile) s.finish_profile();
  for (auto& [layer, scores] : s.collected_scores) {  // a tape that is given up moves no threshold
    std::vector<float>& all = s.model->router_scores[layer];
    all.insert(all.end(), scores.begin(), scores.end());
  }
}

}  // namespace plumbline
