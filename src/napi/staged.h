#pragma once
// Arrays of a job where its backend can reach them: host memory as it is on the CPU, a copy on a device.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../model/memory.h"

namespace plumbline {

template <typename T>
class Staged {  // read by the operation; an empty array is a null pointer on a device
 public:
  Staged(Backend& backend, const std::vector<T>& values) : Staged(backend, values.data(), values.size()) {}
  Staged(Backend& backend, const T* values, size_t size) : data_(values) {
    if (backend.has_host_memory() || values == nullptr) return;
    block_ = std::make_unique<Block>(backend, std::max<size_t>(size, 1) * sizeof(T));
    backend.upload(block_->data(), values, size * sizeof(T));
    data_ = static_cast<const T*>(block_->data());
  }
  const T* data() const { return data_; }

 private:
  const T* data_;
  std::unique_ptr<Block> block_;
};

class Made {  // floats that the operation writes, zero (or given) at first
 public:
  Made(Backend& backend, size_t size) : Made(backend, std::vector<float>(size)) {}
  Made(Backend& backend, std::vector<float> start) : backend_(backend), values_(std::move(start)) {
    if (backend.has_host_memory()) return;
    block_ = std::make_unique<Block>(backend, std::max<size_t>(values_.size(), 1) * sizeof(float));
    backend.upload(block_->data(), values_.data(), values_.size() * sizeof(float));
  }
  float* data() { return block_ ? block_->floats() : values_.data(); }
  size_t size() const { return values_.size(); }
  std::vector<float> take() {  // once, at the end
    if (block_) backend_.download(values_.data(), block_->data(), values_.size() * sizeof(float));
    return std::move(values_);
  }

 private:
  Backend& backend_;
  std::vector<float> values_;
  std::unique_ptr<Block> block_;
};

}  // namespace plumbline
