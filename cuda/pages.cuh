#pragma once
// The pages of a pass's sequences as kernels see them, and where a packed row's keys and values lie.
#include "cuda_backend.h"
#include "dtype.cuh"

namespace plumbline {

struct DevicePages {
  float* const *k, *const *v;
  const int32_t *page_start_B1, *cu_q_B1, *first_row_B;
  int64_t head_stride, row_stride;
  int32_t B, page_rows;
};

// The host arrays of a pass, on their way to the device.
class PageUpload {
 public:
  PageUpload(CudaBackend& backend, const char* op, const AttentionShape& shape, const int32_t* first_row_B, const KeyValuePages& pages)
      : up_(backend, op), pages_(pages), B_(shape.B), k_(up_.add(pages.k, pages.page_start_B1[B_])), v_(up_.add(pages.v, pages.page_start_B1[B_])),
        page_start_(up_.add(pages.page_start_B1, B_ + 1)), cu_q_(up_.add(shape.cu_q_B1, B_ + 1)), first_row_(up_.add(first_row_B, B_)) {
    up_.send();
  }
  DevicePages pages() const {
    return {up_[k_], up_[v_], up_[page_start_], up_[cu_q_], up_[first_row_], pages_.head_stride, pages_.row_stride, B_, pages_.page_rows};
  }
  bool is_aligned_16() const {  // every head of every row
    bool is = pages_.head_stride % 4 == 0 && pages_.row_stride % 4 == 0;
    for (int32_t p = 0; is && p < pages_.page_start_B1[B_]; ++p) is = plumbline::is_aligned_16(pages_.k[p]) && plumbline::is_aligned_16(pages_.v[p]);
    return is;
  }

 private:
  template <typename T>
  using Handle = CudaBackend::Upload::Handle<T>;
  CudaBackend::Upload up_;
  const KeyValuePages& pages_;
  int32_t B_;
  Handle<float*> k_, v_;
  Handle<int32_t> page_start_, cu_q_, first_row_;
};

// Walks over packed rows in ascending order; a page's address is loaded when the page changes.
class PageCursor {
 public:
  PLUMBLINE_DEVICE PageCursor(const DevicePages& pages, int64_t t) : pages_(pages) {
    int32_t end = pages.B;  // the last sequence that starts at t or before and is not empty: between b and end
    while (end - b_ > 1) {
      const int32_t middle = b_ + (end - b_) / 2;
      if (pages.cu_q_B1[middle] <= t) b_ = middle;
      else end = middle;
    }
    enter();
    move_to(t);
  }
  PLUMBLINE_DEVICE void move_to(int64_t t) {
    while (t >= end_) ++b_, enter();
    const int32_t row = first_row_ + static_cast<int32_t>(t - begin_), page = page_start_ + row / pages_.page_rows;
    offset_ = static_cast<int64_t>(row % pages_.page_rows) * pages_.row_stride;
    if (page == page_) return;
    page_ = page;
    k_ = pages_.k[page], v_ = pages_.v[page];
  }
  PLUMBLINE_DEVICE float* k(int64_t head) const { return k_ + offset_ + head * pages_.head_stride; }
  PLUMBLINE_DEVICE float* v(int64_t head) const { return v_ + offset_ + head * pages_.head_stride; }
  PLUMBLINE_DEVICE int32_t sequence() const { return b_; }
  PLUMBLINE_DEVICE bool is_last(int64_t t) const { return t + 1 == end_; }

 private:
  PLUMBLINE_DEVICE void enter() {
    begin_ = pages_.cu_q_B1[b_], end_ = pages_.cu_q_B1[b_ + 1];
    first_row_ = pages_.first_row_B[b_], page_start_ = pages_.page_start_B1[b_];
  }
  const DevicePages& pages_;
  int32_t b_ = 0, begin_, end_, first_row_, page_start_, page_ = -1;
  int64_t offset_ = 0;
  float *k_ = nullptr, *v_ = nullptr;
};

}  // namespace plumbline
