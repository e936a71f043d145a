#include "vision.h"

#include <cmath>

#include "../core/error.h"
#include "rotary_table.h"

namespace plumbline {
namespace {

constexpr int32_t kPageRows = 64;  // the attention reads the strided qkv buffer in tiles of this many keys

// The attention's view of a contiguous [n, 3, heads, d] buffer: one page per kPageRows patches of a frame.
struct StridedPages {
  std::vector<float*> k, v;
  std::vector<int32_t> start{0};

  StridedPages(const VisionLayout& layout, float* qkv, int64_t width) {
    for (size_t f = 0; f < layout.frame_patches.size(); ++f) {
      for (int64_t row = layout.cu_patches[f]; row < layout.cu_patches[f + 1]; row += kPageRows) {
        k.push_back(qkv + row * 3 * width + width);
        v.push_back(qkv + row * 3 * width + 2 * width);
      }
      start.push_back(static_cast<int32_t>(k.size()));
    }
  }
};

AttentionShape attention_shape(const VisionSpec& vision, const VisionLayout& layout) {
  AttentionShape s{};
  s.B = static_cast<int32_t>(layout.frame_patches.size());
  s.cu_q_B1 = layout.cu_patches.data();
  s.kv_len_B = layout.frame_patches.data();
  s.H = s.Hkv = static_cast<int32_t>(vision.heads);
  s.d = static_cast<int32_t>(vision.width / vision.heads);
  s.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.d)));
  s.causal = false;
  s.q_row_stride = 3 * vision.width;
  return s;
}

std::string block_name(int64_t index) { return "visual.blocks." + std::to_string(index) + "."; }

}  // namespace

int64_t Vision::patch_width() const {
  const VisionSpec& vision = model_.spec.vision;
  return int64_t{vision.channels} * vision.temporal * vision.patch * vision.patch;
}

int64_t Vision::tokens_of(const std::vector<int32_t>& sizes) const {
  const VisionSpec& vision = model_.spec.vision;
  int64_t tokens = 0;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    const int64_t frames = (sizes[i] + vision.temporal - 1) / vision.temporal, side = int64_t{vision.patch} * vision.merge;
    tokens += frames * (sizes[i + 1] / side) * (sizes[i + 2] / side);
  }
  return tokens;
}

void Vision::prepare(const std::vector<int32_t>& sizes, const std::function<void(size_t, float*)>& fill, VisionTape* tape) {
  const VisionSpec& vision = model_.spec.vision;
  VisionLayout& layout = tape->layout;
  const int64_t head_dim = vision.width / vision.heads, half = head_dim / 2, side = int64_t{vision.patch} * vision.merge;
  layout.cu_patches.assign(1, 0);
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    const int64_t count = sizes[i], height = sizes[i + 1], width = sizes[i + 2];
    require(count > 0 && height > 0 && width > 0 && height % side == 0 && width % side == 0, "ERR_SHAPE",
            "[encode] Expected picture sizes to be positive multiples of " + std::to_string(side) + " but received " + std::to_string(height) + " x " +
                std::to_string(width) + " with " + std::to_string(count) + " frames");
    for (int64_t frame = 0; frame < (count + vision.temporal - 1) / vision.temporal; ++frame) {
      layout.frame_patches.push_back(static_cast<int32_t>(height / vision.patch * (width / vision.patch)));
      layout.n += layout.frame_patches.back();
      layout.cu_patches.push_back(static_cast<int32_t>(layout.n));
    }
  }
  tape->tokens = tokens_of(sizes);
  tape->rows = pool_.take(layout.n * patch_width());
  layout.cos = pool_.take(layout.n * half), layout.sin = pool_.take(layout.n * half);
  std::vector<float> cos(static_cast<size_t>(layout.n * half)), sin(cos.size());
  int64_t row = 0;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    fill(i / 3, tape->rows->floats() + row * patch_width());
    const int64_t t = (sizes[i] + vision.temporal - 1) / vision.temporal, h = sizes[i + 1] / vision.patch, w = sizes[i + 2] / vision.patch;
    vision_rotary_table(t, h, w, vision.merge, head_dim, cos.data() + row * half, sin.data() + row * half);
    row += t * h * w;
  }
  model_.backend->upload(layout.cos->data(), cos.data(), cos.size() * sizeof(float));
  model_.backend->upload(layout.sin->data(), sin.data(), sin.size() * sizeof(float));
}

