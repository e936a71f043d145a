// Visual replay (algorithms, section 3): saliency -> selection, weights, window -> block rows; crop -> tower -> target; token
// super-resolution; and the way back.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../core/error.h"
#include "../core/mix.h"
#include "../core/replay.h"
#include "session_impl.h"

namespace plumbline {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

// Pixels of a window (row, column, height, width) on a grid of a picture. At least one pixel each way.
void crop_box(const int32_t* window, int64_t grid_h, int64_t grid_w, int64_t height, int64_t width, bool official, int32_t* box) {
  const int64_t row = window[0], column = window[1], tall = window[2], broad = window[3];
  if (official) {  // the released code multiplies in floating point and truncates
    const double across = static_cast<double>(width) / static_cast<double>(grid_w), down = static_cast<double>(height) / static_cast<double>(grid_h);
    box[0] = static_cast<int32_t>(static_cast<double>(column) * across), box[1] = static_cast<int32_t>(static_cast<double>(row) * down);
    box[2] = static_cast<int32_t>(std::min<double>(static_cast<double>(width), std::trunc(static_cast<double>(column + broad) * across)));
    box[3] = static_cast<int32_t>(std::min<double>(static_cast<double>(height), std::trunc(static_cast<double>(row + tall) * down)));
  } else {
    box[0] = static_cast<int32_t>(column * width / grid_w), box[1] = static_cast<int32_t>(row * height / grid_h);
    box[2] = static_cast<int32_t>((column + broad) * width / grid_w), box[3] = static_cast<int32_t>((row + tall) * height / grid_h);
  }
  box[2] = std::max(box[2], box[0] + 1), box[3] = std::max(box[3], box[1] + 1);
}

}  // namespace

void Session::set_pictures(int32_t sequence, PictureSet pictures) {
  Impl& s = *impl_;
  SequenceState& state = s.find(sequence, "setPictures");
  const size_t N = pictures.columns.size();
  int64_t area = 0;
  for (size_t i = 0; i + 1 < pictures.grids.size() && area <= static_cast<int64_t>(N); i += 2) area += static_cast<int64_t>(pictures.grids[i]) * pictures.grids[i + 1];
  require(pictures.visual_rows.size() == N && area == static_cast<int64_t>(N), "ERR_SHAPE",
          "[setPictures] Expected as many columns and visual rows as the grids have tokens, " + text(area) + ", but received " + text(static_cast<int64_t>(N)) + " and " +
              text(static_cast<int64_t>(pictures.visual_rows.size())));
  for (int32_t row : pictures.visual_rows)
    require(row >= 0 && row < s.visual_rows, "ERR_RANGE", "[setPictures] Expected visual rows in 0.." + text(s.visual_rows - 1) + " but received " + text(row));
  state.used.assign(N, 0);
  state.used_count = 0;
  state.saliency.reset();
  state.pictures = std::make_shared<const PictureSet>(std::move(pictures));
}

void Session::Impl::check_replay(const std::vector<int32_t>& ids, bool targets) {
  require(options.replay.enabled, "ERR_ARGUMENT", "[replay] Expected a session that was opened with replay but received one without");
  require(!targets || options.replay.uses_token_sr(), "ERR_ARGUMENT", "[replay] Expected token super-resolution to be on for targets but received a session without");
  std::vector<int32_t> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  require(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "ERR_ARGUMENT", "[replay] Expected each sequence once");
  for (int32_t id : ids) {
    const SequenceState& sequence = find(id, "replay");
    require(sequence.saliency != nullptr, "ERR_ARGUMENT",
            "[replay] Expected sequences whose last pass collected saliency, which one replay takes, but received id " + text(id) + " without");
    require(!targets || sequence.pictures->columns.empty() || !sequence.pictures->originals.empty(), "ERR_ARGUMENT",
            "[replay] Expected the pictures of sequence " + text(id) + " with their originals, which targets are cut from, but received none");
  }
}

