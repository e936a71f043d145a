#pragma once
// Named parameters (Hugging Face names, classic prefix `model.` / `visual.`) with their gradients and optimiser state.
// Matrices that are multiplied with the same input lie side by side (q, k, v; gate, up), so that one GEMM serves them.
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/backend.h"
#include "memory.h"
#include "spec.h"

namespace plumbline {

struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype;             // storage of the value
  bool trainable = true;
  bool joined = false;     // lies directly behind its predecessor: one GEMM serves both
  int64_t size = 0;        // elements
  size_t value_offset = 0; // bytes into the value arena
  int64_t state_offset = -1;// elements into the f32 arenas: gradient, first, second, master; -1: none, neither it nor what its gradient is made with is trained
};

enum class Slot { value, gradient, first, second, master };

struct OptimizerOptions {
  double learning_rate, beta1, beta2, epsilon, weight_decay, max_norm;  // max_norm 0: no clipping
  int64_t step;                                                        // counts from 1
};

class Parameters {
 public:
  Parameters(Backend& backend, const ModelSpec& spec);
  const std::vector<Parameter>& all() const { return list_; }
  const Parameter& find(const std::string& name) const;  // throws ERR_ARGUMENT
  bool has(const std::string& name) const { return index_.count(name) != 0; }
  void set_trainable(const std::string& name, bool trainable);

  // Slot contents as f32 (values of a bf16 parameter are widened / rounded to nearest even). master of an f32 parameter is its value.
  void read(const Parameter& p, Slot slot, float* out);
  void write(const Parameter& p, Slot slot, const float* in);
  // Where element `start` lies, for writing bytes of a file of this kind ("F32" "F16" "BF16") there; null where they must be converted,
  // kept twice, or taken to a device.
  void* place(const Parameter& p, const std::string& kind, int64_t start) const;
  // Elements start .. start + count from little-endian bytes as a safetensors file holds them, which may lie in their place already.
  // Throws ERR_CHECKPOINT on NaN or infinity, also where a value is too large for bf16.
  void write_raw(const Parameter& p, const std::string& kind, int64_t start, int64_t count, const void* bytes);
  void read_raw_bf16(const Parameter& p, uint16_t* out);
  // The value as it is stored, from a block of the backend.
  void write_bits(const Parameter& p, const void* bits);
  // kind: "normal" (mean 0, standard deviation scale), "constant" (scale). Counter-based: depends on seed, name and index alone.
  void initialize(const Parameter& p, const std::string& kind, float scale, uint64_t seed);

  // The matrix `name` together with those joined to it; a parameter of more than two dimensions is flattened to [shape[0], rest].
  Weight weight(const std::string& name) const;
  // A matrix alone, whatever is joined to it.
  Weight own_weight(const Parameter& p) const;
  // `name` and the parameters joined to it, in order.
  std::vector<const Parameter*> parts(const std::string& name) const;
  const float* vector(const std::string& name) const;
  // Null when gradients are off or neither `name` nor a parameter joined to it is trainable.
  float* gradient(const std::string& name);
  // Gradients of a linear layer's matrix and bias; the matrix's place is given too when only the bias is trainable (one call fills
  // both; a frozen parameter's gradient is never used).
  struct LinearGradient {
    float* weight;
    float* bias;
  };
  LinearGradient linear_gradient(const std::string& weight, const std::string& bias);

  // Room for gradients and moments, all zero, and masters of the parameters that are trainable now. Nothing happens where the room is as
  // it was; else gradients and moments of before are gone. Masters stay.
  void enable_training();
  bool training() const { return gradient_ != nullptr; }
  void zero_gradients();
  // Clips by global norm, updates. Returns the norm before clipping.
  double step(const OptimizerOptions& options);
  double gradient_norm();
  size_t bytes() const;

 private:
  bool wanted(size_t first) const;
  std::vector<int64_t> state_layout(int64_t* total) const;
  void write_values(const Parameter& p, int64_t start, int64_t count, const float* in);
  bool is_stored_as(const Parameter& p, const std::string& kind) const;
  void require_finite(const Parameter& p, DType dtype, int64_t start, int64_t count, const void* values);
  void require_small(const Parameter& p, int64_t start, int64_t count, const float* values);
  void append(const std::string& name, std::vector<int64_t> shape, bool joined = false);
  void append_text(const TextSpec& text);
  void append_vision(const VisionSpec& vision);
  void append_adapter(const AdapterSpec& adapter);
  void* value_pointer(const Parameter& p) const;
  float* state_pointer(const Parameter& p, Slot slot);
  Backend& backend_;
  std::vector<Parameter> list_;
  std::unordered_map<std::string, size_t> index_;
  std::unique_ptr<Block> value_, gradient_, first_, second_, master_;
  DType matrix_dtype_;
  size_t value_bytes_ = 0;
  int64_t total_ = 0;  // elements of each f32 arena
};

}  // namespace plumbline
