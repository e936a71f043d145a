// scatter_to_pages, gather_from_pages: rows of packed keys and values into and out of the pages of their sequences.
//   in/out  row i of sequence b <-> key row first_row[b] + i, per kv head d contiguous floats, f32
//   how     plain copies, every row on its own
//   cost    one launch; 8 rows a block of 128 threads, 4 of them in flight in each thread; 16-byte accesses where d and all addresses allow
//           it; reads and writes 8 Hkv d bytes a row, bound by memory. The tables cost one search a block
//   limits: checked by the caller: the pages hold rows first_row[b] .. first_row[b] + rows of b
#include "floats.cuh"
#include "pages.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 8, kInFlight = 4;

struct PackedRows {
  float *k, *v;      // row t, kv head h at + t * row_stride + h * d
  int64_t row_stride;
  int64_t begin, end;
  int32_t Hkv, d;
};

template <bool kGather, int kWidth>
__global__ void __launch_bounds__(kThreads) copy_pages_kernel(PackedRows rows, DevicePages pages) {
  const int64_t first = rows.begin + static_cast<int64_t>(blockIdx.x) * kRows;
  const int32_t per_head = rows.d / kWidth, items = 2 * rows.Hkv * per_head;
  for (int32_t item = threadIdx.x; item < items; item += kThreads) {
    const bool is_v = item >= items / 2;
    const int32_t in_half = is_v ? item - items / 2 : item, head = in_half / per_head;
    const int64_t inside = static_cast<int64_t>(in_half % per_head) * kWidth;
    float* packed = (is_v ? rows.v : rows.k) + head * static_cast<int64_t>(rows.d) + inside;
    PageCursor cursor(pages, first);
    for (int64_t t = first; t < first + kRows && t < rows.end; t += kInFlight) {
      Floats<kWidth> values[kInFlight];
      float* to[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (t + i >= rows.end) break;
        cursor.move_to(t + i);
        float *in_page = (is_v ? cursor.v(head) : cursor.k(head)) + inside, *in_row = packed + (t + i) * rows.row_stride;
        values[i] = load<kWidth>(kGather ? in_page : in_row);
        to[i] = kGather ? in_row : in_page;
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        if (t + i < rows.end) store(to[i], values[i]);
    }
  }
}

template <bool kGather>
void copy_pages(CudaBackend& backend, const char* op, const AttentionShape& shape, const int32_t* first_row_B, float* k_rows, float* v_rows, int64_t row_stride, const KeyValuePages& pages) {
  const int64_t begin = shape.cu_q_B1[0], end = shape.cu_q_B1[shape.B];
  if (begin == end) return;
  const PageUpload up(backend, op, shape, first_row_B, pages);
  const bool is_wide = shape.d % 4 == 0 && row_stride % 4 == 0 && is_aligned_16(k_rows) && is_aligned_16(v_rows) && up.is_aligned_16();
  backend.check(launch(is_wide ? copy_pages_kernel<kGather, 4> : copy_pages_kernel<kGather, 1>, dim3(blocks_of(end - begin, kRows)), dim3(kThreads), 0, backend.stream(),
                       PackedRows{k_rows, v_rows, row_stride, begin, end, shape.Hkv, shape.d}, up.pages()), op);
}

}  // namespace

void CudaBackend::scatter_to_pages(const AttentionShape& shape, const int32_t* first_row_B, const float* k_rows, const float* v_rows, int64_t src_row_stride, const KeyValuePages& pages) {
  poll();
  copy_pages<false>(*this, "scatter_to_pages", shape, first_row_B, const_cast<float*>(k_rows), const_cast<float*>(v_rows), src_row_stride, pages);  // only read
}

void CudaBackend::gather_from_pages(const AttentionShape& shape, const int32_t* first_row_B, float* k_rows, float* v_rows, int64_t row_stride, const KeyValuePages& pages) {
  poll();
  copy_pages<true>(*this, "gather_from_pages", shape, first_row_B, k_rows, v_rows, row_stride, pages);
}

}  // namespace plumbline
