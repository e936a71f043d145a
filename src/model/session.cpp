#include <algorithm>

#include "../core/error.h"
#include "rotary_table.h"
#include "session_impl.h"

namespace plumbline {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

Weight as_weight(const Buffer& rows, int64_t count, int64_t width) { return Weight{rows->data(), DType::f32, count, width}; }

}  // namespace

Session::Impl::Impl(std::shared_ptr<Model> m, const SessionOptions& o)
    : model(std::move(m)), options(o), pool(*model->backend), cache(*model->backend, model->spec.text, o.training), decoder(*model, pool, cache), vision(*model, pool) {}

// Here and not in the constructor, which runs on another thread than enable_training.
void Session::Impl::check_training() const {
  require(!options.training || model->parameters.training(), "ERR_ARGUMENT", "[Session] Expected the model's training to be enabled before a training session is used");
}

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options) : impl_(std::make_unique<Impl>(std::move(model), options)) {}
Session::~Session() = default;

Buffer Session::Impl::zeros(int64_t floats) {
  Buffer buffer = pool.take(floats);
  model->backend->fill(buffer->floats(), 0.0f, floats);
  return buffer;
}

Weight Session::Impl::head() const { return model->parameters.weight(model->spec.text.tied ? "model.embed_tokens.weight" : "lm_head.weight"); }

int32_t Session::Impl::register_sequence(int32_t sequence, SequenceState state) {
  if (free_slots.empty()) free_slots.push_back(slots++);
  state.slot = free_slots.back();
  free_slots.pop_back();
  sequences.emplace(sequence, state);
  return sequence;
}

