#pragma once
// Vision tower and merger, forward and backward (algorithms, section 1): patches -> linear -> blocks (norm, attention, 2-D rotary,
// MLP) -> norm, merge x merge neighbours side by side, linear, GELU, linear. Qwen2-VL: LayerNorm, attention within a frame, MLP.
// Qwen2.5-VL: RMSNorm, attention within windows in most blocks, SwiGLU; rows run window after window between embedding and merger.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "linear_layers.h"
#include "memory.h"
#include "model.h"
#include "vision_layout.h"

namespace plumbline {

struct VisionBlockTape {
  Buffer input, mean1, rstd1, normed1;  // [n, W], [n] (LayerNorm only), [n], [n, W]
  Buffer qkv, mixed, lse;               // [n, 3W] turned, [n, W], [n, H]
  Buffer middle, mean2, rstd2, normed2; // [n, W] after the attention's residual, ...
  Buffer up, active;                    // [n, M] ([n, 2M] gate and up) before and [n, M] after the activation
};

struct VisionTape {                  // one encode() call
  uint64_t dropout_key = 0;          // of the adapters; 0: none
  VisionLayout layout;
  Buffer rows;                       // [n, channels * temporal * patch^2], in the pictures' own order
  std::vector<VisionBlockTape> blocks;
  Buffer final, mean, rstd, normed;  // [n, W]
  Buffer hidden, active;             // [n / merge^2, W merge^2] before and after the GELU
  int64_t tokens = 0;
};

class Vision {
 public:
  Vision(Model& model, Pool& pool) : model_(model), pool_(pool), layers_(model, pool) {}

  int64_t patch_width() const;
  // frames: uint8 RGB pictures one after another; sizes [n, 3] = frames, height, width (multiples of patch * merge). Writes
  // [tokens, out_width]. keep: `tape` gets what backward needs; recompute: of each block its input only.
  Buffer forward(const std::vector<uint8_t>& frames, const std::vector<int32_t>& sizes, bool keep, bool recompute, VisionTape* tape);
  // The same for pictures cut out of others (replay targets), whose patch rows crop_patches makes. pixels, when not null: the resized crops.
  Buffer forward_crops(const std::vector<CropPatches>& crops, bool keep, bool recompute, std::vector<std::vector<uint8_t>>* pixels, VisionTape* tape);
  // dtokens [tokens, out_width]; adds to parameter gradients.
  void backward(VisionTape& tape, const float* dtokens);
  int64_t tokens_of(const std::vector<int32_t>& sizes) const;

 private:
  // sizes [n, 3]; fill(picture, rows) makes the patch rows of one picture.
  void prepare(const std::vector<int32_t>& sizes, const std::function<void(size_t, float*)>& fill, VisionTape* tape);
  Buffer run(bool keep, bool recompute, VisionTape* tape);
  // Rows of `width` values, one for each merged unit, from the pictures' order to the layout's, or back. Only where there are windows.
  void reorder(const VisionLayout& layout, const float* from, float* to, int64_t width, bool back);
  const Segments& segments_of(int64_t index, const VisionLayout& layout) const;
  void block_forward(int64_t index, const VisionLayout& layout, Buffer& x, VisionBlockTape& tape);
  void block_backward(int64_t index, const VisionLayout& layout, const VisionBlockTape& tape, float* dx);
  void attention_forward(const std::string& base, const VisionLayout& layout, const Segments& segments, const Buffer& x, VisionBlockTape& tape);
  void attention_backward(const std::string& base, const VisionLayout& layout, const Segments& segments, const VisionBlockTape& tape, float* dx);
  // x [n, W] receives what the MLP adds; dnormed [n, W] the gradient of its input.
  void mlp_forward(const std::string& base, int64_t n, VisionBlockTape& tape, float* x);
  void mlp_backward(const std::string& base, int64_t n, const VisionBlockTape& tape, const float* dx, float* dnormed);
  Buffer merger_backward(const VisionTape& tape, const float* dtokens);
  void norm(const std::string& name, const float* x, Buffer& y, Buffer& mean, Buffer& rstd, int64_t n);
  void norm_backward(const std::string& name, const float* dy, const float* x, const Buffer& mean, const Buffer& rstd, float* dx, int64_t n, bool accumulate);
  void linear(const std::string& name, const float* x, float* y, int64_t rows, bool accumulate);
  // Adds the parameter gradients of a linear layer; writes dx when it is not null.
  void linear_backward(const std::string& name, const float* dy, const float* x, float* dx, int64_t rows);

  Model& model_;
  Pool& pool_;
  LinearLayers layers_;
  uint64_t dropout_key_ = 0;         // of the tape at hand
};

}  // namespace plumbline