// Layout of the step, and its candidates' saliency and used flags side by side.
ReplayStep Session::Impl::plan_replay(const std::vector<int32_t>& ids, std::vector<uint8_t>* used) {
  ReplayStep step;
  step.first_row = stored_rows;
  int64_t candidates = 0;
  for (int32_t id : ids) candidates += static_cast<int64_t>(sequences.at(id).used.size());
  require(candidates < (int64_t{1} << 31), "ERR_RANGE", "[replay] Expected fewer than 2^31 image tokens in one replay but received " + text(candidates));
  for (auto* offsets : {&step.cu_tokens, &step.cu_pictures, &step.cu_selected, &step.cu_rows}) offsets->push_back(0);
  for (int32_t id : ids) {
    const SequenceState& sequence = sequences.at(id);
    const int32_t tokens = static_cast<int32_t>(sequence.used.size());
    const int32_t selected = replay_count(options.replay.rule, tokens, sequence.used_count);
    step.cu_tokens.push_back(step.cu_tokens.back() + tokens);
    step.cu_pictures.push_back(step.cu_pictures.back() + static_cast<int32_t>(sequence.pictures->grids.size() / 2));
    step.grids.insert(step.grids.end(), sequence.pictures->grids.begin(), sequence.pictures->grids.end());
    step.cu_selected.push_back(step.cu_selected.back() + selected);
    step.cu_rows.push_back(step.cu_rows.back() + (options.replay.rule.mix ? std::min(selected, 1) : selected));
    if (selected > 0) step.blocks.push_back(static_cast<int32_t>(step.cu_tokens.size()) - 2);
    step.sources.push_back({sequence.saliency, sequence.saliency->cu_columns[static_cast<size_t>(sequence.segment)], tokens});
    used->insert(used->end(), sequence.used.begin(), sequence.used.end());
  }
  step.saliency = pool.take(step.cu_tokens.back());
  for (size_t b = 0; b < ids.size(); ++b)
    model->backend->copy(step.saliency->floats() + step.cu_tokens[b], step.sources[b].saliency->scores->floats() + step.sources[b].first,
                         static_cast<size_t>(step.sources[b].count) * sizeof(float));
  step.selected.resize(static_cast<size_t>(step.cu_selected.back()));
  step.weight = pool.take(step.cu_selected.back());
  return step;
}

// Which block (row of the super-resolution's buffers) each stored row of the step belongs to, and 1 / rows of that block.
std::vector<int32_t> Session::Impl::block_of_rows(const ReplayStep& step, std::vector<float>* inverse) const {
  std::vector<int32_t> block;
  for (size_t r = 0; r < step.blocks.size(); ++r) {
    const size_t b = static_cast<size_t>(step.blocks[r]);
    const int32_t rows = step.cu_rows[b + 1] - step.cu_rows[b];
    block.insert(block.end(), static_cast<size_t>(rows), static_cast<int32_t>(r));
    if (inverse) inverse->insert(inverse->end(), static_cast<size_t>(rows), 1.0f / static_cast<float>(rows));
  }
  return block;
}

// Selected tokens that each stored row of the step is made of.
std::vector<int32_t> Session::Impl::selected_of_rows(const ReplayStep& step) const {
  std::vector<int32_t> cu{0};
  if (options.replay.rule.mix)
    for (int32_t b : step.blocks) cu.push_back(step.cu_selected[static_cast<size_t>(b) + 1]);
  else
    for (int32_t i = 1; i <= step.cu_selected.back(); ++i) cu.push_back(i);
  return cu;
}

// Room at the end of the stored rows for the replayed tokens w_i v_i, best first, or their sum.
ReplayRows Session::Impl::make_blocks(const ReplayStep& step, const std::vector<int32_t>& ids, std::vector<int32_t>* candidates) {
  const int64_t D = model->spec.text.hidden, rows = step.cu_rows.back();
  if (rows == 0) return {};
  for (int32_t id : ids) {
    const std::vector<int32_t>& own = sequences.at(id).pictures->visual_rows;
    candidates->insert(candidates->end(), own.begin(), own.end());
  }
  append_rows(stored, stored_rows, stored_capacity, D, nullptr, rows);
  return {visual->floats(), candidates->data(), step.cu_rows.data(), stored->floats() + step.first_row * D, D};
}

