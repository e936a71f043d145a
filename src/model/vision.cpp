#include "vision.h"

#include "../core/error.h"

namespace plumbline {

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
  layout = vision_layout(vision, sizes);
  tape->tokens = tokens_of(sizes);
  tape->rows = pool_.take(layout.n * patch_width());
  int64_t row = 0;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    fill(i / 3, tape->rows->floats() + row * patch_width());
    row += tokens_of({sizes[i], sizes[i + 1], sizes[i + 2]}) * vision.unit();
  }
  std::vector<float> cos, sin;
  vision_rotary(vision, sizes, layout, &cos, &sin);
  layout.cos = pool_.take(static_cast<int64_t>(cos.size())), layout.sin = pool_.take(static_cast<int64_t>(sin.size()));
  model_.backend->upload(layout.cos->data(), cos.data(), cos.size() * sizeof(float));
  model_.backend->upload(layout.sin->data(), sin.data(), sin.size() * sizeof(float));
}

void Vision::linear(const std::string& name, const float* x, float* y, int64_t rows, bool accumulate) {
  layers_.forward(name, x, y, rows, accumulate, dropout_key_);
}

void Vision::linear_backward(const std::string& name, const float* dy, const float* x, float* dx, int64_t rows) {
  layers_.backward(name, dy, x, dx, rows, dropout_key_);
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

void Vision::reorder(const VisionLayout& layout, const float* from, float* to, int64_t width, bool back) {
  const int64_t units = static_cast<int64_t>(layout.unit_order.size());
  const int32_t* order = layout.unit_order.data();
  model_.backend->copy_rows(Weight{from, DType::f32, units, width}, back ? nullptr : order, to, back ? order : nullptr, units);
}

Buffer Vision::run(bool keep, bool recompute, VisionTape* tape) {
  const VisionSpec& vision = model_.spec.vision;
  Backend& backend = *model_.backend;
  const int64_t n = tape->layout.n, W = vision.width, unit = vision.unit();
  dropout_key_ = tape->dropout_key;
  Buffer x = pool_.take(n * W);
  backend.linear(tape->rows->floats(), model_.parameters.weight("visual.patch_embed.proj.weight"), nullptr, x->floats(), n, false);
  if (!keep) tape->rows.reset();
  if (vision.is_qwen2_5()) {
    Buffer windowed = pool_.take(n * W);
    reorder(tape->layout, x->floats(), windowed->floats(), unit * W, false);
    x = std::move(windowed);
  }
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
  if (!vision.is_qwen2_5()) return tokens;
  Buffer ordered = pool_.take(tape->tokens * vision.out_width);
  reorder(tape->layout, tokens->floats(), ordered->floats(), vision.out_width, true);
  return ordered;
}

Buffer Vision::merger_backward(const VisionTape& tape, const float* dtokens) {
  const VisionSpec& vision = model_.spec.vision;
  const int64_t n = tape.layout.n, W = vision.width, units = n / vision.unit();
  Buffer dactive = pool_.take(n * W), dnormed = pool_.take(n * W), dx = pool_.take(n * W);
  Buffer windowed;
  if (vision.is_qwen2_5()) {
    windowed = pool_.take(units * vision.out_width);
    reorder(tape.layout, dtokens, windowed->floats(), vision.out_width, false);
    dtokens = windowed->floats();
  }
  linear_backward("visual.merger.mlp.2", dtokens, tape.active->floats(), dactive->floats(), units);
  model_.backend->activate_grad(Activation::erf_gelu, tape.hidden->floats(), dactive->floats(), dactive->floats(), n * W);
  linear_backward("visual.merger.mlp.0", dactive->floats(), tape.normed->floats(), dnormed->floats(), units);
  norm_backward("visual.merger.ln_q", dnormed->floats(), tape.final->floats(), tape.mean, tape.rstd, dx->floats(), n, false);
  return dx;
}

void Vision::backward(VisionTape& tape, const float* dtokens) {
  const VisionSpec& vision = model_.spec.vision;
  dropout_key_ = tape.dropout_key;
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
  float* g = model_.parameters.gradient("visual.patch_embed.proj.weight");
  if (!g) return;
  if (vision.is_qwen2_5()) {
    Buffer ordered = pool_.take(tape.layout.n * vision.width);
    reorder(tape.layout, dx->floats(), ordered->floats(), vision.unit() * vision.width, true);
    dx = std::move(ordered);
  }
  model_.backend->linear_grad_weight(dx->floats(), tape.rows->floats(), g, nullptr, tape.layout.n, vision.width, patch_width());
}

}  // namespace plumbline
