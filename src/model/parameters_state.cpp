// Training state of the parameters: gradients, moments, masters, and the optimiser's step.
#include <algorithm>
#include <cmath>

#include "../core/error.h"
#include "parameters.h"

namespace plumbline {

namespace {

constexpr int64_t kAlignedFloats = 16;

}  // namespace

float* Parameters::state_pointer(const Parameter& p, Slot slot) {
  if (slot == Slot::master && p.dtype == DType::f32) return static_cast<float*>(value_pointer(p));
  Block* arena = slot == Slot::gradient ? gradient_.get() : slot == Slot::first ? first_.get() : slot == Slot::second ? second_.get() : master_.get();
  require(arena != nullptr && p.state_offset >= 0, "ERR_ARGUMENT", "[Model] Expected training to be enabled, with '" + p.name + "' trainable, before its gradient or optimiser state is used");
  return arena->floats() + p.state_offset;
}

bool Parameters::wanted(size_t first) const {
  bool any = list_[first].trainable;
  for (size_t i = first + 1; i < list_.size() && list_[i].joined; ++i) any = any || list_[i].trainable;
  return any;
}

float* Parameters::gradient(const std::string& name) {
  const size_t first = index_.at(find(name).name);
  return gradient_ && list_[first].state_offset >= 0 && wanted(first) ? gradient_->floats() + list_[first].state_offset : nullptr;
}

Parameters::LinearGradient Parameters::linear_gradient(const std::string& weight, const std::string& bias) {
  float* db = gradient(bias);
  float* dw = gradient(weight);
  if (db && !dw) dw = gradient_->floats() + find(weight).state_offset;
  return {dw, db};
}

// Joined parameters have state together, and a matrix whose bias is trained has it too: one product makes both gradients.
std::vector<int64_t> Parameters::state_layout(int64_t* total) const {
  std::vector<int64_t> offsets(list_.size(), -1);
  *total = 0;
  for (size_t first = 0, end; first < list_.size(); first = end) {
    for (end = first + 1; end < list_.size() && list_[end].joined;) ++end;
    constexpr size_t kSuffix = sizeof("weight") - 1;
    const std::string& name = list_[first].name;
    const auto bias = list_[first].shape.size() < 2 || name.size() < kSuffix ? index_.end() : index_.find(name.substr(0, name.size() - kSuffix) + "bias");
    if (!wanted(first) && (bias == index_.end() || !wanted(bias->second))) continue;
    *total = (*total + kAlignedFloats - 1) / kAlignedFloats * kAlignedFloats;
    for (size_t i = first; i < end; ++i) offsets[i] = *total, *total += list_[i].size;
  }
  return offsets;
}

void Parameters::enable_training() {
  int64_t total = 0;
  const std::vector<int64_t> offsets = state_layout(&total);
  if (gradient_ && std::equal(offsets.begin(), offsets.end(), list_.begin(), [](int64_t offset, const Parameter& p) { return offset == p.state_offset; })) return;
  gradient_.reset(), first_.reset(), second_.reset();
  const size_t bytes = static_cast<size_t>(std::max<int64_t>(total, 1)) * sizeof(float);
  auto gradient = std::make_unique<Block>(backend_, bytes), first = std::make_unique<Block>(backend_, bytes), second = std::make_unique<Block>(backend_, bytes);
  const bool has_masters = std::any_of(list_.begin(), list_.end(), [&](const Parameter& p) { return p.dtype == DType::bf16 && offsets[static_cast<size_t>(&p - list_.data())] >= 0; });
  auto master = has_masters ? std::make_unique<Block>(backend_, bytes) : nullptr;
  for (Block* block : {gradient.get(), first.get(), second.get()}) backend_.fill(block->floats(), 0.0f, total);
  for (size_t i = 0; i < list_.size(); ++i) {
    const int64_t before = master_ ? list_[i].state_offset : -1;
    list_[i].state_offset = offsets[i];
    if (offsets[i] < 0 || list_[i].dtype == DType::f32) continue;
    const size_t size = static_cast<size_t>(list_[i].size);
    if (before >= 0) {  // it holds more than the bf16 value
      backend_.copy(master->floats() + offsets[i], master_->floats() + before, size * sizeof(float));
      continue;
    }
    std::vector<float> values(size);
    read(list_[i], Slot::value, values.data());
    backend_.upload(master->floats() + offsets[i], values.data(), size * sizeof(float));
  }
  total_ = total;
  gradient_ = std::move(gradient), first_ = std::move(first), second_ = std::move(second), master_ = std::move(master);
}

void Parameters::zero_gradients() {
  if (gradient_) backend_.fill(gradient_->floats(), 0.0f, total_);
}

double Parameters::gradient_norm() {
  require(gradient_ != nullptr, "ERR_ARGUMENT", "[Model] Expected training to be enabled before gradients are used");
  std::vector<FloatSpan> spans;
  for (const Parameter& p : list_)
    if (p.trainable) spans.push_back({state_pointer(p, Slot::gradient), p.size});
  return std::sqrt(backend_.sum_squares(spans.data(), static_cast<int64_t>(spans.size()), DType::f32));
}

double Parameters::step(const OptimizerOptions& options) {
  const double norm = gradient_norm();
  // As the reference: min(1, max / (norm + 1e-6))
  const float factor = options.max_norm > 0 ? static_cast<float>(std::min(1.0, options.max_norm / (norm + 1e-6))) : 1.0f;
  if (!std::isfinite(norm)) return norm;  // the caller decides; the weights stay as they are
  backend_.set_cancel(nullptr);           // an update that stops half-way would leave weights of no step at all
  for (const Parameter& p : list_) {
    if (!p.trainable) continue;
    AdamWUpdate update{};
    update.master = state_pointer(p, Slot::master);
    update.working = p.dtype == DType::bf16 ? static_cast<uint16_t*>(value_pointer(p)) : nullptr;
    update.gradient = state_pointer(p, Slot::gradient);
    update.first = state_pointer(p, Slot::first);
    update.second = state_pointer(p, Slot::second);
    update.size = p.size;
    update.learning_rate = options.learning_rate;
    update.beta1 = options.beta1, update.beta2 = options.beta2;
    update.epsilon = options.epsilon, update.weight_decay = options.weight_decay;
    update.clip_factor = factor;
    update.step = options.step;
    backend_.adamw(update);
  }
  return norm;
}

size_t Parameters::bytes() const {
  size_t sum = value_ ? value_->bytes() : 0;
  for (const Block* block : {gradient_.get(), first_.get(), second_.get(), master_.get()}) sum += block ? block->bytes() : 0;
  return sum;
}

}  // namespace plumbline