// F(b) = Linear(ReLU(Linear(b))) of each block, added to its rows where the preset uses it.
void Session::Impl::super_resolve(ReplayStep& step) {
  const int64_t D = model->spec.text.hidden, R = static_cast<int64_t>(step.blocks.size());
  const ReplaySpec& spec = options.replay;
  Backend& backend = *model->backend;
  const Parameters& p = model->parameters;
  float* block = stored->floats() + step.first_row * D;
  std::vector<float> share;
  const std::vector<int32_t> block_of = block_of_rows(step, &share);
  std::vector<int32_t> cu{0}, rows;
  if (spec.sr_unweighted) share.clear();
  for (int32_t b : step.blocks) {
    const auto& offsets = spec.sr_unweighted ? step.cu_selected : step.cu_rows;
    const int32_t first = offsets[static_cast<size_t>(b)], end = offsets[static_cast<size_t>(b) + 1];
    if (spec.sr_unweighted) share.insert(share.end(), static_cast<size_t>(end - first), 1.0f / static_cast<float>(end - first));
    else for (int32_t i = first; i < end; ++i) rows.push_back(i);
    cu.push_back(end);
  }
  Buffer weight = pool.take(static_cast<int64_t>(share.size()));
  backend.upload(weight->data(), share.data(), share.size() * sizeof(float));
  step.b = pool.take(R * D), step.active = pool.take(R * D), step.f = pool.take(R * D);
  backend.weighted_rows(spec.sr_unweighted ? visual->floats() : block, spec.sr_unweighted ? step.visual_rows.data() : rows.data(), weight->floats(), cu.data(),
                        step.b->floats(), R, D);
  backend.linear(step.b->floats(), p.weight("token_sr.0.weight"), p.vector("token_sr.0.bias"), step.active->floats(), R, false);
  backend.activate(Activation::relu, step.active->floats(), step.active->floats(), R * D);
  backend.linear(step.active->floats(), p.weight("token_sr.2.weight"), p.vector("token_sr.2.bias"), step.f->floats(), R, false);
  if (spec.sr_added) backend.add_rows(step.f->floats(), block_of.data(), block, nullptr, static_cast<int64_t>(block_of.size()), D);
}

// Boxes of the windows, where the pictures' original sizes are known, and what to cut for each block.
std::vector<CropPatches> Session::Impl::crops(const ReplayStep& step, const std::vector<int32_t>& ids, const std::vector<int32_t>& windows, std::vector<int32_t>* boxes) {
  std::vector<CropPatches> list;
  boxes->assign(4 * ids.size(), 0);
  const ReplaySpec& spec = options.replay;
  for (int32_t block : step.blocks) {
    const size_t b = static_cast<size_t>(block);
    const PictureSet& set = *sequences.at(ids[b]).pictures;
    if (set.original_sizes.empty()) continue;
    const size_t picture = static_cast<size_t>(windows[6 * b]);
    const int32_t grid_h = spec.rule.grid ? spec.rule.grid : set.grids[2 * picture], grid_w = spec.rule.grid ? spec.rule.grid : set.grids[2 * picture + 1];
    int32_t* box = boxes->data() + 4 * b;
    CropPatches crop{};
    crop.height = set.original_sizes[2 * picture], crop.width = set.original_sizes[2 * picture + 1];
    crop_box(windows.data() + 6 * b + 1, grid_h, grid_w, crop.height, crop.width, spec.official_crop, box);
    if (set.originals.empty()) continue;
    size_t start = 0;
    for (size_t i = 0; i < picture; ++i) start += static_cast<size_t>(set.original_sizes[2 * i]) * static_cast<size_t>(set.original_sizes[2 * i + 1]) * 3;
    crop.image = set.originals.data() + start;
    crop.x1 = box[0], crop.y1 = box[1], crop.x2 = box[2], crop.y2 = box[3];
    crop.to_height = set.sizes[2 * picture], crop.to_width = set.sizes[2 * picture + 1];
    crop.truncated = spec.official_crop;
    list.push_back(crop);
  }
  return list;
}