void Vision::norm(const std::string& name, const float* x, Buffer& y, Buffer& mean, Buffer& rstd, int64_t n) {
  const VisionSpec& vision = model_.spec.vision;
  const Parameters& p = model_.parameters;
  y = pool_.take(n * vision.width), mean = pool_.take(n), rstd = pool_.take(n);
  model_.backend->layer_norm(x, p.vector(name + ".weight"), p.vector(name + ".bias"), vision.eps, y->floats(), mean->floats(), rstd->floats(), n, vision.width);
}

void Vision::norm_backward(const std::string& name, const float* dy, const float* x, const Buffer& mean, const Buffer& rstd, float* dx, int64_t n, bool accumulate) {
  Parameters& p = model_.parameters;
  model_.backend->layer_norm_grad(dy, x, p.vector(name + ".weight"), mean->floats(), rstd->floats(), dx, p.gradient(name + ".weight"), p.gradient(name + ".bias"), n,
                                  model_.spec.vision.width, accumulate);
}

void Vision::linear(const std::string& name, const float* x, float* y, int64_t rows, bool accumulate) {
  const Parameters& p = model_.parameters;
  model_.backend->linear(x, p.weight(name + ".weight"), p.vector(name + ".bias"), y, rows, accumulate);
}

void Vision::linear_backward(const std::string& name, const float* dy, const float* x, float* dx, int64_t rows) {
  Parameters& p = model_.parameters;
  const Weight w = p.weight(name + ".weight");
  const auto g = p.linear_gradient(name + ".weight", name + ".bias");
  if (g.weight) model_.backend->linear_grad_weight(dy, x, g.weight, g.bias, rows, w.rows, w.cols);
  if (dx) model_.backend->linear_grad_input(dy, w, dx, rows, false);
}

void Vision::block_forward(int64_t index, const VisionLayout& layout, Buffer& x, VisionBlockTape& tape) {
  const VisionSpec& vision = model_.spec.vision;
  Backend& backend = *model_.backend;
  const std::string base = block_name(index);
  const int64_t n = layout.n, W = vision.width, M = vision.mlp_width;
  const AttentionShape s = attention_shape(vision, layout);

  norm(base + "norm1", x->floats(), tape.normed1, tape.mean1, tape.rstd1, n);
  tape.qkv = pool_.take(n * 3 * W);
  linear(base + "attn.qkv", tape.normed1->floats(), tape.qkv->floats(), n, false);
  backend.rotary(tape.qkv->floats(), 3 * W, 2 * s.H, s.d, layout.cos->floats(), layout.sin->floats(), n, false);  // q and k
  const StridedPages strided(layout, tape.qkv->floats(), W);
  const KeyValuePages pages{strided.k.data(), strided.v.data(), strided.start.data(), s.d, 3 * W, kPageRows};
  tape.mixed = pool_.take(n * W), tape.lse = pool_.take(n * vision.heads);
  backend.attention(s, tape.qkv->floats(), pages, tape.mixed->floats(), tape.lse->floats());
  tape.middle = pool_.take(n * W);
  backend.copy(tape.middle->data(), x->data(), static_cast<size_t>(n * W) * sizeof(float));
  linear(base + "attn.proj", tape.mixed->floats(), tape.middle->floats(), n, true);
  tape.input = std::move(x);

  norm(base + "norm2", tape.middle->floats(), tape.normed2, tape.mean2, tape.rstd2, n);
  tape.up = pool_.take(n * M), tape.active = pool_.take(n * M);
  linear(base + "mlp.fc1", tape.normed2->floats(), tape.up->floats(), n, false);
  backend.activate(vision.activation, tape.up->floats(), tape.active->floats(), n * M);
  x = pool_.take(n * W);
  backend.copy(x->data(), tape.middle->data(), static_cast<size_t>(n * W) * sizeof(float));
  linear(base + "mlp.fc2", tape.active->floats(), x->floats(), n, true);
}

