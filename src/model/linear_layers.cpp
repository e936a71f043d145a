#include "linear_layers.h"

#include "../core/mix.h"

namespace plumbline {

// One adapted layer among those joined.
struct LinearLayers::Part {
  const AdapterSpec& spec;
  Weight a, b;          // [r, in], [out, r]
  int64_t column;       // of its output among those of all parts
  uint64_t key;         // 0: no dropout
  const float* input;   // x, or what dropout left of it
  float* low;           // [rows, r] s A drop(x)
};

namespace {

std::string layer_of(const Parameter& weight) { return weight.name.substr(0, weight.name.size() - (sizeof(".weight") - 1)); }

}  // namespace

template <typename Visit>
void LinearLayers::each_adapter(const std::string& name, int64_t rows, const float* x, uint64_t dropout_key, const Visit& visit) {
  if (!model_.adapters.active()) return;
  Backend& backend = *model_.backend;
  const Parameters& p = model_.parameters;
  int64_t column = 0;
  for (const Parameter* weight : p.parts(name + ".weight")) {
    const std::string target = layer_of(*weight);
    const int64_t first = column;
    column += weight->shape[0];
    const AdapterSpec* spec = model_.adapters.find(target);
    if (spec == nullptr) continue;
    const Weight a = p.weight(Adapters::name_of_a(target)), b = p.weight(Adapters::name_of_b(target));
    const uint64_t key = spec->dropout > 0 ? derive_key(dropout_key, hash_name(target)) : 0;
    Buffer dropped;
    if (key != 0) {
      dropped = pool_.take(rows * a.cols);
      backend.dropout(x, spec->dropout, key, dropped->floats(), rows * a.cols, false);
    }
    const float* input = key != 0 ? dropped->floats() : x;
    Buffer low = pool_.take(rows * a.rows);
    backend.linear(input, a, nullptr, low->floats(), rows, false);
    backend.scale_columns(low->floats(), a.rows, spec->scale, low->floats(), a.rows, rows, a.rows, false);
    visit(Part{*spec, a, b, first, key, input, low->floats()});
  }
}

void LinearLayers::forward(const std::string& name, const float* x, float* y, int64_t rows, bool accumulate, uint64_t dropout_key) {
  Backend& backend = *model_.backend;
  const Parameters& p = model_.parameters;
  const Weight w = p.weight(name + ".weight");
  backend.linear(x, w, p.has(name + ".bias") ? p.vector(name + ".bias") : nullptr, y, rows, accumulate);
  each_adapter(name, rows, x, dropout_key, [&](const Part& part) {
    if (part.b.rows == w.rows) return backend.linear(part.low, part.b, nullptr, y, rows, true);
    const Buffer up = pool_.take(rows * part.b.rows);
    backend.linear(part.low, part.b, nullptr, up->floats(), rows, false);
    backend.scale_columns(up->floats(), part.b.rows, 1.0f, y + part.column, w.rows, rows, part.b.rows, true);
  });
}

void LinearLayers::backward(const std::string& name, const float* dy, const float* x, float* dx, int64_t rows, uint64_t dropout_key) {
  Backend& backend = *model_.backend;
  Parameters& p = model_.parameters;
  const Weight w = p.weight(name + ".weight");
  const std::string bias = name + ".bias";
  const auto g = p.has(bias) ? p.linear_gradient(name + ".weight", bias) : Parameters::LinearGradient{p.gradient(name + ".weight"), nullptr};
  if (g.weight) backend.linear_grad_weight(dy, x, g.weight, g.bias, rows, w.rows, w.cols);
  if (dx) backend.linear_grad_input(dy, w, dx, rows, false);
  each_adapter(name, rows, x, dropout_key, [&](const Part& part) {
    const int64_t out = part.b.rows, rank = part.a.rows, in = part.a.cols;
    Buffer own;
    if (out != w.rows) {
      own = pool_.take(rows * out);
      backend.scale_columns(dy + part.column, w.rows, 1.0f, own->floats(), out, rows, out, false);
    }
    const float* dup = own ? own->floats() : dy;
    if (float* db = p.gradient(Adapters::name_of_b(part.spec.target))) backend.linear_grad_weight(dup, part.low, db, nullptr, rows, out, rank);
    const Buffer dlow = pool_.take(rows * rank);
    backend.linear_grad_input(dup, part.b, dlow->floats(), rows, false);
    backend.scale_columns(dlow->floats(), rank, part.spec.scale, dlow->floats(), rank, rows, rank, false);
    if (float* da = p.gradient(Adapters::name_of_a(part.spec.target))) backend.linear_grad_weight(dlow->floats(), part.input, da, nullptr, rows, rank, in);
    if (!dx) return;
    if (part.key == 0) return backend.linear_grad_input(dlow->floats(), part.a, dx, rows, true);
    const Buffer dinput = pool_.take(rows * in);
    backend.linear_grad_input(dlow->floats(), part.a, dinput->floats(), rows, false);
    backend.dropout(dinput->floats(), part.spec.dropout, part.key, dx, rows * in, true);
  });
}

}  // namespace plumbline
