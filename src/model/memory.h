#pragma once
// Owned backend memory, and a pool of blocks by size so that a steady state allocates nothing.
#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "../core/backend.h"

namespace plumbline {

class Block {
 public:
  Block(Backend& backend, size_t bytes, bool zeroed = false)
      : backend_(&backend), bytes_(bytes), data_(zeroed ? backend.allocate_zeroed(bytes) : backend.allocate(bytes)) {}
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

// Hands out blocks and keeps returned ones for reuse. Ragged batches ask for slightly different sizes each step, so a block
// up to half as large again as asked serves too.
class Pool {
 public:
  explicit Pool(Backend& backend) : backend_(backend) {}

  class Returner {
   public:
    explicit Returner(Pool* pool = nullptr) : pool_(pool) {}
    void operator()(Block* block) const { pool_->give_back(block); }

   private:
    Pool* pool_;
  };
  using Buffer = std::unique_ptr<Block, Returner>;

  Buffer take(int64_t floats) {
    const size_t bytes = static_cast<size_t>(floats > 0 ? floats : 1) * sizeof(float);
    const size_t rounded = (bytes + bytes / 8 + 4095) / 4096 * 4096;
    auto found = free_.lower_bound(bytes);
    std::unique_ptr<Block> block;
    if (found != free_.end() && found->first <= std::max(rounded, bytes + bytes / 2)) {
      block = std::move(found->second);
      free_.erase(found);
    } else {
      block = std::make_unique<Block>(backend_, rounded);
      held_ += rounded;
    }
    used_ += block->bytes();
    peak_ = std::max(peak_, used_);
    return Buffer(block.release(), Returner(this));
  }
  size_t bytes() const { return held_; }
  // Gives free blocks back when they are more than the largest use since the last call: one long batch must not keep its memory
  // for life, and batches of about the same size must not allocate.
  void trim() {
    if (held_ > 2 * peak_) {
      for (const auto& entry : free_) held_ -= entry.first;
      free_.clear();
    }
    peak_ = used_;
  }

 private:
  void give_back(Block* block) {
    used_ -= block->bytes();
    free_.emplace(block->bytes(), std::unique_ptr<Block>(block));
  }
  Backend& backend_;
  std::multimap<size_t, std::unique_ptr<Block>> free_;
  size_t held_ = 0, used_ = 0, peak_ = 0;
};

using Buffer = Pool::Buffer;

}  // namespace plumbline