// u of each block: mean over the tokens of its crop.
void Session::Impl::encode_targets(ReplayStep& step, const std::vector<CropPatches>& list, bool keep_crops) {
  const bool keep = options.training && options.replay.target_gradient && options.vision_gradient;
  const int64_t D = model->spec.text.hidden, R = static_cast<int64_t>(list.size()), side = int64_t{model->spec.vision.patch} * model->spec.vision.merge;
  VisionTape tape;
  tape.dropout_key = derive_key(dropout_key, kTargetSalt + replays.size());
  Buffer tokens = vision.forward_crops(list, keep, options.recompute, keep_crops ? &step.crops : nullptr, &tape);
  step.cu_target.assign(1, 0);
  std::vector<float> share;
  std::vector<int32_t> rows;
  for (const CropPatches& crop : list) {
    const int64_t n = crop.to_height / side * (crop.to_width / side);
    share.insert(share.end(), static_cast<size_t>(n), 1.0f / static_cast<float>(n));
    step.cu_target.push_back(static_cast<int32_t>(share.size()));
  }
  for (size_t i = 0; i < share.size(); ++i) rows.push_back(static_cast<int32_t>(i));
  Buffer weight = pool.take(static_cast<int64_t>(share.size()));
  model->backend->upload(weight->data(), share.data(), share.size() * sizeof(float));
  step.u = pool.take(R * D);
  model->backend->weighted_rows(tokens->floats(), rows.data(), weight->floats(), step.cu_target.data(), step.u->floats(), R, D);
  if (keep) step.target = std::move(tape);
}

std::vector<float> Session::Impl::super_resolution_losses(const ReplayStep& step) {
  const int64_t R = static_cast<int64_t>(step.blocks.size());
  std::vector<float> of_blocks(step.blocks.size()), losses(step.sources.size(), std::numeric_limits<float>::quiet_NaN());
  Buffer loss = pool.take(R);
  model->backend->square_loss(step.f->floats(), step.u->floats(), loss->floats(), R, model->spec.text.hidden);
  model->backend->download(of_blocks.data(), loss->data(), of_blocks.size() * sizeof(float));
  for (size_t r = 0; r < of_blocks.size(); ++r) losses[static_cast<size_t>(step.blocks[r])] = of_blocks[r];
  return losses;
}

ReplayOutput Session::replay(const std::vector<int32_t>& ids, bool targets, bool saliency) {
  Impl& s = *impl_;
  s.check_training();
  s.check_replay(ids, targets);
  Backend& backend = *s.model->backend;
  const int64_t stored_before = s.stored_rows;
  std::vector<uint8_t> used;
  std::vector<int32_t> candidates;
  auto step = std::make_unique<ReplayStep>(s.plan_replay(ids, &used));
  ReplayOutput output;
  output.windows.resize(6 * ids.size());
  try {
    const ReplayRows replayed = s.make_blocks(*step, ids, &candidates);
    backend.select_patches(s.options.replay.rule, step->layout(), step->saliency->floats(), used.data(), step->selected.data(), step->weight->floats(), output.windows.data(), replayed.out_RC ? &replayed : nullptr);
    for (size_t b = 0; b < ids.size(); ++b)
      for (int32_t i = step->cu_selected[b]; i < step->cu_selected[b + 1]; ++i)
        step->visual_rows.push_back(s.sequences.at(ids[b]).pictures->visual_rows[static_cast<size_t>(step->selected[static_cast<size_t>(i)])]);
    const std::vector<CropPatches> list = s.crops(*step, ids, output.windows, &output.boxes);
    if (!step->blocks.empty()) {
      if (targets || (s.options.replay.uses_token_sr() && s.options.replay.sr_added)) s.super_resolve(*step);
      if (targets) s.encode_targets(*step, list, saliency && s.options.training);
    }
    output.sr_losses = targets && !step->blocks.empty() ? s.super_resolution_losses(*step) : std::vector<float>(ids.size(), std::numeric_limits<float>::quiet_NaN());
    output.weights.resize(step->selected.size());
    backend.download(output.weights.data(), step->weight->data(), output.weights.size() * sizeof(float));
    if (saliency) {
      output.saliency.resize(static_cast<size_t>(step->cu_tokens.back()));
      backend.download(output.saliency.data(), step->saliency->data(), output.saliency.size() * sizeof(float));
    }
  } catch (...) {  // cancelled: the sequences stay as they were
    s.stored_rows = stored_before;
    throw;
  }
  for (size_t b = 0; b < ids.size(); ++b) {
    SequenceState& sequence = s.sequences.at(ids[b]);
    sequence.used.assign(used.begin() + step->cu_tokens[b], used.begin() + step->cu_tokens[b + 1]);
    sequence.used_count = static_cast<int32_t>(std::count(sequence.used.begin(), sequence.used.end(), uint8_t{1}));
    sequence.saliency.reset();
    output.rows.push_back(step->cu_rows[b + 1] - step->cu_rows[b]);
    output.first_row.push_back(static_cast<int32_t>(step->first_row) + step->cu_rows[b]);
  }
  output.cu_selected = step->cu_selected, output.selected = step->selected;
  step->sr_weight.assign(step->blocks.size(), 0.0f);
  output.replay = static_cast<int32_t>(s.replays.size());
  if (s.options.training) {
    s.events.push_back({Event::replay, s.replays.size()});
    s.replays.push_back(std::move(step));
  }
  return output;
}

