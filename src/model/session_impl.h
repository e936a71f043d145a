#pragma once
// State of a Session, shared by session.cpp (rows forward) and session_training.cpp (loss and backward sweep).
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache_set.h"
#include "decoder.h"
#include "router.h"
#include "session.h"
#include "vision.h"

namespace plumbline {

// What sets the dropout of a picture's encoding and of a replay target's apart from that of a pass.
constexpr uint64_t kEncodeSalt = uint64_t{1} << 40, kTargetSalt = uint64_t{1} << 41;
constexpr int64_t kLogitBytes = int64_t{64} << 20;  // logits of large vocabularies are computed in chunks of rows

struct LayerRecord {
  LayerTape ordinary;
  std::vector<RoutedTape> extra;
};

struct Pass {                            // what is kept of one extend()
  PassInput input;                       // kinds and indices of the rows, for their gradients
  PassRows rows;
  std::vector<LayerRecord> layers;       // training: all of it (or inputs and choices only); traced inference: inputs
  Buffer final, rstd, hidden;            // [T, D] before the final norm, [T], [T, D] after it
  Buffer dhidden;                        // [T, D] gradient of `hidden`: from the loss and from later latents; null = zero
  std::vector<int32_t> profile_rows;     // [T] rows of the profile, during backward()
  int64_t profile_first = 0;             // column of its first row among those of all passes
  std::shared_ptr<Saliency> saliency;    // of the sequences that asked for it
  // Per latent row: the pass and packed row whose hidden state it copied.
  struct Origin {
    int32_t row, pass, source_row;
  };
  std::vector<Origin> latents;
};

struct ReplayStep {                      // what is kept of one replay()
  std::vector<int32_t> cu_tokens, cu_pictures, grids, cu_selected;  // layout of the B sequences
  std::vector<int32_t> selected, visual_rows;                       // [K] and the visual rows of the selected
  std::vector<int32_t> cu_rows;          // [B+1] rows of the blocks
  int64_t first_row = 0;                 // the first of them among the stored rows
  std::vector<int32_t> blocks;           // [R] sequences that have a block: rows of the buffers below
  Buffer saliency, weight;               // [N], [K]
  Buffer b, active, f, u;                // [R, D] input of F, after its ReLU, its output, target (null: none)
  std::vector<float> sr_weight;          // [R] weight of each loss
  VisionTape target;                     // of u, where gradient flows into it
  std::vector<int32_t> cu_target;        // [R+1] tokens of each target
  std::vector<std::vector<uint8_t>> crops;  // [R] resized, for readReplay; empty unless saliency was asked for too
  struct Source {                        // where a sequence's saliency came from
    std::shared_ptr<Saliency> saliency;
    int32_t first, count;
  };
  std::vector<Source> sources;           // [B]
  ReplayLayout layout() const {
    return {static_cast<int32_t>(cu_tokens.size()) - 1, cu_tokens.data(), cu_pictures.data(), grids.data(), cu_selected.data()};
  }
};

struct KeptLatents {                     // what is kept of one keep_latents()
  int64_t first_row;
  std::vector<int32_t> pass, row;        // where each hidden state was computed
};

// Gradient norms on their way: one buffer for all passes and levels, fetched once.
struct Profile {
  std::vector<int32_t> rows;             // [B] of each sequence
  int64_t count = 0;                     // rows in all
  int64_t columns = 0;                   // rows of all passes, those computed again counted again
  Buffer norms;                          // [levels, columns], or [levels, count] of the sums
  Buffer sums;                           // [levels, count, D] gradients, where passes compute rows again; else null
};

// What happened, in order: backward goes through it from the end.
struct Event {
  enum Kind { pass, replay, latents } kind;
  size_t number;
};

struct SequenceState {
  int32_t cache = 0;                     // id in the caches; restart() takes a new one
  int32_t slot = 0;                      // row of last_hidden
  bool has_hidden = false;
  int32_t pass = -1, row = -1;           // where that hidden state was computed
  std::shared_ptr<const PictureSet> pictures;
  std::vector<uint8_t> used;             // [N] 1 where replayed
  int32_t used_count = 0;
  std::shared_ptr<Saliency> saliency;    // of the last pass that asked for it, until a replay takes it
  int32_t segment = 0;                   // which of its segments
};

struct Session::Impl {
  Impl(std::shared_ptr<Model> model, const SessionOptions& options);

  // session.cpp
  int32_t register_sequence(SequenceState state);
  SequenceState& find(int32_t sequence, const char* op);
  void grow_last_hidden();
  void check_training() const;
  Buffer zeros(int64_t floats);
  void drop_sequences();
  void drop_tape();                      // passes, replays, pictures, sequences, visual and stored rows
  void append_rows(Buffer& store, int64_t& rows, int64_t& capacity, int64_t width, const float* from, int64_t count);

