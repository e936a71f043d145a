#pragma once
// The text decoder over the packed rows of one pass, forward and backward (algorithms, section 1).
#include <cstdint>
#include <string>
#include <vector>

#include "key_value_cache.h"
#include "linear_layers.h"
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
  uint64_t dropout_key = 0;          // of the adapters; 0: none
};

// Attention that the last rows of a pass pay to their sequences' image tokens, averaged over the layers and heads of the ordinary
// passes. Collected while the layers run; the replay weights send `gradient` back through it.
struct Saliency {
  std::vector<int32_t> cu_columns;   // [B+1]
  std::vector<int32_t> columns;      // [N] rows of the sequence
  Buffer last_q;                     // [L, B, H d] while the layers run
  std::vector<const float*> lse;     // [L] of [T, H], while the layers run
  std::vector<Buffer> own_lse;       // those that no tape keeps
  Buffer scores;                     // [N]
  Buffer gradient;                   // [N], null while nothing came back
  SaliencyColumns view() const { return {cu_columns.data(), columns.data()}; }
};

// Which weights, and which keys and values, a set of rows meets.
struct LayerSite {
  int64_t layer;
  KeyValueCache* cache;
  int64_t cache_layer;
  Saliency* saliency = nullptr;      // ordinary passes whose attention is looked at
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
  Decoder(Model& model, Pool& pool) : model_(model), pool_(pool), layers_(model, pool) {}

  // x [T, D] is the layer's input and becomes its output. `tape` receives the intermediates (its input included).
  void forward(const LayerSite& site, const PassRows& rows, Buffer& x, LayerTape& tape);
  // The same from a tape that holds the first norm already.
  void forward_normed(const LayerSite& site, const PassRows& rows, Buffer& x, LayerTape& tape);
  // dx [T, D]: gradient of the layer's output, becomes that of its input. Adds to parameter gradients and to the gradient
  // pages of the cached keys and values, whose rows of this pass must already hold what later passes sent. dx_norm (may be null):
  // L2 norms of the rows of dx as they come out.
  void backward(const LayerSite& site, const PassRows& rows, const LayerTape& tape, Buffer& dx, float* dx_norm_T = nullptr);
  // All layers at once, after the last one; gives back what was kept for it.
  void saliency(KeyValueCache& cache, const PassRows& rows, Saliency& saliency);

 private:
  void attend(const LayerSite& site, const PassRows& rows, LayerTape& tape);
  void backward_mlp(const std::string& base, const PassRows& rows, const LayerTape& tape, float* dx);
  void backward_attention(const LayerSite& site, const PassRows& rows, const LayerTape& tape, float* dx, float* dx_norm_T);
  AttentionShape shape(const PassRows& rows) const;
  float saliency_scale() const;

  Model& model_;
  Pool& pool_;
  LinearLayers layers_;
};

std::string layer_name(int64_t layer);  // "model.layers.N."

}  // namespace plumbline
