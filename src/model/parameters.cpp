#include "parameters.h"

#include <algorithm>
#include <cmath>

#include "../core/error.h"
#include "../core/mix.h"

namespace plumbline {
namespace {

constexpr size_t kAlignment = 64;
constexpr int64_t kChunk = int64_t{1} << 20;  // elements staged on the host at once

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

Parameters::Parameters(Backend& backend, const ModelSpec& spec) : backend_(backend), matrix_dtype_(spec.dtype) {
  append_text(spec.text);
  append_vision(spec.vision);
  matrix_dtype_ = DType::f32;
  for (const ExtraSpec& extra : spec.extras) append(extra.name, extra.shape);
  for (const AdapterSpec& adapter : spec.adapters) append_adapter(adapter);
  value_ = std::make_unique<Block>(backend_, std::max<size_t>(value_bytes_, kAlignment), true);
  matrix_dtype_ = spec.dtype;
}

void Parameters::append(const std::string& name, std::vector<int64_t> shape, bool joined) {
  require(index_.count(name) == 0, "ERR_ARGUMENT", "[Model] Expected parameter names to be unique but received '" + name + "' twice");
  Parameter p;
  p.name = name;
  p.size = 1;
  for (int64_t extent : shape) {
    require(extent >= 0 && (extent == 0 || p.size <= (int64_t{1} << 40) / extent), "ERR_RANGE",
            "[Model] Expected parameter '" + name + "' to have at most 2^40 elements but received shape " + shape_text(shape));
    p.size *= extent;
  }
  p.dtype = shape.size() >= 2 ? matrix_dtype_ : DType::f32;
  p.shape = std::move(shape);
  p.joined = joined;
  if (!joined) value_bytes_ = round_up(value_bytes_, kAlignment);
  p.value_offset = value_bytes_;
  value_bytes_ += static_cast<size_t>(p.size) * dtype_bytes(p.dtype);
  index_.emplace(name, list_.size());
  list_.push_back(std::move(p));
}

void Parameters::append_text(const TextSpec& text) {
  const int64_t D = text.hidden, q = text.heads * text.head_dim, kv = text.kv_heads * text.head_dim;
  append("model.embed_tokens.weight", {text.vocab, D});
  append("model.norm.weight", {D});
  if (!text.tied) append("lm_head.weight", {text.vocab, D});
  for (int64_t i = 0; i < text.layers; ++i) {
    const std::string base = "model.layers." + std::to_string(i) + ".";
    append(base + "input_layernorm.weight", {D});
    append(base + "self_attn.q_proj.weight", {q, D});
    append(base + "self_attn.k_proj.weight", {kv, D}, true);
    append(base + "self_attn.v_proj.weight", {kv, D}, true);
    append(base + "self_attn.q_proj.bias", {q});
    append(base + "self_attn.k_proj.bias", {kv}, true);
    append(base + "self_attn.v_proj.bias", {kv}, true);
    append(base + "self_attn.o_proj.weight", {D, q});
    append(base + "post_attention_layernorm.weight", {D});
    append(base + "mlp.gate_proj.weight", {text.intermediate, D});
    append(base + "mlp.up_proj.weight", {text.intermediate, D}, true);
    append(base + "mlp.down_proj.weight", {D, text.intermediate});
  }
}

void Parameters::append_adapter(const AdapterSpec& adapter) {
  const Parameter& base = find(adapter.target + ".weight");
  require((adapter.target.rfind("model.layers.", 0) == 0 || adapter.target.rfind("visual.", 0) == 0) && base.shape.size() == 2, "ERR_ARGUMENT",
          "[Model] Expected the adapter's target to be a linear layer of the decoder or the vision tower but received '" + adapter.target + "'");
  const int64_t out = base.shape[0], in = base.shape[1];
  append("lora." + adapter.target + ".A", {adapter.rank, in});
  append("lora." + adapter.target + ".B", {out, adapter.rank});
}

void Parameters::append_vision(const VisionSpec& vision) {
  const int64_t width = vision.width, unit = vision.unit() * width;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    append(name + ".weight", {out, in});
    append(name + ".bias", {out});
  };
  const auto norm = [&](const std::string& name) {
    append(name + ".weight", {width});
    if (!vision.is_qwen2_5()) append(name + ".bias", {width});
  };
  append("visual.patch_embed.proj.weight", {width, vision.channels, vision.temporal, vision.patch, vision.patch});
  for (int64_t i = 0; i < vision.depth; ++i) {
    const std::string block = "visual.blocks." + std::to_string(i) + ".";
    norm(block + "norm1");
    linear(block + "attn.qkv", 3 * width, width);
    linear(block + "attn.proj", width, width);
    norm(block + "norm2");
    if (vision.is_qwen2_5()) {
      append(block + "mlp.gate_proj.weight", {vision.mlp_width, width});
      append(block + "mlp.up_proj.weight", {vision.mlp_width, width}, true);
      append(block + "mlp.gate_proj.bias", {vision.mlp_width});
      append(block + "mlp.up_proj.bias", {vision.mlp_width}, true);
      linear(block + "mlp.down_proj", width, vision.mlp_width);
    } else {
      linear(block + "mlp.fc1", vision.mlp_width, width);
      linear(block + "mlp.fc2", width, vision.mlp_width);
    }
  }
  norm("visual.merger.ln_q");
  linear("visual.merger.mlp.0", unit, unit);
  linear("visual.merger.mlp.2", vision.out_width, unit);
}

const Parameter& Parameters::find(const std::string& name) const {
  const auto found = index_.find(name);
  require(found != index_.end(), "ERR_ARGUMENT", "[Model] Expected the name of a parameter but received '" + name + "'");
  return list_[found->second];
}

void Parameters::set_trainable(const std::string& name, bool trainable) { list_[index_.at(find(name).name)].trainable = trainable; }

void* Parameters::value_pointer(const Parameter& p) const { return static_cast<char*>(value_->data()) + p.value_offset; }

void Parameters::read(const Parameter& p, Slot slot, float* out) {
  if (slot != Slot::value || p.dtype == DType::f32) {
    const void* from = slot == Slot::value ? value_pointer(p) : state_pointer(p, slot);
    backend_.download(out, from, static_cast<size_t>(p.size) * sizeof(float));
    return;
  }
  std::vector<uint16_t> bits(static_cast<size_t>(std::min(p.size, kChunk)));
  const uint16_t* from = static_cast<const uint16_t*>(value_pointer(p));
  for (int64_t start = 0; start < p.size; start += kChunk) {
    const int64_t n = std::min(kChunk, p.size - start);
    backend_.download(bits.data(), from + start, static_cast<size_t>(n) * 2);
    for (int64_t i = 0; i < n; ++i) out[start + i] = bf16_to_float(bits[static_cast<size_t>(i)]);
  }
}

void Parameters::write_values(const Parameter& p, int64_t start, int64_t count, const float* in) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (p.dtype == DType::f32) return backend_.upload(static_cast<float*>(value_pointer(p)) + start, in, bytes);
  std::vector<uint16_t> bits(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) bits[static_cast<size_t>(i)] = float_to_bf16(in[i]);
  backend_.upload(static_cast<uint16_t*>(value_pointer(p)) + start, bits.data(), bits.size() * 2);
  if (master_ && p.state_offset >= 0) backend_.upload(master_->floats() + p.state_offset + start, in, bytes);
}