  // session_check.cpp
  void check(const PassInput& input);
  void check_rows(const PassInput& input) const;
  void check_saliency(const PassInput& input);

  // session_pass.cpp
  std::unique_ptr<Pass> prepare(PassInput input);
  void prepare_saliency(Pass& pass);
  Buffer embed(Pass& pass);
  void run_layers(Pass& pass, Buffer& x);
  void commit(Pass& pass);
  std::map<int64_t, std::vector<float>> router_scores(const Pass& pass);
  void commit_routing(const Pass& pass);
  void remember_last_rows(const Pass& pass);
  void read_rows(const Pass& pass, const std::vector<int32_t>& rows, bool as_logits, std::vector<float>* out);
  std::vector<RoutingTrace> routing_traces(const Pass& pass);
  Weight head() const;

  // session_replay.cpp
  void check_replay(const std::vector<int32_t>& sequences, bool targets);
  ReplayStep plan_replay(const std::vector<int32_t>& sequences, std::vector<uint8_t>* used);
  std::vector<int32_t> selected_of_rows(const ReplayStep& step) const;
  ReplayRows make_blocks(const ReplayStep& step, const std::vector<int32_t>& ids, std::vector<int32_t>* candidates);
  void super_resolve(ReplayStep& step);
  std::vector<CropPatches> crops(const ReplayStep& step, const std::vector<int32_t>& sequences, const std::vector<int32_t>& windows, std::vector<int32_t>* boxes);
  void encode_targets(ReplayStep& step, const std::vector<CropPatches>& crops, bool keep_crops);
  std::vector<float> super_resolution_losses(const ReplayStep& step);
  std::vector<int32_t> block_of_rows(const ReplayStep& step, std::vector<float>* inverse) const;
  void backward_replay(ReplayStep& step);
  void backward_super_resolution(ReplayStep& step, Buffer& dblock);
  void backward_target(ReplayStep& step, const Buffer& du);

  // session_training.cpp
  void check_loss(const LossInput& input) const;
  Buffer gather_hidden(const LossInput& input, size_t first, size_t count);
  void scatter_hidden_gradient(const LossInput& input, size_t first, size_t count, const float* drows);
  void backward_pass(Pass& pass, float penalty);
  void backward_embed(Pass& pass, const float* dx);
  void backward_hidden(int32_t pass, int32_t row, const float* dx, int32_t from_row);  // into the state that a latent copied

  // session_profile.cpp
  void start_profile();
  float* profile_norms(const Pass& pass, int64_t level);                 // where the norms of dx go; null: nowhere
  void profile_sum(const Pass& pass, int64_t level, const Buffer& dx);  // where rows are computed again
  void finish_profile();

  std::shared_ptr<Model> model;
  SessionOptions options;
  Pool pool;                             // outlives every buffer below
  CacheSet caches;
  Decoder decoder;
  Router router;
  Vision vision;
  std::unordered_map<int32_t, SequenceState> sequences;
  int32_t next_sequence = 0;
  std::vector<int32_t> free_slots;
  int32_t slots = 0;
  Buffer last_hidden;                    // [slots, D]
  int32_t last_hidden_capacity = 0;
  Buffer visual;                         // [visual_rows, D] image tokens as they enter the decoder
  Buffer visual_gradient;                // of the last backward()
  int64_t visual_rows = 0, visual_capacity = 0, visual_gradient_rows = 0;
  Buffer stored;                         // [stored_rows, D] replayed tokens and kept latents
  Buffer stored_gradient;                // during backward()
  int64_t stored_rows = 0, stored_capacity = 0;
  std::vector<std::pair<int64_t, VisionTape>> pictures;  // first visual row and tape of each encode()
  std::vector<std::unique_ptr<Pass>> passes;             // null where nothing is kept
  std::vector<std::unique_ptr<ReplayStep>> replays;      // training
  std::vector<KeptLatents> kept_latents;                 // training
  std::vector<Event> events;                             // training
  std::map<int64_t, std::vector<float>> collected_scores;  // per layer, of the tape; the model takes them when its backward pass is done
  RoutingFigures figures;
  std::unique_ptr<Profile> profile;      // during backward(), with options.profile
  GradientNorms gradient_norms;          // of the last backward()
  int64_t token_forwards = 0;
  uint64_t dropout_key = 0;              // of the adapters, until the next reset(); 0: none
};

}  // namespace plumbline
