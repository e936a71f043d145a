#pragma once
// The linear layers of a model, forward and backward: the matrix with its bias, and the adapters on top of each part of it.
#include <cstdint>
#include <string>

#include "memory.h"
#include "model.h"

namespace plumbline {

class LinearLayers {
 public:
  LinearLayers(Model& model, Pool& pool) : model_(model), pool_(pool) {}

  // y [rows, out] (+)= W x + b + s B A drop(x). `name`: of the layer, without ".weight"; of joined layers the first, whose output they
  // share. dropout_key: which elements are dropped; 0: none.
  void forward(const std::string& name, const float* x, float* y, int64_t rows, bool accumulate, uint64_t dropout_key);
  // Adds the parameters' gradients; overwrites dx [rows, in] where it is not null. x and dropout_key as in forward.
  void backward(const std::string& name, const float* dy, const float* x, float* dx, int64_t rows, uint64_t dropout_key);

 private:
  struct Part;
  template <typename Visit>
  void each_adapter(const std::string& name, int64_t rows, const float* x, uint64_t dropout_key, const Visit& visit);

  Model& model_;
  Pool& pool_;
};

}  // namespace plumbline