const SequenceState& Session::Impl::find(int32_t sequence, const char* op) const {
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

int32_t Session::add() { return impl_->register_sequence(impl_->cache.add(), SequenceState{}); }

int32_t Session::fork(int32_t sequence) {
  Impl& s = *impl_;
  require(!s.options.training, "ERR_UNSUPPORTED", "[fork] Expected a session that does not train: a tape cannot be shared");
  const SequenceState from = s.find(sequence, "fork");
  const int32_t copy = s.register_sequence(s.cache.fork(sequence), from);
  if (from.has_hidden) {
    s.grow_last_hidden();
    const int64_t D = s.model->spec.text.hidden, slot = s.sequences.at(copy).slot;
    s.model->backend->copy(s.last_hidden->floats() + slot * D, s.last_hidden->floats() + from.slot * D, static_cast<size_t>(D) * sizeof(float));
  }
  return copy;
}

void Session::free(int32_t sequence) {
  Impl& s = *impl_;
  const int32_t slot = s.find(sequence, "free").slot;
  require(!s.options.training || s.passes.empty(), "ERR_UNSUPPORTED", "[free] Expected no tape: backward() or reset() frees the sequences of a training session");
  s.free_slots.push_back(slot);
  s.sequences.erase(sequence);
  s.cache.free(sequence);
  if (s.sequences.empty()) s.drop_tape();
}

bool Session::has(int32_t sequence) const { return impl_->sequences.count(sequence) != 0; }

int64_t Session::length(int32_t sequence) const {
  impl_->find(sequence, "length");
  return impl_->cache.length(sequence);
}

int64_t Session::token_forwards() const { return impl_->token_forwards; }
size_t Session::bytes() const { return impl_->pool.bytes() + impl_->cache.bytes(); }

int32_t Session::encode(const std::vector<uint8_t>& frames, const std::vector<int32_t>& sizes) {
  Impl& s = *impl_;
  s.check_training();
  require(sizes.size() % 3 == 0 && !sizes.empty(), "ERR_SHAPE", "[encode] Expected sizes to be [n, 3] with n >= 1 but received " + text(static_cast<int64_t>(sizes.size())) + " values");
  const bool keep = s.options.training && s.options.vision_gradient;
  VisionTape tape;
  Buffer tokens = s.vision.forward(frames, sizes, keep, s.options.recompute, &tape);
  const int64_t width = s.model->spec.vision.out_width, first = s.visual_rows, wanted = first + tape.tokens;
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  if (first == 0) {
    s.visual = std::move(tokens), s.visual_capacity = tape.tokens;
  } else {
    if (wanted > s.visual_capacity) {
      Buffer grown = s.pool.take(2 * wanted * width);
      s.model->backend->copy(grown->data(), s.visual->data(), static_cast<size_t>(first) * row_bytes);
      s.visual = std::move(grown), s.visual_capacity = 2 * wanted;
    }
    s.model->backend->copy(s.visual->floats() + first * width, tokens->data(), static_cast<size_t>(tape.tokens) * row_bytes);
  }
  s.visual_rows = wanted;
  if (keep) s.pictures.emplace_back(first, std::move(tape));
  return static_cast<int32_t>(first);
}

void Session::Impl::check(const PassInput& input) const {
  const size_t B = input.sequences.size(), T = input.kind.size();
  require(T > 0 && input.index.size() == T && input.positions.size() == 3 * T, "ERR_SHAPE",
          "[extend] Expected at least one row, with kind [T], index [T] and positions [3, T], but received " + text(static_cast<int64_t>(T)) + ", " +
              text(static_cast<int64_t>(input.index.size())) + " and " + text(static_cast<int64_t>(input.positions.size())) + " values");
  require(T < (size_t{1} << 30), "ERR_RANGE", "[extend] Expected fewer than 2^30 rows in one pass but received " + text(static_cast<int64_t>(T)));
  require(input.cu_seqlens.size() == B + 1 && input.cu_seqlens.front() == 0 && input.cu_seqlens.back() == static_cast<int32_t>(T) &&
              std::is_sorted(input.cu_seqlens.begin(), input.cu_seqlens.end()),
          "ERR_SHAPE", "[extend] Expected cuSeqlens to rise from 0 to the number of rows, " + text(static_cast<int64_t>(T)) + ", over " + text(static_cast<int64_t>(B)) + " sequences");
  std::vector<int32_t> sorted = input.sequences;
  std::sort(sorted.begin(), sorted.end());
  for (size_t b = 0; b < B; ++b) {
    require(sequences.count(sorted[b]) != 0, "ERR_ARGUMENT", "[extend] Expected a live sequence of this session but received id " + text(sorted[b]));
    require(b == 0 || sorted[b] != sorted[b - 1], "ERR_ARGUMENT", "[extend] Expected each sequence once in a pass but received id " + text(sorted[b]) + " twice");
  }
  check_rows(input);
  for (const auto* rows : {&input.logit_rows, &input.hidden_rows})
    for (int32_t row : *rows)
      require(row >= 0 && static_cast<size_t>(row) < T, "ERR_RANGE", "[extend] Expected asked rows in 0.." + text(static_cast<int64_t>(T) - 1) + " but received " + text(row));
}

void Session::Impl::check_rows(const PassInput& input) const {
  const int64_t D = model->spec.text.hidden, given = static_cast<int64_t>(input.embeddings.size()) / D;
  require(static_cast<int64_t>(input.embeddings.size()) == given * D, "ERR_SHAPE",
          "[extend] Expected embeddings to be [n, " + text(D) + "] but received " + text(static_cast<int64_t>(input.embeddings.size())) + " values");
  for (size_t b = 0; b + 1 < input.cu_seqlens.size(); ++b)
    for (int32_t row = input.cu_seqlens[b]; row < input.cu_seqlens[b + 1]; ++row) {
      const size_t t = static_cast<size_t>(row);
      const RowKind kind = static_cast<RowKind>(input.kind[t]);
      require(input.kind[t] <= static_cast<uint8_t>(RowKind::embedding), "ERR_ARGUMENT", "[extend] Expected row kinds 0..3 but received " + text(input.kind[t]) + " at row " + text(row));
      if (kind == RowKind::latent) {
        require(sequences.at(input.sequences[b]).has_hidden, "ERR_ARGUMENT",
                "[extend] Expected a latent row to follow an earlier pass of its sequence, whose last hidden state it takes, but sequence " + text(input.sequences[b]) + " has no rows yet");
        continue;
      }
      const int64_t limit = kind == RowKind::token ? model->spec.text.vocab : kind == RowKind::visual ? visual_rows : given;
      const char* what = kind == RowKind::token ? "token ids" : kind == RowKind::visual ? "visual rows" : "embedding rows";
      require(input.index[t] >= 0 && input.index[t] < limit, "ERR_RANGE",
              std::string("[extend] Expected ") + what + " in 0.." + text(limit - 1) + " but received " + text(input.index[t]) + " at row " + text(row));
    }
  for (int32_t position : input.positions)
    require(position >= 0 && position < (1 << 24), "ERR_RANGE", "[extend] Expected positions in 0..2^24-1 but received " + text(position));
}

std::unique_ptr<Pass> Session::Impl::prepare(PassInput input) {
  auto pass = std::make_unique<Pass>();
  PassRows& rows = pass->rows;
  rows.sequences = input.sequences, rows.cu_seqlens = input.cu_seqlens;
  rows.T = static_cast<int64_t>(input.kind.size());
  for (size_t b = 0; b < input.sequences.size(); ++b) {
    const int64_t before = cache.length(input.sequences[b]), count = input.cu_seqlens[b + 1] - input.cu_seqlens[b];
    require(before + count < (int64_t{1} << 30), "ERR_RANGE", "[extend] Expected fewer than 2^30 rows in a sequence");
    cache.reserve(input.sequences[b], count);
    rows.first_row.push_back(static_cast<int32_t>(before));
    rows.kv_len.push_back(static_cast<int32_t>(before + count));
  }
  const TextSpec& spec = model->spec.text;
  const int64_t table = rows.T * (spec.head_dim / 2);
  std::vector<float> cos(static_cast<size_t>(table)), sin(static_cast<size_t>(table));
  text_rotary_table(input.positions.data(), rows.T, spec.mrope_section, spec.head_dim, spec.rope_theta, cos.data(), sin.data());
  rows.cos = pool.take(table), rows.sin = pool.take(table);
  model->backend->upload(rows.cos->data(), cos.data(), cos.size() * sizeof(float));
  model->backend->upload(rows.sin->data(), sin.data(), sin.size() * sizeof(float));
  pass->input = std::move(input);
  return pass;
}

Buffer Session::Impl::embed(Pass& pass) {
  const PassInput& input = pass.input;
  const int64_t T = pass.rows.T, D = model->spec.text.hidden;
  Buffer x = pool.take(T * D);
  std::vector<int32_t> from[4], to[4];
  for (size_t b = 0; b < input.sequences.size(); ++b) {
    const SequenceState& sequence = sequences.at(input.sequences[b]);
    for (int32_t row = input.cu_seqlens[b]; row < input.cu_seqlens[b + 1]; ++row) {
      const uint8_t kind = input.kind[static_cast<size_t>(row)];
      const bool is_latent = kind == static_cast<uint8_t>(RowKind::latent);
      if (is_latent) pass.latents.push_back({row, sequence.pass, sequence.row});
      from[kind].push_back(is_latent ? sequence.slot : input.index[static_cast<size_t>(row)]);
      to[kind].push_back(row);
    }
  }
  Buffer given;
  if (!input.embeddings.empty()) {
    given = pool.take(static_cast<int64_t>(input.embeddings.size()));
    model->backend->upload(given->data(), input.embeddings.data(), input.embeddings.size() * sizeof(float));
  }
  for (size_t kind = 0; kind < 4; ++kind) {
    if (to[kind].empty()) continue;
    const Weight source = kind == 0   ? model->parameters.weight("model.embed_tokens.weight")
                          : kind == 1 ? as_weight(visual, visual_rows, D)
                          : kind == 2 ? as_weight(last_hidden, last_hidden_capacity, D)
                                      : as_weight(given, static_cast<int64_t>(input.embeddings.size()) / D, D);
    model->backend->copy_rows(source, from[kind].data(), x->floats(), to[kind].data(), static_cast<int64_t>(to[kind].size()));
  }
  std::vector<float>().swap(pass.input.embeddings);  // clear() would keep the memory on the tape
  return x;
}

void Session::Impl::run_layers(Pass& pass, Buffer& x) {
  const TextSpec& spec = model->spec.text;
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    LayerTape tape;
    decoder.forward(layer, pass.rows, x, tape);
    if (!options.training && !pass.input.keep_layer_inputs) continue;
    if (!options.training || options.recompute) {
      LayerTape slim;
      slim.input = std::move(tape.input);
      tape = std::move(slim);
    }
    pass.layers.push_back(std::move(tape));
  }
  const int64_t T = pass.rows.T, D = spec.hidden;
  pass.rstd = pool.take(T), pass.hidden = pool.take(T * D);
  model->backend->rms_norm(x->floats(), model->parameters.vector("model.norm.weight"), spec.eps, pass.hidden->floats(), pass.rstd->floats(), T, D);
  pass.final = std::move(x);
}

