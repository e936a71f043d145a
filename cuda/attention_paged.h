#pragma once
// Host side of the f32 attention kernels: their arguments, uploaded together with what an operation adds.
#include "attention_tile.cuh"
#include "cuda_backend.h"
#include "dtype.cuh"

namespace plumbline {

class PagedUpload {
 public:
  PagedUpload(CudaBackend& backend, const char* op, const AttentionShape& shape, const float* q, const KeyValuePages& pages)
      : upload(backend, op), shape_(shape), pages_(pages), q_(q) {
    const int64_t B = shape.B, count = B > 0 ? pages.page_start_B1[B] : 0;
    k_ = upload.add(pages.k, count);
    v_ = upload.add(pages.v, count);
    page_start_ = upload.add(pages.page_start_B1, B + 1);
    cu_q_ = upload.add(shape.cu_q_B1, B + 1);
    kv_len_ = upload.add(shape.kv_len_B, B);
    is_vector_ = shape.d % 4 == 0 && pages.row_stride % 4 == 0 && pages.head_stride % 4 == 0 && shape.q_row_stride % 4 == 0 && is_aligned_16(q);
    check_alignment(pages.k);
    check_alignment(pages.v);
  }
  // Pages of the same geometry, and rows, that the kernels read or write as well.
  CudaBackend::Upload::Handle<float*> add_pages(float* const* list) {
    check_alignment(list);
    return upload.add(list, shape_.B > 0 ? pages_.page_start_B1[shape_.B] : 0);
  }
  void add_rows(const void* rows) { is_vector_ = is_vector_ && is_aligned_16(rows); }
  PagedAttention arguments() const {
    return {q_, upload[k_], upload[v_], upload[page_start_], upload[cu_q_], upload[kv_len_], pages_.head_stride, pages_.row_stride, shape_.q_row_stride,
            pages_.page_rows, shape_.H, shape_.Hkv, shape_.d, shape_.scale, shape_.causal, is_vector_};
  }
  CudaBackend::Upload upload;

 private:
  void check_alignment(float* const* list) {
    for (int32_t i = 0; shape_.B > 0 && i < pages_.page_start_B1[shape_.B]; ++i) is_vector_ = is_vector_ && is_aligned_16(list[i]);
  }
  const AttentionShape& shape_;
  const KeyValuePages& pages_;
  const float* q_;
  bool is_vector_;
  CudaBackend::Upload::Handle<float*> k_{}, v_{};
  CudaBackend::Upload::Handle<int32_t> page_start_{}, cu_q_{}, kv_len_{};
};

}  // namespace plumbline
