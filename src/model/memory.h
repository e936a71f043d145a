#pragma once
// Owned backend memory, and a pool of blocks by size so that a steady state allocates nothing.
#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "../core/backend.h"

namespace plumbline {

class Block {
 public:
  Block(Backend& backend, size_t bytes) : backend_(&backend), bytes_(bytes), data_(backend.allocate(bytes)) {}
  ~Block() { backend_->release(data_, bytes_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_;
  size_t bytes_;
  void* data_;
};

}  // namespace plumbline
