#pragma once
// Contiguous keys and values, rows [Tk, Hkv, d], in the form that the backend's attention wants: pages of kPageRows rows.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/backend.h"

namespace plumbline {

class ContiguousPages {
 public:
  static constexpr int32_t kPageRows = 64;

  ContiguousPages(const std::vector<int32_t>& cu_k, int64_t kv_heads, int64_t head_dim, const float* k, const float* v)
      : row_(kv_heads * head_dim), head_(head_dim) {
    start_.push_back(0);
    for (size_t b = 0; b + 1 < cu_k.size(); ++b) {
      for (int64_t row = cu_k[b]; row < cu_k[b + 1]; row += kPageRows) {
        k_.push_back(const_cast<float*>(k) + row * row_);
        v_.push_back(const_cast<float*>(v) + row * row_);
      }
      start_.push_back(static_cast<int32_t>(k_.size()));
    }
  }
  KeyValuePages pages() const { return KeyValuePages{k_.data(), v_.data(), start_.data(), head_, row_, kPageRows}; }
  float* const* k() const { return k_.data(); }
  float* const* v() const { return v_.data(); }

 private:
  int64_t row_, head_;
  std::vector<float*> k_, v_;
  std::vector<int32_t> start_;
};

}  // namespace plumbline