Buffer Vision::forward(const std::vector<uint8_t>& frames, const std::vector<int32_t>& sizes, bool keep, bool recompute, VisionTape* tape) {
  const VisionSpec& vision = model_.spec.vision;
  std::vector<size_t> start{0};
  for (size_t i = 0; i + 2 < sizes.size(); i += 3)
    start.push_back(start.back() + static_cast<size_t>(sizes[i]) * static_cast<size_t>(sizes[i + 1]) * static_cast<size_t>(sizes[i + 2]) * 3);
  require(start.back() == frames.size(), "ERR_SHAPE",
          "[encode] Expected frames to hold " + std::to_string(start.back()) + " bytes (RGB of all sizes) but received " + std::to_string(frames.size()));
  prepare(sizes, [&](size_t picture, float* rows) {
    const int32_t* size = sizes.data() + 3 * picture;
    model_.backend->patch_rows(frames.data() + start[picture], size[0], size[1], size[2], vision.patch, vision.merge, vision.temporal, vision.image_mean.data(),
                               vision.image_std.data(), rows);
  }, tape);
  return run(keep, recompute, tape);
}

Buffer Vision::forward_crops(const std::vector<CropPatches>& crops, bool keep, bool recompute, std::vector<std::vector<uint8_t>>* pixels, VisionTape* tape) {
  const VisionSpec& vision = model_.spec.vision;
  std::vector<int32_t> sizes;
  for (const CropPatches& crop : crops) sizes.insert(sizes.end(), {1, crop.to_height, crop.to_width});
  if (pixels) pixels->resize(crops.size());
  prepare(sizes, [&](size_t picture, float* rows) {
    CropPatches crop = crops[picture];
    crop.patch = vision.patch, crop.merge = vision.merge, crop.temporal = vision.temporal;
    crop.mean_3 = vision.image_mean.data(), crop.std_3 = vision.image_std.data();
    uint8_t* resized = nullptr;
    if (pixels) {
      (*pixels)[picture].resize(static_cast<size_t>(crop.to_height) * static_cast<size_t>(crop.to_width) * 3);
      resized = (*pixels)[picture].data();
    }
    model_.backend->crop_patches(crop, rows, resized);
  }, tape);
  return run(keep, recompute, tape);
}

Buffer Vision::run(bool keep, bool recompute, VisionTape* tape) {
  const VisionSpec& vision = model_.spec.vision;
  Backend& backend = *model_.backend;
  const int64_t n = tape->layout.n, W = vision.width, unit = int64_t{vision.merge} * vision.merge;
  Buffer x = pool_.take(n * W);
  backend.linear(tape->rows->floats(), model_.parameters.weight("visual.patch_embed.proj.weight"), nullptr, x->floats(), n, false);
  if (!keep) tape->rows.reset();
  for (int64_t i = 0; i < vision.depth; ++i) {
    VisionBlockTape block;
    block_forward(i, tape->layout, x, block);
    if (!keep) continue;
    if (recompute) {
      VisionBlockTape slim;
      slim.input = std::move(block.input);
      block = std::move(slim);
    }
    tape->blocks.push_back(std::move(block));
  }
  norm("visual.merger.ln_q", x->floats(), tape->normed, tape->mean, tape->rstd, n);
  tape->final = std::move(x);
  tape->hidden = pool_.take(n * W), tape->active = pool_.take(n * W);
  linear("visual.merger.mlp.0", tape->normed->floats(), tape->hidden->floats(), n / unit, false);
  backend.activate(Activation::erf_gelu, tape->hidden->floats(), tape->active->floats(), n * W);
  Buffer tokens = pool_.take(tape->tokens * vision.out_width);
  linear("visual.merger.mlp.2", tape->active->floats(), tokens->floats(), n / unit, false);
  return tokens;
}

