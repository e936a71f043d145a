// The blocks of the vision tower.
#include <algorithm>
#include <cmath>

#include "vision.h"

namespace plumbline {
namespace {

constexpr int32_t kPageRows = 64;  // the attention reads the strided qkv buffer in tiles of this many keys

// The attention's view of a contiguous [n, 3, heads, d] buffer: one page per kPageRows patches of a segment.
struct StridedPages {
  std::vector<float*> k, v;
  std::vector<int32_t> start{0};

  StridedPages(const Segments& segments, float* qkv, int64_t width) {
    for (size_t f = 0; f < segments.length.size(); ++f) {
      for (int64_t row = segments.cu[f]; row < segments.cu[f + 1]; row += kPageRows) {
        k.push_back(qkv + row * 3 * width + width);
        v.push_back(qkv + row * 3 * width + 2 * width);
      }
      start.push_back(static_cast<int32_t>(k.size()));
    }
  }
};

AttentionShape attention_shape(const VisionSpec& vision, const Segments& segments) {
  AttentionShape s{};
  s.B = static_cast<int32_t>(segments.length.size());
  s.cu_q_B1 = segments.cu.data();
  s.kv_len_B = segments.length.data();
  s.H = s.Hkv = static_cast<int32_t>(vision.heads);
  s.d = static_cast<int32_t>(vision.width / vision.heads);
  s.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.d)));
  s.causal = false;
  s.q_row_stride = 3 * vision.width;
  return s;
}

std::string block_name(int64_t index) { return "visual.blocks." + std::to_string(index) + "."; }

}  // namespace

const Segments& Vision::segments_of(int64_t index, const VisionLayout& layout) const {
  const VisionSpec& vision = model_.spec.vision;
  const auto& full = vision.full_attention_blocks;
  return !vision.is_qwen2_5() || std::find(full.begin(), full.end(), index) != full.end() ? layout.frames : layout.windows;
}

void Vision::norm(const std::string& name, const float* x, Buffer& y, Buffer& mean, Buffer& rstd, int64_t n) {
  const VisionSpec& vision = model_.spec.vision;
  const Parameters& p = model_.parameters;
  const float* scale = p.vector(name + ".weight");
  y = pool_.take(n * vision.width), rstd = pool_.take(n);
  if (vision.is_qwen2_5()) return model_.backend->rms_norm(x, scale, vision.eps, y->floats(), rstd->floats(), n, vision.width);
  mean = pool_.take(n);
  model_.backend->layer_norm(x, scale, p.vector(name + ".bias"), vision.eps, y->floats(), mean->floats(), rstd->floats(), n, vision.width);
}

void Vision::norm_backward(const std::string& name, const float* dy, const float* x, const Buffer& mean, const Buffer& rstd, float* dx, int64_t n, bool accumulate) {
  Parameters& p = model_.parameters;
  const int64_t W = model_.spec.vision.width;
  const float* scale = p.vector(name + ".weight");
  float* dscale = p.gradient(name + ".weight");
  if (model_.spec.vision.is_qwen2_5()) return model_.backend->rms_norm_grad(dy, x, scale, rstd->floats(), dx, dscale, nullptr, n, W, accumulate);
  model_.backend->layer_norm_grad(dy, x, scale, mean->floats(), rstd->floats(), dx, dscale, p.gradient(name + ".bias"), n, W, accumulate);
}

void Vision::attention_forward(const std::string& base, const VisionLayout& layout, const Segments& segments, const Buffer& x, VisionBlockTape& tape) {
  const VisionSpec& vision = model_.spec.vision;
  Backend& backend = *model_.backend;
  const int64_t n = layout.n, W = vision.width;
  const AttentionShape s = attention_shape(vision, segments);
  norm(base + "norm1", x->floats(), tape.normed1, tape.mean1, tape.rstd1, n);
  tape.qkv = pool_.take(n * 3 * W);
  linear(base + "attn.qkv", tape.normed1->floats(), tape.qkv->floats(), n, false);
  backend.rotary(tape.qkv->floats(), 3 * W, 2 * s.H, s.d, layout.cos->floats(), layout.sin->floats(), n, false);  // q and k
  const StridedPages strided(segments, tape.qkv->floats(), W);
  const KeyValuePages pages{strided.k.data(), strided.v.data(), strided.start.data(), s.d, 3 * W, kPageRows};
  tape.mixed = pool_.take(n * W), tape.lse = pool_.take(n * vision.heads);
  backend.attention(s, tape.qkv->floats(), pages, tape.mixed->floats(), tape.lse->floats());
  tape.middle = pool_.take(n * W);
  backend.copy(tape.middle->data(), x->data(), static_cast<size_t>(n * W) * sizeof(float));
  linear(base + "attn.proj", tape.mixed->floats(), tape.middle->floats(), n, true);
}

