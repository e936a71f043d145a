#include "read_spec.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 20;      // hidden, intermediate, heads * head_dim
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr uint32_t kMaxExtras = 1u << 16;

std::string text(int64_t value) { return std::to_string(value); }

TextSpec read_text(const Argument& from) {
  TextSpec text_spec{};
  text_spec.hidden = from.field("hidden").integer(1, kMaxWidth);
  text_spec.layers = from.field("layers").integer(1, kMaxLayers);
  text_spec.heads = from.field("heads").integer(1, kMaxHeads);
  text_spec.kv_heads = from.field("kvHeads").integer(1, kMaxHeads);
  text_spec.head_dim = from.field("headDim").integer(2, kMaxHeadDim);
  text_spec.intermediate = from.field("intermediate").integer(1, kMaxWidth);
  text_spec.vocab = from.field("vocab").integer(1, kMaxVocab);
  text_spec.eps = static_cast<float>(from.field("eps").number(0, 1));
  text_spec.rope_theta = from.field("ropeTheta").number(1, 1e15);
  text_spec.tied = from.field("tied").boolean();
  const Argument section = from.field("mropeSection");
  const std::vector<Argument> parts = section.elements(3);
  int64_t sum = 0;
  for (size_t i = 0; i < parts.size(); ++i) sum += text_spec.mrope_section[i] = static_cast<int32_t>(parts[i].integer(0, kMaxHeadDim));
  require(text_spec.head_dim % 2 == 0, "ERR_SHAPE", "[Model] Expected text.headDim to be even but received " + text(text_spec.head_dim));
  require(text_spec.heads % text_spec.kv_heads == 0, "ERR_SHAPE",
          "[Model] Expected text.heads to be a multiple of text.kvHeads = " + text(text_spec.kv_heads) + " but received " + text(text_spec.heads));
  require(parts.size() == 3 && sum == text_spec.head_dim / 2, "ERR_SHAPE",
          "[Model] Expected text.mropeSection to be 3 numbers that sum to headDim / 2 = " + text(text_spec.head_dim / 2) + " but received " + text(static_cast<int64_t>(parts.size())) +
              " numbers with sum " + text(sum));
  return text_spec;
}

void read_three(const Argument& from, double min, std::array<float, 3>* values) {
  const std::vector<Argument> parts = from.elements(3);
  if (parts.size() != 3) from.reject("ERR_SHAPE", "an array of 3 numbers");
  for (size_t i = 0; i < 3; ++i) (*values)[i] = static_cast<float>(parts[i].number(min, 1e6));
}

// Absent: the tower of Qwen2-VL.
void read_windows(const Argument& from, VisionSpec* vision) {
  if (from.absent()) return;
  vision->window = static_cast<int32_t>(from.field("side").integer(1, kMaxWidth));
  for (const Argument& block : from.field("fullAttentionBlocks").elements(kMaxLayers))
    vision->full_attention_blocks.push_back(static_cast<int32_t>(block.integer(0, kMaxLayers)));
  require(vision->activation == Activation::silu, "ERR_UNSUPPORTED", "[Model] Expected vision.activation to be 'silu' in a tower with vision.windows but received another");
}

VisionSpec read_vision(const Argument& from) {
  VisionSpec vision{};
  vision.depth = from.field("depth").integer(0, kMaxLayers);
  vision.width = from.field("width").integer(1, kMaxWidth);
  vision.heads = from.field("heads").integer(1, kMaxHeads);
  vision.mlp_width = from.field("mlpWidth").integer(1, kMaxWidth);
  vision.out_width = from.field("outWidth").integer(1, kMaxWidth);
  constexpr Activation kinds[] = {Activation::quick_gelu, Activation::erf_gelu, Activation::silu};
  vision.activation = kinds[from.field("activation").choice({"quick_gelu", "gelu", "silu"})];
  vision.channels = static_cast<int32_t>(from.field("channels").integer(3, 3));  // frames are RGB
  vision.patch = static_cast<int32_t>(from.field("patch").integer(1, 256));
  vision.merge = static_cast<int32_t>(from.field("merge").integer(1, 16));
  vision.temporal = static_cast<int32_t>(from.field("temporal").integer(1, 16));
  read_three(from.field("imageMean"), -1e6, &vision.image_mean);
  read_three(from.field("imageStd"), 1e-6, &vision.image_std);
  read_windows(from.field("windows"), &vision);
  const int64_t head_dim = vision.width / vision.heads;
  require(vision.width % vision.heads == 0 && head_dim % 4 == 0 && head_dim <= kMaxHeadDim, "ERR_SHAPE",
          "[Model] Expected vision.width to be vision.heads = " + text(vision.heads) + " heads of a multiple of 4, at most " + text(kMaxHeadDim) + ", but received " + text(vision.width));
  return vision;
}

ExtraSpec read_extra(const Argument& from) {
  ExtraSpec extra;
  extra.name = from.field("name").string();
  for (const Argument& extent : from.field("shape").elements(8)) extra.shape.push_back(extent.integer(1, int64_t{1} << 32));
  return extra;
}

AdapterSpec read_adapter(const Argument& from) {
  AdapterSpec adapter{};
  adapter.target = from.field("target").string();
  adapter.rank = from.field("rank").integer(1, kMaxWidth);
  adapter.scale = static_cast<float>(from.field("scale").number(-1e6, 1e6));
  adapter.dropout = static_cast<float>(from.field("dropout").number(0, 0.999));
  return adapter;
}

}  // namespace

ModelSpec read_model_spec(const Argument& from) {
  ModelSpec spec{};
  spec.text = read_text(from.field("text"));
  spec.vision = read_vision(from.field("vision"));
  spec.dtype = from.field("dtype").choice({"f32", "bf16"}) == 0 ? DType::f32 : DType::bf16;
  require(spec.vision.out_width == spec.text.hidden, "ERR_SHAPE",
          "[Model] Expected vision.outWidth to be text.hidden = " + text(spec.text.hidden) + " but received " + text(spec.vision.out_width));
  const Argument extras = from.field("extras");
  if (!extras.absent())
    for (const Argument& extra : extras.elements(kMaxExtras)) spec.extras.push_back(read_extra(extra));
  const Argument adapters = from.field("adapters");
  if (!adapters.absent())
    for (const Argument& adapter : adapters.elements(kMaxExtras)) spec.adapters.push_back(read_adapter(adapter));
  return spec;
}

}  // namespace plumbline
