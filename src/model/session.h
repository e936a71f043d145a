#pragma once
// A set of sequences over one model: rows in, hidden states and logits out, with paged key/value caches; for training also the
// tape of all passes, the loss and the backward sweep. Called on the job thread only.
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model.h"
#include "reasoning_spec.h"

namespace plumbline {

enum class RowKind : uint8_t { token = 0, visual = 1, latent = 2, embedding = 3, stored = 4 };
constexpr size_t kRowKinds = 5;

// One pass: packed new rows of some sequences, in the order of `sequences`.
struct PassInput {
  std::vector<int32_t> sequences;   // [B] ids, each at most once
  std::vector<int32_t> cu_seqlens;  // [B+1]
  std::vector<uint8_t> kind;        // [T] RowKind
  std::vector<int32_t> index;       // [T] token id | row of the session's visual tokens | 0 (latent: final hidden state of the
                                    //     sequence's last row before this pass) | row of `embeddings` | stored row
  std::vector<int32_t> positions;   // [3, T]
  std::vector<float> embeddings;    // [n, D]
  std::vector<int32_t> logit_rows;  // packed rows of this pass whose logits are returned
  std::vector<int32_t> hidden_rows; // packed rows whose final hidden state (after the norm) is returned
  bool keep_layer_inputs = false;   // for read(); always kept while training
  std::vector<uint8_t> saliency;    // [B] or empty: 1 where the last row's attention to the sequence's pictures is wanted
  bool trace_routing = false;
  std::vector<ForcedRoute> forced_routes;  // each (layer, depth) at most once; those that are not named follow the rule
};

struct RoutingTrace {               // one extra pass of one layer; row numbers are packed rows of the pass
  int32_t layer, depth;
  std::vector<int32_t> candidates, routed;
  std::vector<float> scores, gates; // of the candidates
};

struct PassOutput {
  int32_t pass;                     // number of the pass, for loss targets and read()
  std::vector<float> logits;        // [logit_rows, V]
  std::vector<float> hidden;        // [hidden_rows, D]
  std::vector<RoutingTrace> routing;
};

// Pictures that a sequence looks at.
struct PictureSet {
  std::vector<int32_t> columns;         // [N] rows of the sequence that hold the image tokens
  std::vector<int32_t> visual_rows;     // [N] the visual rows that they are
  std::vector<int32_t> grids;           // [P, 2] merged rows, columns; they fill the N tokens in order
  std::vector<int32_t> sizes;           // [P, 2] height, width as the tower saw it
  std::vector<uint8_t> originals;       // RGB of what crops are cut from; may be empty when no target is wanted
  std::vector<int32_t> original_sizes;  // [P, 2], may be empty then
};

struct ReplayOutput {
  int32_t replay;                          // number of this replay, for the loss
  std::vector<int32_t> rows, first_row;    // [B] rows of each block, and its first stored row
  std::vector<int32_t> cu_selected, selected;
  std::vector<float> weights;
  std::vector<int32_t> windows, boxes;     // [B, 6] picture, row, column, height, width, count; [B, 4] pixels
  std::vector<float> sr_losses;            // [B], NaN where there is none
  std::vector<float> saliency;             // of all image tokens, when asked for
};

struct ReplayDetail {                      // for tests
  std::vector<float> block, b, f, u;
  std::vector<uint8_t> crop;
};

struct RoutingFigures {
  int64_t scored = 0, routed = 0;          // since the last reset or backward, over the routed layers: rows, and those of the first extra pass
  int64_t extra_rows = 0;                  // rows of all extra passes
  int64_t scores = 0;                      // of all passes, rows scored again counted again
  double squares = 0;                      // sum of their squares (training)
};

// Gradient dynamics of the last backward() (algorithms, section 7): L2 norms of the loss gradient with respect to each layer's input
// hidden state and, last, the final one before its norm. A row that several passes computed counts once, with the sum of its gradients.
struct GradientNorms {
  int64_t levels = 0;                      // layers + 1; 0: none
  std::vector<int32_t> rows;               // [B] of each sequence that had rows, in the order of add()
  std::vector<float> norms;                // [levels, sum of rows]
};

struct LossInput {
  std::vector<int32_t> pass, row, target;  // [R] which row of which pass predicts which token
  float scale;                             // gradient of the loss per row: 1 / number of targets of the whole optimiser step
  std::vector<int32_t> replay, index;      // [Q] sequence `index` of which replay
  std::vector<float> weight;               // [Q] weight of its super-resolution loss
};

struct LossOutput {
  std::vector<float> losses;     // [R] cross entropy
  std::vector<int32_t> argmax;   // [R]
};

struct SessionOptions {
  bool training = false;
  bool recompute = false;          // keep only layer inputs and compute the rest again in the backward pass
  bool detach_latents = false;     // latentGradient 'detached'
  bool vision_gradient = true;     // backpropagate into the vision tower
  bool profile = false;            // training: keep the gradient norms of every row
  ReplaySpec replay;
  RoutingSpec routing;
};

class Session {
 public:
  Session(std::shared_ptr<Model> model, const SessionOptions& options);
  ~Session();

  int32_t add();                       // new empty sequence
  bool has(int32_t sequence) const;
  int32_t fork(int32_t sequence);      // copy-on-write of the cache (not while training)
  void free(int32_t sequence);         // the last one takes kept passes and the visual rows with it
  int64_t length(int32_t sequence) const;

  // frames: uint8 RGB of all pictures one after another; sizes [n, 3] = frames, height, width. Returns the first new visual row.
  int32_t encode(const std::vector<uint8_t>& frames, const std::vector<int32_t>& sizes);
  PassOutput extend(PassInput input);
  void set_pictures(int32_t sequence, PictureSet pictures);
  // One replay step of sequences whose last pass collected saliency: appends their blocks to the stored rows.
  ReplayOutput replay(const std::vector<int32_t>& sequences, bool targets, bool saliency);
  // Appends last hidden states to the stored rows and returns the first of them.
  int32_t keep_latents(const std::vector<int32_t>& sequences);
  // Forgets rows, but not pictures, what was replayed and the last hidden state.
  void restart(const std::vector<int32_t>& sequences);
  LossOutput loss(const LossInput& input);
  // All passes and replays, last first; then tape, sequences and visual rows are gone. router_penalty: weight of the mean squared score.
  void backward(float router_penalty);
  // Drops the tape, all sequences and visual rows. dropout_key: of the adapters in what follows (training); 0: no dropout.
  void reset(uint64_t dropout_key = 0);

  // For tests and traces: what = "layer_input" (pass, layer) | "layer_qkv" (pass, layer: queries
  // and keys turned, values) | "hidden" (pass) | "embeds" (pass) | "visual" |
  // "visual_state" (picture call = pass, layer = 0 after patch embedding, k after block k) | "visual_grad". Returns [rows, width].
  std::vector<float> read(const std::string& what, int32_t pass, int32_t layer, int64_t* width);

  ReplayDetail read_replay(int32_t replay, int32_t index);
  const GradientNorms& gradient_norms() const;  // of the last backward(); needs options.profile
  RoutingFigures routing_figures() const;
  int64_t token_forwards() const;      // decoder rows since the session was made
  size_t bytes() const;                // caches, tape and workspace now held

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace plumbline