void Vision::mlp_forward(const std::string& base, int64_t n, VisionBlockTape& tape, float* x) {
  const VisionSpec& vision = model_.spec.vision;
  const int64_t M = vision.mlp_width;
  tape.active = pool_.take(n * M);
  if (vision.is_qwen2_5()) {
    tape.up = pool_.take(n * 2 * M);
    linear(base + "mlp.gate_proj", tape.normed2->floats(), tape.up->floats(), n, false);  // and up_proj, which is joined to it
    model_.backend->swiglu(tape.up->floats(), tape.active->floats(), n, M);
    return linear(base + "mlp.down_proj", tape.active->floats(), x, n, true);
  }
  tape.up = pool_.take(n * M);
  linear(base + "mlp.fc1", tape.normed2->floats(), tape.up->floats(), n, false);
  model_.backend->activate(vision.activation, tape.up->floats(), tape.active->floats(), n * M);
  linear(base + "mlp.fc2", tape.active->floats(), x, n, true);
}

void Vision::block_forward(int64_t index, const VisionLayout& layout, Buffer& x, VisionBlockTape& tape) {
  const std::string base = block_name(index);
  const int64_t n = layout.n, W = model_.spec.vision.width;
  attention_forward(base, layout, segments_of(index, layout), x, tape);
  tape.input = std::move(x);
  norm(base + "norm2", tape.middle->floats(), tape.normed2, tape.mean2, tape.rstd2, n);
  x = pool_.take(n * W);
  model_.backend->copy(x->data(), tape.middle->data(), static_cast<size_t>(n * W) * sizeof(float));
  mlp_forward(base, n, tape, x->floats());
}

void Vision::attention_backward(const std::string& base, const VisionLayout& layout, const Segments& segments, const VisionBlockTape& tape, float* dx) {
  const VisionSpec& vision = model_.spec.vision;
  Backend& backend = *model_.backend;
  const int64_t n = layout.n, W = vision.width;
  const AttentionShape s = attention_shape(vision, segments);
  Buffer dmixed = pool_.take(n * W), dqkv = pool_.take(n * 3 * W), dnormed = pool_.take(n * W);
  linear_backward(base + "attn.proj", dx, tape.mixed->floats(), dmixed->floats(), n);
  backend.fill(dqkv->floats(), 0.0f, n * 3 * W);  // keys and values are added to
  const StridedPages strided(segments, tape.qkv->floats(), W), gradient(segments, dqkv->floats(), W);
  const KeyValuePages pages{strided.k.data(), strided.v.data(), strided.start.data(), s.d, 3 * W, kPageRows};
  backend.attention_grad(s, tape.qkv->floats(), pages, tape.mixed->floats(), tape.lse->floats(), dmixed->floats(), dqkv->floats(), gradient.k.data(), gradient.v.data());
  backend.rotary(dqkv->floats(), 3 * W, 2 * s.H, s.d, layout.cos->floats(), layout.sin->floats(), n, true);
  linear_backward(base + "attn.qkv", dqkv->floats(), tape.normed1->floats(), dnormed->floats(), n);
  norm_backward(base + "norm1", dnormed->floats(), tape.input->floats(), tape.mean1, tape.rstd1, dx, n, true);
}

void Vision::mlp_backward(const std::string& base, int64_t n, const VisionBlockTape& tape, const float* dx, float* dnormed) {
  const VisionSpec& vision = model_.spec.vision;
  const int64_t M = vision.mlp_width;
  Buffer dactive = pool_.take(n * M);
  if (vision.is_qwen2_5()) {
    Buffer dup = pool_.take(n * 2 * M);
    linear_backward(base + "mlp.down_proj", dx, tape.active->floats(), dactive->floats(), n);
    model_.backend->swiglu_grad(tape.up->floats(), dactive->floats(), dup->floats(), n, M);
    return linear_backward(base + "mlp.gate_proj", dup->floats(), tape.normed2->floats(), dnormed, n);
  }
  linear_backward(base + "mlp.fc2", dx, tape.active->floats(), dactive->floats(), n);
  model_.backend->activate_grad(vision.activation, tape.up->floats(), dactive->floats(), dactive->floats(), n * M);
  linear_backward(base + "mlp.fc1", dactive->floats(), tape.normed2->floats(), dnormed, n);
}

void Vision::block_backward(int64_t index, const VisionLayout& layout, const VisionBlockTape& tape, float* dx) {
  const std::string base = block_name(index);
  const int64_t n = layout.n;
  Buffer dnormed = pool_.take(n * model_.spec.vision.width);
  mlp_backward(base, n, tape, dx, dnormed->floats());
  norm_backward(base + "norm2", dnormed->floats(), tape.middle->floats(), tape.mean2, tape.rstd2, dx, n, true);
  attention_backward(base, layout, segments_of(index, layout), tape, dx);
}

}  // namespace plumbline
