#pragma once
// Vision tower and merger of Qwen2-VL, forward and backward (algorithms, section 1): patches -> linear -> blocks (LayerNorm,
// full attention within a frame, 2-D rotary, MLP) -> LayerNorm, merge x merge neighbours side by side, linear, GELU, linear.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "memory.h"
#include "model.h"

namespace plumbline {

struct VisionLayout {                // host-side description of the pictures of one call
  std::vector<int32_t> cu_patches;   // [F+1] patch rows of each frame
  std::vector<int32_t> frame_patches;// [F]
  int64_t n = 0;                     // patches in all
  Buffer cos, sin;                   // [n, d/2]
};

struct VisionBlockTape {
  Buffer input, mean1, rstd1, normed1;  // [n, W], [n], [n], [n, W]
  Buffer qkv, mixed, lse;               // [n, 3W] turned, [n, W], [n, H]
  Buffer middle, mean2, rstd2, normed2; // [n, W] after the attention's residual, ...
  Buffer up, active;                    // [n, M] before and after the activation
};

struct VisionTape {                  // one encode() call
  VisionLayout layout;
  Buffer rows;                       // [n, channels * temporal * patch^2]
  std::vector<VisionBlockTape> blocks;
  Buffer final, mean, rstd, normed;  // [n, W]
  Buffer hidden, active;             // [n / merge^2, W merge^2] before and after the GELU
  int64_t tokens = 0;
};

class Vision {
 public:
  Vision(Model& model, Pool& pool) : model_(model), pool_(pool) {}

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
  void block_forward(int64_t index, const VisionLayout& layout, Buffer& x, VisionBlockTape& tape);
  void block_backward(int64_t index, const VisionLayout& layout, const VisionBlockTape& tape, float* dx);
  void attention_backward(const std::string& base, const VisionLayout& layout, const VisionBlockTape& tape, float* dx);
  Buffer merger_backward(const VisionTape& tape, const float* dtokens);
  void norm(const std::string& name, const float* x, Buffer& y, Buffer& mean, Buffer& rstd, int64_t n);
  void norm_backward(const std::string& name, const float* dy, const float* x, const Buffer& mean, const Buffer& rstd, float* dx, int64_t n, bool accumulate);
  void linear(const std::string& name, const float* x, float* y, int64_t rows, bool accumulate);
  // Adds the parameter gradients of a linear layer; writes dx when it is not null.
  void linear_backward(const std::string& name, const float* dy, const float* x, float* dx, int64_t rows);

  Model& model_;
  Pool& pool_;
};

}  // namespace plumbline
