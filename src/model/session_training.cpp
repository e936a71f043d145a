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

void Session::Impl::backward_embed(Pass& pass, const float* dx, float* dvisual) {
  const int64_t D = model->spec.text.hidden;
  std::vector<int32_t> from[2], to[2];
  for (int64_t t = 0; t < pass.rows.T; ++t) {
    const uint8_t kind = pass.input.kind[static_cast<size_t>(t)];
    if (kind > static_cast<uint8_t>(RowKind::visual)) continue;
    from[kind].push_back(static_cast<int32_t>(t));
    to[kind].push_back(pass.input.index[static_cast<size_t>(t)]);
  }
  float* dembed = model->parameters.gradient("model.embed_tokens.weight");
  if (dembed && !to[0].empty()) model->backend->add_rows(dx, from[0].data(), dembed, to[0].data(), static_cast<int64_t>(to[0].size()), D);
  if (dvisual && !to[1].empty()) model->backend->add_rows(dx, from[1].data(), dvisual, to[1].data(), static_cast<int64_t>(to[1].size()), D);
  if (options.detach_latents) return;
  for (const Pass::Origin& latent : pass.latents) {
    Pass& source = *passes[static_cast<size_t>(latent.pass)];
    if (!source.dhidden) source.dhidden = zeros(source.rows.T * D);
    model->backend->add_rows(dx, &latent.row, source.dhidden->floats(), &latent.source_row, 1, D);
  }
}

void Session::Impl::backward_pass(int32_t number, Buffer& dvisual) {
  Pass& pass = *passes[static_cast<size_t>(number)];
  const TextSpec& spec = model->spec.text;
  const int64_t T = pass.rows.T, D = spec.hidden;
  if (!pass.dhidden) pass.dhidden = zeros(T * D);
  Buffer dx = pool.take(T * D);
  model->backend->rms_norm_grad(pass.dhidden->floats(), pass.final->floats(), model->parameters.vector("model.norm.weight"), pass.rstd->floats(), dx->floats(),
                                model->parameters.gradient("model.norm.weight"), T, D, false);
  for (int64_t layer = spec.layers - 1; layer >= 0; --layer) {
    LayerTape& tape = pass.layers[static_cast<size_t>(layer)];
    if (options.recompute) decoder.recompute(layer, pass.rows, tape);
    decoder.backward(layer, pass.rows, tape, dx);
    tape = LayerTape{};
  }
  backward_embed(pass, dx->floats(), dvisual ? dvisual->floats() : nullptr);
}

void Session::backward() {
  Impl& s = *impl_;
  require(s.options.training, "ERR_ARGUMENT", "[backward] Expected a training session");
  require(!s.passes.empty(), "ERR_ARGUMENT", "[backward] Expected at least one pass since the last backward");
  // Whatever happens, the tape is spent: a cancelled sweep leaves gradients to be zeroed, never half a tape to run again.
  struct Spend {
    Impl& s;
    ~Spend() { s.drop_tape(); }
  } spend{s};
  s.cache.zero_gradients();
  const int64_t width = s.model->spec.vision.out_width;
  s.visual_gradient.reset();
  s.visual_gradient_rows = s.visual_rows;
  if (s.visual_rows > 0) s.visual_gradient = s.zeros(s.visual_rows * width);
  for (int32_t number = static_cast<int32_t>(s.passes.size()) - 1; number >= 0; --number) s.backward_pass(number, s.visual_gradient);
  for (auto picture = s.pictures.rbegin(); picture != s.pictures.rend(); ++picture)
    s.vision.backward(picture->second, s.visual_gradient->floats() + picture->first * width);
}

}  // namespace plumbline