void Session::Impl::remember_last_rows(const Pass& pass) {
  const int64_t D = model->spec.text.hidden;
  grow_last_hidden();
  std::vector<int32_t> from, to;
  for (size_t b = 0; b < pass.rows.sequences.size(); ++b) {
    if (pass.rows.cu_seqlens[b + 1] == pass.rows.cu_seqlens[b]) continue;
    SequenceState& sequence = sequences.at(pass.rows.sequences[b]);
    from.push_back(pass.rows.cu_seqlens[b + 1] - 1);
    to.push_back(sequence.slot);
    sequence.has_hidden = true;
    sequence.pass = static_cast<int32_t>(passes.size());  // this pass is pushed next
    sequence.row = from.back();
  }
  model->backend->copy_rows(as_weight(pass.hidden, pass.rows.T, D), from.data(), last_hidden->floats(), to.data(), static_cast<int64_t>(from.size()));
}

void Session::Impl::read_rows(const Pass& pass, const std::vector<int32_t>& rows, bool as_logits, std::vector<float>* out) {
  const int64_t D = model->spec.text.hidden, V = model->spec.text.vocab, width = as_logits ? V : D, count = static_cast<int64_t>(rows.size());
  out->resize(static_cast<size_t>(count * width));
  const int64_t chunk = std::max<int64_t>(1, kLogitBytes / (V * 4));
  for (int64_t start = 0; start < count; start += chunk) {
    const int64_t n = std::min(chunk, count - start);
    Buffer hidden = pool.take(n * D);
    model->backend->copy_rows(as_weight(pass.hidden, pass.rows.T, D), rows.data() + start, hidden->floats(), nullptr, n);
    if (as_logits) {
      Buffer logits = pool.take(n * V);
      model->backend->linear(hidden->floats(), head(), nullptr, logits->floats(), n, false);
      hidden = std::move(logits);
    }
    model->backend->download(out->data() + start * width, hidden->data(), static_cast<size_t>(n * width) * sizeof(float));
  }
}