void Vision::attention_backward(const std::string& base, const VisionLayout& layout, const VisionBlockTape& tape, float* dx) {
  const VisionSpec& vision = model_.spec.vision;
  Backend& backend = *model_.backend;
  const int64_t n = layout.n, W = vision.width;
  const AttentionShape s = attention_shape(vision, layout);
  Buffer dmixed = pool_.take(n * W), dqkv = pool_.take(n * 3 * W), dnormed = pool_.take(n * W);
  linear_backward(base + "attn.proj", dx, tape.mixed->floats(), dmixed->floats(), n);
  backend.fill(dqkv->floats(), 0.0f, n * 3 * W);  // keys and values are added to
  const StridedPages strided(layout, tape.qkv->floats(), W), gradient(layout, dqkv->floats(), W);
  const KeyValuePages pages{strided.k.data(), strided.v.data(), strided.start.data(), s.d, 3 * W, kPageRows};
  backend.attention_grad(s, tape.qkv->floats(), pages, tape.mixed->floats(), tape.lse->floats(), dmixed->floats(), dqkv->floats(), gradient.k.data(), gradient.v.data());
  backend.rotary(dqkv->floats(), 3 * W, 2 * s.H, s.d, layout.cos->floats(), layout.sin->floats(), n, true);
  linear_backward(base + "attn.qkv", dqkv->floats(), tape.normed1->floats(), dnormed->floats(), n);
  norm_backward(base + "norm1", dnormed->floats(), tape.input->floats(), tape.mean1, tape.rstd1, dx, n, true);
}

void Vision::block_backward(int64_t index, const VisionLayout& layout, const VisionBlockTape& tape, float* dx) {
  const VisionSpec& vision = model_.spec.vision;
  const std::string base = block_name(index);
  const int64_t n = layout.n;
  Buffer dactive = pool_.take(n * vision.mlp_width), dnormed = pool_.take(n * vision.width);
  linear_backward(base + "mlp.fc2", dx, tape.active->floats(), dactive->floats(), n);
  model_.backend->activate_grad(vision.activation, tape.up->floats(), dactive->floats(), dactive->floats(), n * vision.mlp_width);
  linear_backward(base + "mlp.fc1", dactive->floats(), tape.normed2->floats(), dnormed->floats(), n);
  norm_backward(base + "norm2", dnormed->floats(), tape.middle->floats(), tape.mean2, tape.rstd2, dx, n, true);
  attention_backward(base, layout, tape, dx);
}

Buffer Vision::merger_backward(const VisionTape& tape, const float* dtokens) {
  const VisionSpec& vision = model_.spec.vision;
  const int64_t n = tape.layout.n, W = vision.width, units = n / (int64_t{vision.merge} * vision.merge);
  Buffer dactive = pool_.take(n * W), dnormed = pool_.take(n * W), dx = pool_.take(n * W);
  linear_backward("visual.merger.mlp.2", dtokens, tape.active->floats(), dactive->floats(), units);
  model_.backend->activate_grad(Activation::erf_gelu, tape.hidden->floats(), dactive->floats(), dactive->floats(), n * W);
  linear_backward("visual.merger.mlp.0", dactive->floats(), tape.normed->floats(), dnormed->floats(), units);
  norm_backward("visual.merger.ln_q", dnormed->floats(), tape.final->floats(), tape.mean, tape.rstd, dx->floats(), n, false);
  return dx;
}

void Vision::backward(VisionTape& tape, const float* dtokens) {
  const VisionSpec& vision = model_.spec.vision;
  Buffer dx = merger_backward(tape, dtokens);
  for (int64_t i = vision.depth - 1; i >= 0; --i) {
    VisionBlockTape& block = tape.blocks[static_cast<size_t>(i)];
    if (!block.qkv) {  // recomputation: only the input was kept
      Buffer x = std::move(block.input);
      block_forward(i, tape.layout, x, block);
    }
    block_backward(i, tape.layout, block, dx->floats());
    block = VisionBlockTape{};
  }
  if (float* g = model_.parameters.gradient("visual.patch_embed.proj.weight"))
    model_.backend->linear_grad_weight(dx->floats(), tape.rows->floats(), g, nullptr, tape.layout.n, vision.width, patch_width());
}

}  // namespace plumbline
