#include "read_session.h"

#include <algorithm>
#include <cmath>

namespace plumbline {
namespace {

constexpr int64_t kMaxPosition = int64_t{1} << 24;  // beyond it a float cannot tell neighbours apart
constexpr int64_t kMaxSide = int64_t{1} << 20, kMaxFrames = int64_t{1} << 16;
constexpr int64_t kMaxPatches = 1 << 20, kMaxDepth = 4, kMaxLayers = 4096;

void check_values(const char* op, const char* name, const std::vector<int32_t>& values, int64_t end) {
  for (size_t i = 0; i < values.size(); ++i)
    require(values[i] >= 0 && values[i] < end, "ERR_RANGE",
            std::string("[") + op + "] Expected " + name + " in 0.." + std::to_string(end - 1) + " but received " + std::to_string(values[i]) + " at " + std::to_string(i));
}

ReplaySpec read_replay_spec(const Argument& from) {
  ReplaySpec spec;
  spec.enabled = true;
  spec.rule.patches = static_cast<int32_t>(from.field("patches").integer(1, kMaxPatches));
  spec.rule.window = static_cast<int32_t>(from.field("window").integer(1, kMaxPatches));
  spec.rule.grid = static_cast<int32_t>(from.field("grid").integer(0, 1 << 12));
  spec.rule.weights = from.field("weights").choice({"mean-preserving", "softmax"}) == 0 ? ReplayWeights::mean_preserving : ReplayWeights::softmax;
  spec.rule.mix = from.field("mix").boolean();
  spec.rule.reselect_used = from.field("reselectUsed").boolean();
  spec.rule.topk_order = from.field("topkOrder").boolean();
  spec.saliency_gradient = from.field("saliencyGradient").boolean();
  spec.token_sr = from.field("tokenSr").boolean();
  spec.sr_unweighted = from.field("srInput").choice({"weighted", "unweighted"}) == 1;
  spec.sr_added = from.field("srAdded").boolean();
  spec.target_gradient = from.field("targetGradient").boolean();
  spec.official_crop = from.field("officialCrop").boolean();
  return spec;
}

RoutingSpec read_routing_spec(const Argument& from) {
  RoutingSpec spec;
  for (const Argument& layer : from.field("layers").elements(kMaxLayers)) spec.layers.push_back(layer.integer(0, kMaxLayers - 1));
  require(std::adjacent_find(spec.layers.begin(), spec.layers.end(), std::greater_equal<int64_t>()) == spec.layers.end(), "ERR_RANGE",
          "[Session] Expected routing.layers to rise");
  constexpr RouteRule rules[] = {RouteRule::threshold, RouteRule::prefix_topk, RouteRule::topk};
  constexpr RouteGate gates[] = {RouteGate::sigmoid, RouteGate::raw, RouteGate::softmax_sequence};
  constexpr Fusion fusions[] = {Fusion::interpolate, Fusion::scaled, Fusion::plain};
  spec.rule = rules[from.field("rule").choice({"threshold", "prefix-topk", "topk"})];
  spec.mlp_router = from.field("router").choice({"linear", "mlp"}) == 1;
  spec.alpha = static_cast<int32_t>(from.field("alpha").integer(1, kMaxPatches));
  spec.max_depth = static_cast<int32_t>(from.field("maxDepth").integer(2, kMaxDepth));
  spec.gate = gates[from.field("gate").choice({"sigmoid", "raw", "softmax-sequence"})];
  spec.fusion = fusions[from.field("fusion").choice({"interpolate", "scaled", "plain"})];
  spec.misordered = from.field("misordered").boolean();
  require(!spec.misordered || (spec.rule == RouteRule::topk && spec.fusion != Fusion::interpolate), "ERR_ARGUMENT",
          "[Session] Expected routing.misordered only with rule 'topk' and fusion 'plain' or 'scaled', as the released code has it");
  return spec;
}

// The session checks the rows and which layers there are.
std::vector<ForcedRoute> read_forced_routes(const Argument& from) {
  std::vector<ForcedRoute> routes;
  for (const Argument& entry : from.elements(kMaxLayers * kMaxDepth))
    routes.push_back({static_cast<int32_t>(entry.field("layer").integer(0, kMaxLayers - 1)), static_cast<int32_t>(entry.field("depth").integer(2, kMaxDepth)), entry.field("rows").i32()});
  return routes;
}

constexpr uint64_t kMaxPictureBytes = uint64_t{1} << 40;

// Bytes of [n, 2] heights and widths of RGB pictures; a running limit, so that no number of them wraps.
uint64_t picture_bytes(const std::vector<int32_t>& sizes, const char* name) {
  uint64_t bytes = 0;
  for (size_t i = 0; i + 1 < sizes.size(); i += 2) {
    require(sizes[i] > 0 && sizes[i] <= kMaxSide && sizes[i + 1] > 0 && sizes[i + 1] <= kMaxSide, "ERR_RANGE",
            std::string("[setPictures] Expected ") + name + " with sides of 1 to " + std::to_string(kMaxSide) + " but received " + std::to_string(sizes[i]) + " x " + std::to_string(sizes[i + 1]));
    bytes += static_cast<uint64_t>(sizes[i]) * static_cast<uint64_t>(sizes[i + 1]) * 3;
    require(bytes <= kMaxPictureBytes, "ERR_RANGE", std::string("[setPictures] Expected ") + name + " of at most 2^40 bytes of pixels in all but received more");
  }
  return bytes;
}

}  // namespace

SessionOptions read_session_options(const Argument& from) {
  SessionOptions options;
  options.training = from.field("training").boolean();
  options.recompute = from.field("recompute").boolean();
  options.detach_latents = from.field("detachLatents").boolean();
  options.vision_gradient = from.field("visionGradient").boolean();
  const Argument replay = from.field("replay"), routing = from.field("routing"), profile = from.field("profile");
  if (!profile.absent()) options.profile = profile.boolean();
  if (!replay.absent()) options.replay = read_replay_spec(replay);
  if (!routing.absent()) options.routing = read_routing_spec(routing);
  return options;
}

PassInput read_pass(const Argument& from, int64_t hidden) {
  PassInput pass;
  pass.sequences = from.field("sequences").i32();
  pass.cu_seqlens = from.field("cuSeqlens").i32(static_cast<int64_t>(pass.sequences.size()) + 1);
  pass.kind = from.field("kind").u8();
  const int64_t T = static_cast<int64_t>(pass.kind.size());
  pass.index = from.field("index").i32(T);
  pass.positions = from.field("positions").i32(3 * T);
  check_offsets(from.op(), "cuSeqlens", pass.cu_seqlens, T);
  std::vector<int32_t> sorted = pass.sequences;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  require(twice == sorted.end(), "ERR_ARGUMENT", "[extend] Expected each sequence once in a pass but received id " + std::to_string(twice == sorted.end() ? 0 : *twice) + " twice");
  for (int64_t t = 0; t < T; ++t)
    require(pass.kind[static_cast<size_t>(t)] < kRowKinds, "ERR_RANGE", "[extend] Expected kind in 0..4 but received " + std::to_string(pass.kind[static_cast<size_t>(t)]) + " at " + std::to_string(t));
  check_values("extend", "positions", pass.positions, kMaxPosition);
  const Argument embeddings = from.field("embeddings"), logit_rows = from.field("logitRows"), hidden_rows = from.field("hiddenRows"), keep = from.field("keepLayerInputs");
  if (!embeddings.absent()) pass.embeddings = embeddings.f32();
  require(pass.embeddings.size() % static_cast<size_t>(hidden) == 0, "ERR_SHAPE",
          "[extend] Expected embeddings to be rows of " + std::to_string(hidden) + " but received " + std::to_string(pass.embeddings.size()) + " elements");
  if (!logit_rows.absent()) pass.logit_rows = logit_rows.i32();
  if (!hidden_rows.absent()) pass.hidden_rows = hidden_rows.i32();
  check_values("extend", "logitRows", pass.logit_rows, T);
  check_values("extend", "hiddenRows", pass.hidden_rows, T);
  if (!keep.absent()) pass.keep_layer_inputs = keep.boolean();
  const Argument saliency = from.field("saliency"), trace = from.field("traceRouting"), forced = from.field("forcedRoutes");
  if (!saliency.absent()) pass.saliency = saliency.u8(static_cast<int64_t>(pass.sequences.size()));
  if (!trace.absent()) pass.trace_routing = trace.boolean();
  if (!forced.absent()) pass.forced_routes = read_forced_routes(forced);
  return pass;
}

LossInput read_loss(const Argument& from) {
  LossInput loss;
  loss.pass = from.field("pass").i32();
  const int64_t R = static_cast<int64_t>(loss.pass.size());
  loss.row = from.field("row").i32(R);
  loss.target = from.field("target").i32(R);
  loss.scale = static_cast<float>(from.field("scale").number(-1e30, 1e30));
  const Argument replay = from.field("replay");
  if (replay.absent()) return loss;
  loss.replay = replay.i32();
  loss.index = from.field("index").i32(static_cast<int64_t>(loss.replay.size()));
  loss.weight = from.field("weight").f32(static_cast<int64_t>(loss.replay.size()));
  for (size_t q = 0; q < loss.weight.size(); ++q)
    require(std::isfinite(loss.weight[q]), "ERR_RANGE", "[loss] Expected weight to be finite but received " + std::to_string(loss.weight[q]) + " at " + std::to_string(q));
  return loss;
}

PictureSet read_pictures(const Argument& from, const VisionSpec& vision) {
  PictureSet set;
  set.columns = from.field("columns").i32();
  set.visual_rows = from.field("visualRows").i32(static_cast<int64_t>(set.columns.size()));
  set.grids = from.field("grids").i32();
  set.sizes = from.field("sizes").i32(static_cast<int64_t>(set.grids.size()));
  require(set.grids.size() % 2 == 0, "ERR_SHAPE", "[setPictures] Expected grids to be pairs of rows and columns but received " + std::to_string(set.grids.size()) + " elements");
  check_values("setPictures", "columns", set.columns, int64_t{1} << 30);
  const int64_t unit = int64_t{vision.patch} * vision.merge;
  picture_bytes(set.sizes, "sizes");
  for (size_t i = 0; i < set.grids.size(); ++i)
    require(set.grids[i] > 0 && set.grids[i] * unit == set.sizes[i], "ERR_SHAPE",
            "[setPictures] Expected sizes to be the grids times patch * merge = " + std::to_string(unit) + " but received " + std::to_string(set.sizes[i]) + " for " + std::to_string(set.grids[i]));
  const Argument originals = from.field("originals"), original_sizes = from.field("originalSizes");
  if (!original_sizes.absent()) set.original_sizes = original_sizes.i32(static_cast<int64_t>(set.grids.size()));
  const uint64_t bytes = picture_bytes(set.original_sizes, "originalSizes");
  if (originals.absent()) return set;
  require(!original_sizes.absent(), "ERR_ARGUMENT", "[setPictures] Expected originalSizes together with originals");
  set.originals = originals.u8();
  require(set.originals.size() == bytes, "ERR_SHAPE", "[setPictures] Expected originals to have " + std::to_string(bytes) + " bytes but received " + std::to_string(set.originals.size()));
  return set;
}

void check_pictures(const std::vector<int32_t>& sizes, size_t bytes, const VisionSpec& vision) {
  require(!sizes.empty() && sizes.size() % 3 == 0, "ERR_SHAPE", "[encode] Expected sizes to be n * 3 numbers with n of at least 1 but received " + std::to_string(sizes.size()));
  const int64_t unit = int64_t{vision.patch} * vision.merge;
  uint64_t wanted = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) {
    const int64_t frames = sizes[i], height = sizes[i + 1], width = sizes[i + 2];
    const std::string received = " but received " + std::to_string(frames) + " frames of " + std::to_string(height) + " x " + std::to_string(width);
    require(frames > 0 && frames <= kMaxFrames && height > 0 && height <= kMaxSide && width > 0 && width <= kMaxSide, "ERR_RANGE",
            "[encode] Expected 1 to " + std::to_string(kMaxFrames) + " frames with sides of 1 to " + std::to_string(kMaxSide) + received);
    require(height % unit == 0 && width % unit == 0, "ERR_SHAPE", "[encode] Expected sides to be multiples of patch * merge = " + std::to_string(unit) + received);
    wanted += static_cast<uint64_t>(frames) * static_cast<uint64_t>(height) * static_cast<uint64_t>(width) * 3;
    require(wanted <= bytes, "ERR_SHAPE", "[encode] Expected frames to have at least " + std::to_string(wanted) + " bytes but received " + std::to_string(bytes));
  }
  require(wanted == bytes, "ERR_SHAPE", "[encode] Expected frames to have " + std::to_string(wanted) + " bytes but received " + std::to_string(bytes));
}

}  // namespace plumbline