int32_t Session::keep_latents(const std::vector<int32_t>& ids) {
  Impl& s = *impl_;
  const int64_t D = s.model->spec.text.hidden;
  KeptLatents kept{s.stored_rows, {}, {}};
  for (int32_t id : ids)
    require(s.find(id, "keepLatents").has_hidden, "ERR_ARGUMENT", "[keepLatents] Expected sequences with rows, whose last hidden state is kept, but received id " + text(id) + " without");
  for (int32_t id : ids) {
    const SequenceState& sequence = s.sequences.at(id);
    s.append_rows(s.stored, s.stored_rows, s.stored_capacity, D, s.last_hidden->floats() + sequence.slot * D, 1);
    kept.pass.push_back(sequence.pass), kept.row.push_back(sequence.row);
  }
  const int32_t first = static_cast<int32_t>(kept.first_row);
  if (s.options.training) {
    s.events.push_back({Event::latents, s.kept_latents.size()});
    s.kept_latents.push_back(std::move(kept));
  }
  return first;
}

ReplayDetail Session::read_replay(int32_t replay, int32_t index) {
  Impl& s = *impl_;
  require(replay >= 0 && static_cast<size_t>(replay) < s.replays.size(), "ERR_RANGE", "[readReplay] Expected the number of a replay of a training session but received " + text(replay));
  const ReplayStep& step = *s.replays[static_cast<size_t>(replay)];
  const auto found = std::find(step.blocks.begin(), step.blocks.end(), index);
  require(found != step.blocks.end() && !step.crops.empty(), "ERR_RANGE", "[readReplay] Expected a sequence with a block, of a replay with targets and saliency, but received index " + text(index));
  const size_t r = static_cast<size_t>(found - step.blocks.begin()), D = static_cast<size_t>(s.model->spec.text.hidden);
  ReplayDetail detail;
  const auto read = [&](const float* from, size_t count) {
    std::vector<float> values(count);
    s.model->backend->download(values.data(), from, count * sizeof(float));
    return values;
  };
  const int32_t first = step.cu_rows[static_cast<size_t>(index)], end = step.cu_rows[static_cast<size_t>(index) + 1];
  detail.block = read(s.stored->floats() + (step.first_row + first) * static_cast<int64_t>(D), static_cast<size_t>(end - first) * D);
  detail.b = read(step.b->floats() + r * D, D), detail.f = read(step.f->floats() + r * D, D), detail.u = read(step.u->floats() + r * D, D);
  detail.crop = step.crops[r];
  return detail;
}

}  // namespace plumbline
