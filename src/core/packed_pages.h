#pragma once
// Packed keys and values (S, Hkv, d) in the form that Backend::attention wants: one page for each sequence that has keys.
#include <algorithm>
#include <vector>

#include "backend.h"

namespace plumbline {

class PackedPages {
 public:
  explicit PackedPages(const RaggedAttention& shape) : shape_(shape), row_stride_(int64_t{shape.Hkv} * shape.d) {
    for (int32_t b = 0; b < shape.B; ++b) {
      kv_len_.push_back(shape.cu_k_B1[b + 1] - shape.cu_k_B1[b]);
      start_.push_back(start_.back() + (kv_len_.back() > 0 ? 1 : 0));
      page_rows_ = std::max(page_rows_, kv_len_.back());
    }
  }
  std::vector<float*> pages_of(const float* rows_SHd) const {
    std::vector<float*> list;
    for (int32_t b = 0; b < shape_.B; ++b)
      if (kv_len_[b] > 0) list.push_back(const_cast<float*>(rows_SHd) + shape_.cu_k_B1[b] * row_stride_);
    return list;
  }
  KeyValuePages view(const std::vector<float*>& k, const std::vector<float*>& v) const { return {k.data(), v.data(), start_.data(), shape_.d, row_stride_, page_rows_}; }
  AttentionShape attention() const {
    return {shape_.B, shape_.cu_q_B1, kv_len_.data(), shape_.H, shape_.Hkv, shape_.d, shape_.scale, shape_.causal, int64_t{shape_.H} * shape_.d};
  }

 private:
  const RaggedAttention& shape_;
  int64_t row_stride_;
  int32_t page_rows_ = 1;
  std::vector<int32_t> start_{0}, kv_len_;
};

inline int64_t query_size(const RaggedAttention& s) { return s.B > 0 ? int64_t{s.cu_q_B1[s.B]} * s.H * s.d : 0; }
inline int64_t key_size(const RaggedAttention& s) { return s.B > 0 ? int64_t{s.cu_k_B1[s.B]} * s.Hkv * s.d : 0; }

}  // namespace plumbline
