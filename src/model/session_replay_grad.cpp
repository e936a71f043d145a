// Gradients of session_replay.cpp: from a step's stored rows into the image tokens, the saliency, token super-resolution and its target.
#include "session_impl.h"

namespace plumbline {

void Session::Impl::backward_target(ReplayStep& step, const Buffer& du) {
  const int64_t D = model->spec.text.hidden;
  std::vector<int32_t> from, cu{0};
  std::vector<float> share;
  for (size_t r = 0; r + 1 < step.cu_target.size(); ++r) {
    const int32_t n = step.cu_target[r + 1] - step.cu_target[r];
    from.insert(from.end(), static_cast<size_t>(n), static_cast<int32_t>(r));
    share.insert(share.end(), static_cast<size_t>(n), 1.0f / static_cast<float>(n));
  }
  for (size_t i = 1; i <= from.size(); ++i) cu.push_back(static_cast<int32_t>(i));
  const int64_t tokens = static_cast<int64_t>(from.size());
  Buffer weight = pool.take(tokens), dtokens = pool.take(tokens * D);
  model->backend->upload(weight->data(), share.data(), share.size() * sizeof(float));
  model->backend->weighted_rows(du->floats(), from.data(), weight->floats(), cu.data(), dtokens->floats(), tokens, D);
  vision.backward(step.target, dtokens->floats());
}

// Gradient of F's output, from the rows it was added to and from the loss, back into the block's rows (or the plain tokens).
void Session::Impl::backward_super_resolution(ReplayStep& step, Buffer& dblock) {
  const int64_t D = model->spec.text.hidden, R = static_cast<int64_t>(step.blocks.size()), rows = step.cu_rows.back();
  const ReplaySpec& spec = options.replay;
  Backend& backend = *model->backend;
  Parameters& p = model->parameters;
  std::vector<float> share;
  const std::vector<int32_t> block_of = block_of_rows(step, &share);
  Buffer df = zeros(R * D);
  if (spec.sr_added) backend.add_rows(dblock->floats(), nullptr, df->floats(), block_of.data(), rows, D);
  if (step.u) {
    Buffer scale = pool.take(R), du = pool.take(R * D);
    backend.upload(scale->data(), step.sr_weight.data(), step.sr_weight.size() * sizeof(float));
    const bool wants_target = !step.target.blocks.empty() || step.target.final;
    backend.square_loss_grad(step.f->floats(), step.u->floats(), scale->floats(), df->floats(), wants_target ? du->floats() : nullptr, R, D);
    if (wants_target) backward_target(step, du);
  }
  const auto last = p.linear_gradient("token_sr.2.weight", "token_sr.2.bias"), first = p.linear_gradient("token_sr.0.weight", "token_sr.0.bias");
  if (last.weight) backend.linear_grad_weight(df->floats(), step.active->floats(), last.weight, last.bias, R, D, D);
  Buffer dactive = pool.take(R * D), db = pool.take(R * D);
  backend.linear_grad_input(df->floats(), p.weight("token_sr.2.weight"), dactive->floats(), R, false);
  backend.activate_grad(Activation::relu, step.active->floats(), dactive->floats(), dactive->floats(), R * D);
  if (first.weight) backend.linear_grad_weight(dactive->floats(), step.b->floats(), first.weight, first.bias, R, D, D);
  backend.linear_grad_input(dactive->floats(), p.weight("token_sr.0.weight"), db->floats(), R, false);
  std::vector<int32_t> cu{0};
  if (spec.sr_unweighted) {
    share.clear();
    for (int32_t b : step.blocks) {
      const int32_t end = step.cu_selected[static_cast<size_t>(b) + 1], n = end - step.cu_selected[static_cast<size_t>(b)];
      share.insert(share.end(), static_cast<size_t>(n), 1.0f / static_cast<float>(n));
      cu.push_back(end);
    }
  } else {
    for (int32_t i = 1; i <= rows; ++i) cu.push_back(i);
  }
  Buffer weight = pool.take(static_cast<int64_t>(share.size()));
  backend.upload(weight->data(), share.data(), share.size() * sizeof(float));
  if (spec.sr_unweighted) {
    backend.weighted_rows_grad(visual->floats(), step.visual_rows.data(), weight->floats(), cu.data(), db->floats(), nullptr, visual_gradient->floats(), R, D);
  } else {
    Buffer spread = pool.take(rows * D);
    backend.weighted_rows(db->floats(), block_of.data(), weight->floats(), cu.data(), spread->floats(), rows, D);
    backend.add_rows(spread->floats(), nullptr, dblock->floats(), nullptr, rows, D);
  }
}

void Session::Impl::backward_replay(ReplayStep& step) {
  const int64_t D = model->spec.text.hidden, rows = step.cu_rows.back();
  if (rows == 0) return;
  Backend& backend = *model->backend;
  Buffer dblock = pool.take(rows * D);
  backend.copy(dblock->data(), stored_gradient->floats() + step.first_row * D, static_cast<size_t>(rows * D) * sizeof(float));
  if (step.f) backward_super_resolution(step, dblock);
  const std::vector<int32_t> cu = selected_of_rows(step);
  Buffer dweight = pool.take(step.cu_selected.back());
  const bool through = options.replay.saliency_gradient;
  backend.weighted_rows_grad(visual->floats(), step.visual_rows.data(), step.weight->floats(), cu.data(), dblock->floats(), through ? dweight->floats() : nullptr,
                             visual_gradient->floats(), rows, D);
  if (!through) return;
  Buffer dsaliency = zeros(step.cu_tokens.back());
  backend.select_patches_grad(options.replay.rule, step.layout(), step.saliency->floats(), step.selected.data(), step.weight->floats(), dweight->floats(), dsaliency->floats());
  for (size_t b = 0; b < step.sources.size(); ++b) {
    const ReplayStep::Source& source = step.sources[b];
    if (!source.saliency->gradient) source.saliency->gradient = zeros(static_cast<int64_t>(source.saliency->columns.size()));
    backend.copy(source.saliency->gradient->floats() + source.first, dsaliency->floats() + step.cu_tokens[b], static_cast<size_t>(source.count) * sizeof(float));
  }
}

}  // namespace plumbline
