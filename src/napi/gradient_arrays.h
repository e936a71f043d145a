#pragma once
// Gradients that an operation reads: a Float32Array, a Tensor, or a Uint16Array of f16 or bf16 bits.
#include <memory>
#include <vector>

#include "float_arrays.h"

namespace plumbline {

class GradientInput {
 public:
  GradientInput(const Argument& from, DType dtype, int64_t count = kAnyCount) : dtype_(dtype) {
    if (dtype == DType::f32) floats_ = FloatInput(from, count);
    else halves_ = from.u16(count);
  }
  int64_t size() const { return dtype_ == DType::f32 ? floats_.size() : static_cast<int64_t>(halves_.size()); }
  DType dtype() const { return dtype_; }
  const void* at(Backend& backend) {  // job thread
    if (dtype_ == DType::f32) return floats_.at(backend);
    if (!staged_) staged_ = std::make_shared<Staged<uint16_t>>(backend, halves_);
    return staged_->data();
  }

 private:
  DType dtype_;
  FloatInput floats_;
  std::vector<uint16_t> halves_;
  std::shared_ptr<Staged<uint16_t>> staged_;  // shared: jobs are kept in std::function, which copies
};

inline DType read_dtype(const Argument& from) {
  constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};
  return kTypes[from.choice({"f32", "f16", "bf16"})];
}

}  // namespace plumbline
