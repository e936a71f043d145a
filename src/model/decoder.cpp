#include "decoder.h"

#include <cmath>

namespace plumbline {

std::string layer_name(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

float Decoder::saliency_scale() const { return static_cast<float>(1.0 / static_cast<double>(model_.spec.text.layers * model_.spec.text.heads)); }

AttentionShape Decoder::shape(const PassRows& rows) const {
  const TextSpec& text = model_.spec.text;
  AttentionShape s{};
  s.B = static_cast<int32_t>(rows.sequences.size());
  s.cu_q_B1 = rows.cu_seqlens.data();
  s.kv_len_B = rows.kv_len.data();
  s.H = static_cast<int32_t>(text.heads), s.Hkv = static_cast<int32_t>(text.kv_heads), s.d = static_cast<int32_t>(text.head_dim);
  s.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(text.head_dim)));
  s.causal = true;
  s.q_row_stride = (text.heads + 2 * text.kv_heads) * text.head_dim;
  return s;
}

void Decoder::attend(const LayerSite& site, const PassRows& rows, LayerTape& tape) {
  const TextSpec& text = model_.spec.text;
  const AttentionShape s = shape(rows);
  float* qkv = tape.qkv->floats();
  Backend& backend = *model_.backend;
  PageTable table;
  site.cache->table(rows.sequences, rows.kv_len, site.cache_layer, &table);
  const KeyValuePages pages = site.cache->view(table);
  float* last_q = site.saliency ? site.saliency->last_q->floats() + site.layer * s.B * text.heads * text.head_dim : nullptr;
  backend.rotate_store(s, qkv, rows.cos->floats(), rows.sin->floats(), rows.first_row.data(), pages, last_q);
  backend.attention(s, qkv, pages, tape.mixed->floats(), tape.lse->floats());
}

void Decoder::saliency(KeyValueCache& cache, const PassRows& rows, Saliency& saliency) {
  const TextSpec& text = model_.spec.text;
  const AttentionShape s = shape(rows);
  std::vector<int32_t> q_row(rows.sequences.size()), lse_row(q_row.size());
  for (size_t b = 0; b < q_row.size(); ++b) {
    const bool is_empty = rows.cu_seqlens[b + 1] == rows.cu_seqlens[b];
    q_row[b] = is_empty ? -1 : static_cast<int32_t>(b);
    lse_row[b] = is_empty ? -1 : rows.cu_seqlens[b + 1] - 1;
  }
  std::vector<const float*> q;
  const int64_t width = text.heads * text.head_dim;
  for (int64_t layer = 0; layer < text.layers; ++layer) q.push_back(saliency.last_q->floats() + layer * s.B * width);
  PageTable table;
  cache.table(rows.sequences, rows.kv_len, 0, &table);
  const LastQueries queries{static_cast<int32_t>(text.layers), q.data(), saliency.lse.data(), q_row.data(), lse_row.data(), width, cache.layer_stride()};
  model_.backend->attention_saliency(s, queries, cache.view(table), saliency.view(), saliency_scale(), saliency.scores->floats());
  saliency.last_q.reset();
  saliency.lse.clear(), saliency.own_lse.clear();
}

void Decoder::forward(const LayerSite& site, const PassRows& rows, Buffer& x, LayerTape& tape) {
  const TextSpec& text = model_.spec.text;
  tape.rstd1 = pool_.take(rows.T), tape.normed1 = pool_.take(rows.T * text.hidden);
  model_.backend->rms_norm(x->floats(), model_.parameters.vector(layer_name(site.layer) + "input_layernorm.weight"), text.eps, tape.normed1->floats(),
                           tape.rstd1->floats(), rows.T, text.hidden);
  forward_normed(site, rows, x, tape);
}

void Decoder::forward_normed(const LayerSite& site, const PassRows& rows, Buffer& x, LayerTape& tape) {
  const TextSpec& text = model_.spec.text;
  Backend& backend = *model_.backend;
  const Parameters& p = model_.parameters;
  const std::string base = layer_name(site.layer);
  const int64_t T = rows.T, D = text.hidden, I = text.intermediate;
  const size_t x_bytes = static_cast<size_t>(T * D) * sizeof(float);

  tape.qkv = pool_.take(T * (text.heads + 2 * text.kv_heads) * text.head_dim);
  layers_.forward(base + "self_attn.q_proj", tape.normed1->floats(), tape.qkv->floats(), T, false, rows.dropout_key);  // k and v too
  tape.mixed = pool_.take(T * text.heads * text.head_dim), tape.lse = pool_.take(T * text.heads);
  attend(site, rows, tape);
  tape.middle = pool_.take(T * D);
  backend.copy(tape.middle->data(), x->data(), x_bytes);
  layers_.forward(base + "self_attn.o_proj", tape.mixed->floats(), tape.middle->floats(), T, true, rows.dropout_key);
  tape.input = std::move(x);

  tape.rstd2 = pool_.take(T), tape.normed2 = pool_.take(T * D);
  backend.rms_norm(tape.middle->floats(), p.vector(base + "post_attention_layernorm.weight"), text.eps, tape.normed2->floats(), tape.rstd2->floats(), T, D);
  tape.gate_up = pool_.take(T * 2 * I), tape.gated = pool_.take(T * I);
  layers_.forward(base + "mlp.gate_proj", tape.normed2->floats(), tape.gate_up->floats(), T, false, rows.dropout_key);  // up too
  backend.swiglu(tape.gate_up->floats(), tape.gated->floats(), T, I);
  x = pool_.take(T * D);
  backend.copy(x->data(), tape.middle->data(), x_bytes);
  layers_.forward(base + "mlp.down_proj", tape.gated->floats(), x->floats(), T, true, rows.dropout_key);
}

