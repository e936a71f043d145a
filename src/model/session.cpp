#include <algorithm>

#include "../core/error.h"
#include "../core/mix.h"
#include "extras.h"
#include "session_impl.h"

namespace plumbline {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

}  // namespace

Session::Impl::Impl(std::shared_ptr<Model> m, const SessionOptions& o)
    : model(std::move(m)), options(o), pool(*model->backend), caches(*model->backend, model->spec.text, o.routing, o.training), decoder(*model, pool),
      router(*model, pool, decoder, caches, options.routing), vision(*model, pool) {
  const int64_t D = model->spec.text.hidden;
  require(options.training || !options.profile, "ERR_ARGUMENT", "[Session] Expected profile only with training: gradients are what it measures");
  for (const char* name : {"token_sr.0.", "token_sr.2."}) {
    if (!options.replay.uses_token_sr()) break;
    expect_extra(model->parameters, "Session", std::string(name) + "weight", {D, D});
    expect_extra(model->parameters, "Session", std::string(name) + "bias", {D});
  }
}

// Here and not in the constructor, which runs on another thread than enable_training.
void Session::Impl::check_training() const {
  require(!options.training || model->parameters.training(), "ERR_ARGUMENT", "[Session] Expected the model's training to be enabled before a training session is used");
  require(!options.training || model->adapters.merged() == 0, "ERR_ARGUMENT", "[Session] Expected an adapter that is not merged into the weights, because it is trained; call unmergeAdapter first, or load the model again");
}

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options) : impl_(std::make_unique<Impl>(std::move(model), options)) {}
Session::~Session() = default;

Buffer Session::Impl::zeros(int64_t floats) {
  Buffer buffer = pool.take(floats);
  model->backend->fill(buffer->floats(), 0.0f, floats);
  return buffer;
}

int32_t Session::Impl::register_sequence(SequenceState state) {
  if (free_slots.empty()) free_slots.push_back(slots++);
  state.slot = free_slots.back();
  free_slots.pop_back();
  sequences.emplace(next_sequence, std::move(state));
  return next_sequence++;
}

SequenceState& Session::Impl::find(int32_t sequence, const char* op) {
  const auto found = sequences.find(sequence);
  require(found != sequences.end(), "ERR_ARGUMENT", std::string("[") + op + "] Expected a live sequence of this session but received id " + text(sequence));
  return found->second;
}

void Session::Impl::grow_last_hidden() {
  if (slots <= last_hidden_capacity) return;
  const int64_t D = model->spec.text.hidden;
  const int32_t capacity = std::max(slots, 2 * last_hidden_capacity);
  Buffer grown = pool.take(capacity * D);
  if (last_hidden) model->backend->copy(grown->data(), last_hidden->data(), static_cast<size_t>(last_hidden_capacity * D) * sizeof(float));
  last_hidden = std::move(grown), last_hidden_capacity = capacity;
}

int32_t Session::add() {
  SequenceState state;
  state.cache = impl_->caches.add();
  return impl_->register_sequence(std::move(state));
}

int32_t Session::fork(int32_t sequence) {
  Impl& s = *impl_;
  require(!s.options.training, "ERR_UNSUPPORTED", "[fork] Expected a session that does not train: a tape cannot be shared");
  SequenceState state = s.find(sequence, "fork");
  const int32_t from_slot = state.slot;
  state.cache = s.caches.fork(state.cache);
  const bool has_hidden = state.has_hidden;
  const int32_t copy = s.register_sequence(std::move(state));
  if (has_hidden) {
    s.grow_last_hidden();
    const int64_t D = s.model->spec.text.hidden, slot = s.sequences.at(copy).slot;
    s.model->backend->copy(s.last_hidden->floats() + slot * D, s.last_hidden->floats() + from_slot * D, static_cast<size_t>(D) * sizeof(float));
  }
  return copy;
}

void Session::free(int32_t sequence) {
  Impl& s = *impl_;
  const SequenceState& state = s.find(sequence, "free");
  require(!s.options.training || s.events.empty(), "ERR_UNSUPPORTED", "[free] Expected no tape: backward() or reset() frees the sequences of a training session");
  s.free_slots.push_back(state.slot);
  s.caches.free(state.cache);
  s.sequences.erase(sequence);
  if (s.sequences.empty()) s.drop_tape();
}

bool Session::has(int32_t sequence) const { return impl_->sequences.count(sequence) != 0; }

int64_t Session::length(int32_t sequence) const { return impl_->caches.keys_values.length(impl_->find(sequence, "length").cache); }

void Session::restart(const std::vector<int32_t>& sequences) {
  Impl& s = *impl_;
  for (int32_t id : sequences) s.find(id, "restart");
  for (int32_t id : sequences) {
    SequenceState& state = s.sequences.at(id);
    const int32_t before = state.cache;
    state.cache = s.caches.add();
    if (!s.options.training) s.caches.free(before);  // a tape still needs the keys and values of the passes before
  }
}

int64_t Session::token_forwards() const { return impl_->token_forwards; }
RoutingFigures Session::routing_figures() const { return impl_->figures; }

size_t Session::bytes() const {
  size_t sum = impl_->pool.bytes() + impl_->caches.bytes();
  for (const auto& entry : impl_->sequences) sum += entry.second.pictures ? entry.second.pictures->originals.size() : 0;
  for (const auto& replay : impl_->replays)
    for (const auto& crop : replay->crops) sum += crop.size();
  return sum;
}


