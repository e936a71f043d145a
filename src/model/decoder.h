#pragma once
// The text decoder over the packed rows of one pass, forward and backward (algorithms, section 1).
#include <cstdint>
#include <string>
#include <vector>

#include "key_value_cache.h"
#include "model.h"

namespace plumbline {

// Host-side description of a pass's rows, shared by all its layers.
struct PassRows {
  std::vector<int32_t> sequences;    // [B]
  std::vector<int32_t> cu_seqlens;   // [B+1]
  std::vector<int32_t> first_row;    // [B] rows of the sequence before this pass
  std::vector<int32_t> kv_len;       // [B] rows of the sequence with this pass
  int64_t T = 0;
  Buffer cos, sin;                   // [T, d/2]
};

// What the backward pass of one layer needs. With recomputation only `input` is kept.
struct LayerTape {
  Buffer input;                      // [T, D]
  Buffer rstd1, normed1;             // [T], [T, D]
  Buffer qkv;                        // [T, (H + 2 Hkv) d], queries and keys turned
  Buffer mixed, lse;                 // [T, H d], [T, H]
  Buffer middle;                     // [T, D] after the attention's residual
  Buffer rstd2, normed2;             // [T], [T, D]
  Buffer gate_up, gated;             // [T, 2I], [T, I]
};

class Decoder {
 public:
  Decoder(Model& model, Pool& pool, KeyValueCache& cache);

  // x [T, D] is the layer's input and becomes its output. `tape` receives the intermediates (its input included).
  void forward(int64_t layer, const PassRows& rows, Buffer& x, LayerTape& tape);
  // dx [T, D]: gradient of the layer's output, becomes that of its input. Adds to parameter gradients and to the gradient
  // pages of the cached keys and values, whose rows of this pass must already hold what later passes sent.
  void backward(int64_t layer, const PassRows& rows, const LayerTape& tape, Buffer& dx);
  // Runs the layer again from tape.input, without touching the cache's contents (the same values are written).
  void recompute(int64_t layer, const PassRows& rows, LayerTape& tape);

 private:
  void attend(int64_t layer, const PassRows& rows, LayerTape& tape);
  void backward_mlp(const std::string& base, int64_t T, const LayerTape& tape, float* dx);
  void backward_attention(int64_t layer, const PassRows& rows, const LayerTape& tape, float* dx);
  AttentionShape shape(const PassRows& rows) const;

  Model& model_;
  Pool& pool_;
  KeyValueCache& cache_;
};

}  // namespace plumbline
