#include "adapters.h"

#include "../core/error.h"

namespace plumbline {

Adapters::Adapters(Backend& backend, Parameters& parameters, const std::vector<AdapterSpec>& specs) : backend_(backend), parameters_(parameters) {
  for (const AdapterSpec& spec : specs) {
    index_.emplace(spec.target, specs_.size());
    specs_.push_back({spec, false, nullptr});
  }
}

const AdapterSpec* Adapters::find(const std::string& target) const {
  const auto found = index_.find(target);
  return found == index_.end() || specs_[found->second].is_merged ? nullptr : &specs_[found->second].spec;
}

std::vector<float> Adapters::merged_value(const Parameter& p) const {
  std::vector<float> values(static_cast<size_t>(p.size));
  parameters_.read(p, Slot::value, values.data());
  constexpr size_t kSuffix = sizeof(".weight") - 1;
  const AdapterSpec* spec = p.name.size() > kSuffix ? find(p.name.substr(0, p.name.size() - kSuffix)) : nullptr;
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
  require(!specs_.empty(), "ERR_ARGUMENT", "[mergeAdapter] Expected a model with an adapter but received one without; load it with the option adapter");
  require(active(), "ERR_ARGUMENT", "[mergeAdapter] Expected an adapter that is not merged but received one that is");
  backend_.set_cancel(nullptr);  // half of a matrix would be weights of no model at all
  for (One& one : specs_) {
    if (one.is_merged) continue;
    const Parameter& p = parameters_.find(one.spec.target + ".weight");
    const std::vector<float> values = merged_value(p);
    std::unique_ptr<Block> base;
    if (keep_base) {
      const size_t bytes = static_cast<size_t>(p.size) * dtype_bytes(p.dtype);
      base = std::make_unique<Block>(backend_, bytes);
      backend_.copy(base->data(), parameters_.own_weight(p).data, bytes);
    }
    parameters_.write(p, Slot::value, values.data());
    one.base = std::move(base), one.is_merged = true;
    ++merged_;
  }
}

void Adapters::unmerge() {
  require(merged_ > 0, "ERR_ARGUMENT", "[unmergeAdapter] Expected an adapter that is merged but received one that is not");
  for (const One& one : specs_)
    require(!one.is_merged || one.base, "ERR_ARGUMENT", "[unmergeAdapter] Expected an adapter that was merged with keepBase but received one without; load the model again");
  for (One& one : specs_) {
    if (!one.is_merged) continue;
    parameters_.write_bits(parameters_.find(one.spec.target + ".weight"), one.base->data());
    one.base.reset(), one.is_merged = false;
    --merged_;
  }
}

size_t Adapters::bytes() const {
  size_t sum = 0;
  for (const One& one : specs_) sum += one.base ? one.base->bytes() : 0;
  return sum;
}

}  // namespace plumbline
