#pragma once
// State of a Session, shared by session.cpp (rows forward) and session_training.cpp (loss and backward sweep).
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "decoder.h"
#include "session.h"
#include "vision.h"

namespace plumbline {

constexpr int64_t kLogitBytes = int64_t{64} << 20;  // logits of large vocabularies are computed in chunks of rows

struct Pass {                            // what is kept of one extend()
  PassInput input;                       // kinds and indices of the rows, for their gradients
  PassRows rows;
  std::vector<LayerTape> layers;         // training: all of it (or inputs only); traced inference: inputs
  Buffer final, rstd, hidden;            // [T, D] before the final norm, [T], [T, D] after it
  Buffer dhidden;                        // [T, D] gradient of `hidden`: from the loss and from later latents; null = zero
  // Per latent row: the pass and packed row whose hidden state it copied.
  struct Origin {
    int32_t row, pass, source_row;
  };
  std::vector<Origin> latents;
};

struct SequenceState {
  int32_t slot = 0;                      // row of last_hidden
  bool has_hidden = false;
  int32_t pass = -1, row = -1;           // where that hidden state was computed
};

struct Session::Impl {
  Impl(std::shared_ptr<Model> model, const SessionOptions& options);

  // session.cpp
  int32_t register_sequence(int32_t sequence, SequenceState state);
  const SequenceState& find(int32_t sequence, const char* op) const;
  void grow_last_hidden();
  void check(const PassInput& input) const;
  void check_rows(const PassInput& input) const;
  std::unique_ptr<Pass> prepare(PassInput input);
  void check_training() const;
  Buffer embed(Pass& pass);
  void run_layers(Pass& pass, Buffer& x);
  void remember_last_rows(const Pass& pass);
  void read_rows(const Pass& pass, const std::vector<int32_t>& rows, bool as_logits, std::vector<float>* out);
  Weight head() const;
  Buffer zeros(int64_t floats);
  void drop_sequences();
  void drop_tape();                      // passes, pictures, sequences and visual rows

  // session_training.cpp
  void check_loss(const LossInput& input) const;
  Buffer gather_hidden(const LossInput& input, size_t first, size_t count);
  void scatter_hidden_gradient(const LossInput& input, size_t first, size_t count, const float* drows);
  void backward_pass(int32_t number, Buffer& visual_gradient);
  void backward_embed(Pass& pass, const float* dx, float* visual_gradient);

  std::shared_ptr<Model> model;
  SessionOptions options;
  Pool pool;                             // outlives every buffer below
  KeyValueCache cache;
  Decoder decoder;
  Vision vision;
  std::unordered_map<int32_t, SequenceState> sequences;
  std::vector<int32_t> free_slots;
  int32_t slots = 0;
  Buffer last_hidden;                    // [slots, D]
  int32_t last_hidden_capacity = 0;
  Buffer visual;                         // [visual_rows, D] image tokens as they enter the decoder
  Buffer visual_gradient;                // of the last backward()
  int64_t visual_rows = 0, visual_capacity = 0, visual_gradient_rows = 0;
  std::vector<std::pair<int64_t, VisionTape>> pictures;  // first visual row and tape of each encode()
  std::vector<std::unique_ptr<Pass>> passes;             // null where nothing is kept
  int64_t token_forwards = 0;
};

}  // namespace plumbline