void Decoder::backward_mlp(const std::string& base, const PassRows& rows, const LayerTape& tape, float* dx) {
  const TextSpec& text = model_.spec.text;
  Backend& backend = *model_.backend;
  Parameters& p = model_.parameters;
  const int64_t T = rows.T, D = text.hidden, I = text.intermediate;
  Buffer dgated = pool_.take(T * I), dgate_up = pool_.take(T * 2 * I), dnormed = pool_.take(T * D);
  layers_.backward(base + "mlp.down_proj", dx, tape.gated->floats(), dgated->floats(), T, rows.dropout_key);
  backend.swiglu_grad(tape.gate_up->floats(), dgated->floats(), dgate_up->floats(), T, I);
  layers_.backward(base + "mlp.gate_proj", dgate_up->floats(), tape.normed2->floats(), dnormed->floats(), T, rows.dropout_key);
  backend.rms_norm_grad(dnormed->floats(), tape.middle->floats(), p.vector(base + "post_attention_layernorm.weight"), tape.rstd2->floats(), dx,
                        p.gradient(base + "post_attention_layernorm.weight"), nullptr, T, D, true);
}

void Decoder::backward_attention(const LayerSite& site, const PassRows& rows, const LayerTape& tape, float* dx, float* dx_norm_T) {
  const TextSpec& text = model_.spec.text;
  Backend& backend = *model_.backend;
  Parameters& p = model_.parameters;
  const std::string base = layer_name(site.layer);
  const AttentionShape s = shape(rows);
  const int64_t T = rows.T, D = text.hidden, q_width = text.heads * text.head_dim, kv_width = text.kv_heads * text.head_dim;
  Buffer dmixed = pool_.take(T * q_width), dqkv = pool_.take(T * s.q_row_stride), dnormed = pool_.take(T * D);
  layers_.backward(base + "self_attn.o_proj", dx, tape.mixed->floats(), dmixed->floats(), T, rows.dropout_key);

  PageTable table;
  site.cache->table(rows.sequences, rows.kv_len, site.cache_layer, &table);
  const KeyValuePages pages = site.cache->view(table);
  backend.attention_grad(s, tape.qkv->floats(), pages, tape.mixed->floats(), tape.lse->floats(), dmixed->floats(), dqkv->floats(), table.dk.data(), table.dv.data());
  if (site.saliency && site.saliency->gradient)
    backend.attention_saliency_grad(s, tape.qkv->floats(), pages, tape.lse->floats(), site.saliency->view(), saliency_scale(), site.saliency->gradient->floats(),
                                    dqkv->floats(), table.dk.data());
  KeyValuePages gradient_pages = pages;
  gradient_pages.k = table.dk.data(), gradient_pages.v = table.dv.data();
  backend.gather_from_pages(s, rows.first_row.data(), dqkv->floats() + q_width, dqkv->floats() + q_width + kv_width, s.q_row_stride, gradient_pages);
  backend.rotary(dqkv->floats(), s.q_row_stride, s.H + s.Hkv, s.d, rows.cos->floats(), rows.sin->floats(), T, true);

  layers_.backward(base + "self_attn.q_proj", dqkv->floats(), tape.normed1->floats(), dnormed->floats(), T, rows.dropout_key);
  backend.rms_norm_grad(dnormed->floats(), tape.input->floats(), p.vector(base + "input_layernorm.weight"), tape.rstd1->floats(), dx,
                        p.gradient(base + "input_layernorm.weight"), dx_norm_T, T, D, true);
}

void Decoder::backward(const LayerSite& site, const PassRows& rows, const LayerTape& tape, Buffer& dx, float* dx_norm_T) {
  backward_mlp(layer_name(site.layer), rows, tape, dx->floats());
  backward_attention(site, rows, tape, dx->floats(), dx_norm_T);
}

}  // namespace plumbline
