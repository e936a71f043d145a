#pragma once
// A set of sequences over one model: rows in, hidden states and logits out, with paged key/value caches; for training also the
// tape of all passes, the loss and the backward sweep. Called on the job thread only.
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model.h"

namespace plumbline {

enum class RowKind : uint8_t { token = 0, visual = 1, latent = 2, embedding = 3 };

// One pass: packed new rows of some sequences, in the order of `sequences`.
struct PassInput {
  std::vector<int32_t> sequences;   // [B] ids, each at most once
  std::vector<int32_t> cu_seqlens;  // [B+1]
  std::vector<uint8_t> kind;        // [T] RowKind
  std::vector<int32_t> index;       // [T] token id | row of the session's visual tokens | 0 (latent: final hidden state of the
                                    //     sequence's last row before this pass) | row of `embeddings`
  std::vector<int32_t> positions;   // [3, T]
  std::vector<float> embeddings;    // [n, D]
  std::vector<int32_t> logit_rows;  // packed rows of this pass whose logits are returned
  std::vector<int32_t> hidden_rows; // packed rows whose final hidden state (after the norm) is returned
  bool keep_layer_inputs = false;   // for read(); always kept while training
};

struct PassOutput {
  int32_t pass;                     // number of the pass, for loss targets and read()
  std::vector<float> logits;        // [logit_rows, V]
  std::vector<float> hidden;        // [hidden_rows, D]
};

struct LossInput {
  std::vector<int32_t> pass, row, target;  // [R] which row of which pass predicts which token
  float scale;                             // gradient of the loss per row: 1 / number of targets of the whole optimiser step
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
  PassOutput extend(const PassInput& input);
  LossOutput loss(const LossInput& input);
  void backward();                     // all passes, last first; then tape, sequences and visual rows are gone
  void reset();                        // drop the tape, all sequences and visual rows

  // For tests and traces: what = "layer_input" (pass, layer) | "hidden" (pass) | "embeds" (pass) | "visual" |
  // "visual_state" (picture call = pass, layer = 0 after patch embedding, k after block k) | "visual_grad". Returns [rows, width].
  std::vector<float> read(const std::string& what, int32_t pass, int32_t layer, int64_t* width);

  int64_t token_forwards() const;      // decoder rows since the session was made
  size_t bytes() const;                // caches, tape and workspace now held

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace plumbline