// Appends to a store of rows that doubles when it is full.
void Session::Impl::append_rows(Buffer& store, int64_t& rows, int64_t& capacity, int64_t width, const float* from, int64_t count) {
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  require(rows + count < (int64_t{1} << 31), "ERR_RANGE", "[Session] Expected fewer than 2^31 visual or stored rows; free all sequences or reset the session");
  if (rows + count > capacity) {
    const int64_t wanted = rows == 0 ? count : 2 * (rows + count);
    Buffer grown = pool.take(wanted * width);
    if (rows > 0) model->backend->copy(grown->data(), store->data(), static_cast<size_t>(rows) * row_bytes);
    store = std::move(grown), capacity = wanted;
  }
  if (from) model->backend->copy(store->floats() + rows * width, from, static_cast<size_t>(count) * row_bytes);
  rows += count;
}

int32_t Session::encode(const std::vector<uint8_t>& frames, const std::vector<int32_t>& sizes) {
  Impl& s = *impl_;
  s.check_training();
  require(sizes.size() % 3 == 0 && !sizes.empty(), "ERR_SHAPE", "[encode] Expected sizes to be [n, 3] with n >= 1 but received " + text(static_cast<int64_t>(sizes.size())) + " values");
  const bool keep = s.options.training && s.options.vision_gradient;
  VisionTape tape;
  tape.dropout_key = derive_key(s.dropout_key, kEncodeSalt + s.pictures.size());
  Buffer tokens = s.vision.forward(frames, sizes, keep, s.options.recompute, &tape);
  const int64_t first = s.visual_rows;
  s.append_rows(s.visual, s.visual_rows, s.visual_capacity, s.model->spec.vision.out_width, tokens->floats(), tape.tokens);
  if (keep) s.pictures.emplace_back(first, std::move(tape));
  return static_cast<int32_t>(first);
}

std::vector<float> Session::read(const std::string& what, int32_t number, int32_t layer, int64_t* width) {
  Impl& s = *impl_;
  const int64_t D = s.model->spec.text.hidden, W = s.model->spec.vision.width;
  const Buffer* source = nullptr;
  int64_t rows = 0;
  *width = D;
  if (what == "visual" || what == "visual_grad") {
    source = what == "visual" ? &s.visual : &s.visual_gradient;
    rows = !*source ? 0 : what == "visual" ? s.visual_rows : s.visual_gradient_rows;
  } else if (what == "visual_state") {
    require(number >= 0 && static_cast<size_t>(number) < s.pictures.size(), "ERR_RANGE", "[read] Expected the number of an encode() of a training session but received " + text(number));
    VisionTape& tape = s.pictures[static_cast<size_t>(number)].second;
    require(layer >= 0 && static_cast<size_t>(layer) <= tape.blocks.size(), "ERR_RANGE", "[read] Expected a vision block in 0.." + text(static_cast<int64_t>(tape.blocks.size())) + " but received " + text(layer));
    source = static_cast<size_t>(layer) < tape.blocks.size() ? &tape.blocks[static_cast<size_t>(layer)].input : &tape.final;
    rows = tape.layout.n, *width = W;
  } else {
    require(what == "layer_input" || what == "layer_qkv" || what == "hidden" || what == "embeds", "ERR_ARGUMENT",
            "[read] Expected layer_input, layer_qkv, hidden, embeds, visual, visual_state or visual_grad but received '" + what + "'");
    require(number >= 0 && static_cast<size_t>(number) < s.passes.size() && s.passes[static_cast<size_t>(number)], "ERR_RANGE",
            "[read] Expected a pass that was kept (training, or keepLayerInputs) but received " + text(number));
    Pass& pass = *s.passes[static_cast<size_t>(number)];
    const int32_t wanted = what == "embeds" ? 0 : layer;
    require(what == "hidden" || (wanted >= 0 && static_cast<size_t>(wanted) < pass.layers.size()), "ERR_RANGE", "[read] Expected a layer in 0.." + text(s.model->spec.text.layers - 1) + " but received " + text(layer));
    if (what == "hidden") {
      source = &pass.hidden;
    } else if (what == "layer_qkv") {
      source = &pass.layers[static_cast<size_t>(wanted)].ordinary.qkv;
      require(*source != nullptr, "ERR_RANGE", "[read] Expected a pass whose queries and keys were kept (training without recompute) but received " + text(number));
      *width = (s.model->spec.text.heads + 2 * s.model->spec.text.kv_heads) * s.model->spec.text.head_dim;
    } else {
      source = &pass.layers[static_cast<size_t>(wanted)].ordinary.input;
    }
    rows = pass.rows.T;
  }
  std::vector<float> out(static_cast<size_t>(rows * *width));
  if (rows > 0) s.model->backend->download(out.data(), (*source)->data(), out.size() * sizeof(float));
  return out;
}

void Session::Impl::drop_sequences() {
  caches.clear();
  sequences.clear();
  free_slots.clear();
  slots = 0;
}

void Session::Impl::drop_tape() {
  events.clear();
  passes.clear();
  replays.clear();
  kept_latents.clear();
  pictures.clear();
  drop_sequences();
  visual.reset();
  visual_rows = visual_capacity = 0;
  stored.reset(), stored_gradient.reset();
  stored_rows = stored_capacity = 0;
  collected_scores.clear();
  profile.reset();
  figures = RoutingFigures{};
}

void Session::reset(uint64_t dropout_key) {
  impl_->dropout_key = impl_->options.training ? dropout_key : 0;
  impl_->drop_tape();
  impl_->visual_gradient.reset();
  impl_->gradient_norms = GradientNorms{};
  impl_->pool.trim();
}

}  // namespace plumbline
