#pragma once
// The dimensions of a Qwen2-VL- or Qwen2.5-VL-shaped model, as lib/model/config.ts read them from config.json.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/backend.h"

namespace plumbline {

struct TextSpec {
  int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;
  float eps;
  double rope_theta;
  std::array<int32_t, 3> mrope_section;  // sums to head_dim / 2
  bool tied;
};

struct VisionSpec {
  int64_t depth, width, heads, mlp_width, out_width;
  Activation activation;
  int32_t channels, patch, merge, temporal;
  float eps = 1e-6f;  // fixed in the reference implementation, not read from the file
  std::array<float, 3> image_mean, image_std;
  // Qwen2.5-VL: side of the attention windows in merged units, and the blocks that attend over whole frames. 0: the tower of Qwen2-VL.
  int32_t window = 0;
  std::vector<int32_t> full_attention_blocks;

  int64_t unit() const { return int64_t{merge} * merge; }  // patches of a merged unit
  bool is_qwen2_5() const { return window > 0; }           // RMSNorm, SwiGLU and windows
};

// A parameter beside the backbone (routers, token super-resolution, step vectors): named, trained and saved like the others.
struct ExtraSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// A low-rank adapter on a linear layer of the backbone.
struct AdapterSpec {
  std::string target;  // name of the layer: that of its matrix without ".weight"
  int64_t rank;
  float scale;         // alpha / rank
  float dropout;       // of the adapter's input, in training
};

struct ModelSpec {
  TextSpec text;
  VisionSpec vision;
  DType dtype;  // of matrices; vectors (norm scales, biases) and extras are f32 always
  std::vector<ExtraSpec> extras;
  std::vector<AdapterSpec> adapters;
};

}  // namespace plumbline
