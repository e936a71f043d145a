#include "adapters.h"

#include "../core/error.h"

namespace plumbline {

Adapters::Adapters(Backend& backend, Parameters& parameters, const std::vector<AdapterSpec>& specs) : backend_(backend), parameters_(parameters), specs_(specs) {
  for (size_t i = 0; i < specs_.size(); ++i) index_.emplace(specs_[i].target, i);
}

const AdapterSpec* Adapters::find(const std::string& target) const {
  const auto found = index_.find(target);
  return found == index_.end() ? nullptr : &specs_[found->second];
}

std::vector<float> Adapters::merged_value(const Parameter& p) const {
  std::vector<float> values(static_cast<size_t>(p.size));
  parameters_.read(p, Slot::value, values.data());
  constexpr size_t kSuffix = sizeof(".weight") - 1;
  const AdapterSpec* spec = p.name.size() > kSuffix && !merged_ ? find(p.name.substr(0, p.name.size() - kSuffix)) : nullptr;
  if (spec == nullptr) return values;
  const Parameter& b = parameters_.find(name_of_b(spec->target));
  const int64_t out = p.shape[0];
  const Block sum(backend_, values.size() * sizeof(float)), scaled(backend_, static_cast<size_t>(b.size) * sizeof(float));
  backend_.upload(sum.data(), values.data(), sum.bytes());
  backend_.scale_columns(parameters_.vector(b.name), b.size, spec->scale, scaled.floats(), b.size, 1, b.size, false);
  backend_.linear_grad_input(scaled.floats(), parameters_.weight(name_of_a(spec->target)), sum.floats(), out, true);  // [out, r] times [r, in]
  backend_.download(values.data(), sum.data(), sum.bytes());
  return values;
}

void Adapters::merge(bool keep_base) {
  require(!specs_.empty(), "ERR_ARGUMENT", "[mergeAdapter] Expected a model with an adapter but received one without");
  require(!merged_, "ERR_ARGUMENT", "[mergeAdapter] Expected an adapter that is not merged but received one that is");
  std::vector<std::pair<std::string, std::unique_ptr<Block>>> base;
  if (keep_base)  // all of it before anything is changed: memory may run out
    for (const AdapterSpec& spec : specs_) {
      const Parameter& p = parameters_.find(spec.target + ".weight");
      const Weight w = parameters_.own_weight(p);
      const size_t bytes = static_cast<size_t>(p.size) * dtype_bytes(p.dtype);
      base.emplace_back(p.name, std::make_unique<Block>(backend_, bytes));
      backend_.copy(base.back().second->data(), w.data, bytes);
    }
  backend_.set_cancel(nullptr);  // half of it would be weights of no model at all
  for (const AdapterSpec& spec : specs_) {
    const Parameter& p = parameters_.find(spec.target + ".weight");
    const std::vector<float> values = merged_value(p);
    parameters_.write(p, Slot::value, values.data());
  }
  base_ = std::move(base);
  merged_ = true;
}

void Adapters::unmerge() {
  require(merged_, "ERR_ARGUMENT", "[unmergeAdapter] Expected an adapter that is merged but received one that is not");
  require(!base_.empty(), "ERR_ARGUMENT", "[unmergeAdapter] Expected an adapter that was merged with keepBase but received one without; load the model again");
  for (const auto& [name, block] : base_) parameters_.write_bits(parameters_.find(name), block->data());
  base_.clear();
  merged_ = false;
}

size_t Adapters::bytes() const {
  size_t sum = 0;
  for (const auto& kept : base_) sum += kept.second->bytes();
  return sum;
}

}  // namespace plumbline