void Parameters::write(const Parameter& p, Slot slot, const float* in) {
  if (slot != Slot::value) return backend_.upload(state_pointer(p, slot), in, static_cast<size_t>(p.size) * sizeof(float));
  for (int64_t start = 0; start < p.size; start += kChunk) write_values(p, start, std::min(kChunk, p.size - start), in + start);
}

void Parameters::read_raw_bf16(const Parameter& p, uint16_t* out) {
  if (p.dtype == DType::bf16) return backend_.download(out, value_pointer(p), static_cast<size_t>(p.size) * 2);
  std::vector<float> values(static_cast<size_t>(p.size));
  read(p, Slot::value, values.data());
  for (int64_t i = 0; i < p.size; ++i) out[i] = float_to_bf16(values[static_cast<size_t>(i)]);
}

void Parameters::initialize(const Parameter& p, const std::string& kind, float scale, uint64_t seed) {
  require(kind == "normal" || kind == "constant", "ERR_ARGUMENT", "[Model.initialize] Expected kind to be 'normal' or 'constant' but received '" + kind + "'");
  const Block staged(backend_, static_cast<size_t>(std::min(p.size, kChunk) + 1) * sizeof(float));
  std::vector<float> values(backend_.has_host_memory() ? 0 : static_cast<size_t>(std::min(p.size, kChunk)));
  const float* const filled = backend_.has_host_memory() ? staged.floats() : values.data();
  for (int64_t start = 0; start < p.size; start += kChunk) {
    const int64_t n = std::min(kChunk, p.size - start);
    if (kind == "normal") backend_.fill_normal(staged.floats(), n, start, seed ^ hash_name(p.name), scale);
    else backend_.fill(staged.floats(), scale, n);
    if (!backend_.has_host_memory()) backend_.download(values.data(), staged.data(), static_cast<size_t>(n) * sizeof(float));
    write_values(p, start, n, filled);
  }
}

Weight Parameters::weight(const std::string& name) const {
  const size_t first = index_.at(find(name).name);
  Weight w = own_weight(list_[first]);
  for (size_t i = first + 1; i < list_.size() && list_[i].joined; ++i) w.rows += list_[i].shape[0];
  return w;
}

Weight Parameters::own_weight(const Parameter& p) const { return Weight{value_pointer(p), p.dtype, p.shape[0], p.shape[0] ? p.size / p.shape[0] : 0}; }

std::vector<const Parameter*> Parameters::parts(const std::string& name) const {
  const size_t first = index_.at(find(name).name);
  std::vector<const Parameter*> list{&list_[first]};
  for (size_t i = first + 1; i < list_.size() && list_[i].joined; ++i) list.push_back(&list_[i]);
  return list;
}

void Parameters::write_bits(const Parameter& p, const void* bits) {
  backend_.copy(value_pointer(p), bits, static_cast<size_t>(p.size) * dtype_bytes(p.dtype));
  if (!master_ || p.state_offset < 0 || p.dtype == DType::f32) return;
  std::vector<float> values(static_cast<size_t>(p.size));
  read(p, Slot::value, values.data());
  backend_.upload(master_->floats() + p.state_offset, values.data(), values.size() * sizeof(float));
}

const float* Parameters::vector(const std::string& name) const { return static_cast<const float*>(value_pointer(find(name))); }

}  // namespace plumbline