PassOutput Session::extend(const PassInput& input) {
  Impl& s = *impl_;
  s.check_training();
  s.check(input);
  std::unique_ptr<Pass> pass = s.prepare(input);
  Buffer x = s.embed(*pass);
  s.run_layers(*pass, x);
  PassOutput output;
  s.read_rows(*pass, input.logit_rows, true, &output.logits);
  s.read_rows(*pass, input.hidden_rows, false, &output.hidden);
  // Nothing below can be cancelled: the sequences grow only when the whole pass is done.
  s.model->backend->set_cancel(nullptr);
  s.remember_last_rows(*pass);
  for (size_t b = 0; b < input.sequences.size(); ++b) s.cache.advance(input.sequences[b], input.cu_seqlens[b + 1] - input.cu_seqlens[b]);
  s.token_forwards += pass->rows.T;
  output.pass = static_cast<int32_t>(s.passes.size());
  const bool keep = s.options.training || input.keep_layer_inputs;
  s.passes.push_back(keep ? std::move(pass) : nullptr);
  return output;
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
    require(what == "layer_input" || what == "hidden" || what == "embeds", "ERR_ARGUMENT", "[read] Expected layer_input, hidden, embeds, visual, visual_state or visual_grad but received '" + what + "'");
    require(number >= 0 && static_cast<size_t>(number) < s.passes.size() && s.passes[static_cast<size_t>(number)], "ERR_RANGE",
            "[read] Expected a pass that was kept (training, or keepLayerInputs) but received " + text(number));
    Pass& pass = *s.passes[static_cast<size_t>(number)];
    const int32_t wanted = what == "embeds" ? 0 : layer;
    require(what == "hidden" || (wanted >= 0 && static_cast<size_t>(wanted) < pass.layers.size()), "ERR_RANGE", "[read] Expected a layer in 0.." + text(s.model->spec.text.layers - 1) + " but received " + text(layer));
    source = what == "hidden" ? &pass.hidden : &pass.layers[static_cast<size_t>(wanted)].input;
    rows = pass.rows.T;
  }
  std::vector<float> out(static_cast<size_t>(rows * *width));
  if (rows > 0) s.model->backend->download(out.data(), (*source)->data(), out.size() * sizeof(float));
  return out;
}

void Session::Impl::drop_sequences() {
  cache.clear();
  sequences.clear();
  free_slots.clear();
  slots = 0;
}

void Session::Impl::drop_tape() {
  passes.clear();
  pictures.clear();
  drop_sequences();
  visual.reset();
  visual_rows = visual_capacity = 0;
}

void Session::reset() {
  impl_->drop_tape();
  impl_->visual_gradient.reset();
  impl_->pool.trim();
}

}  // namespace plumbline
