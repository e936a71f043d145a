// scale_columns: to[t, c] (+)= scale from[t, c] for a block of columns;   dropout: y[i] (+)= kept(key, i) x[i] / (1 - rate)
//   in   from, x, f32; rows of any stride           out  to, y, f32
//   how  elementwise; which elements are dropped depends on key and index alone, as on the CPU
//   cost a thread an element, coalesced along the row: bound by memory
//   limits: none
#include "../src/core/mix.h"
#include "cuda_backend.h"

namespace plumbline {
namespace {

constexpr int kThreads = 256;

template <bool kAccumulate>
__global__ void __launch_bounds__(kThreads) scale_columns_kernel(const float* from, int64_t from_stride, float scale, float* to, int64_t to_stride, int64_t T, int64_t C) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= T * C) return;
  const int64_t t = i / C, c = i % C;
  float& y = to[t * to_stride + c];
  const float value = scale * from[t * from_stride + c];
  y = kAccumulate ? y + value : value;
}

template <bool kAccumulate>
__global__ void __launch_bounds__(kThreads) dropout_kernel(const float* x, float scale, uint32_t limit, uint64_t mixed_key, float* y, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const float value = is_kept(mixed_key, i, limit) ? scale * x[i] : 0.0f;
  y[i] = kAccumulate ? y[i] + value : value;
}

}  // namespace

void CudaBackend::scale_columns(const float* from, int64_t from_stride, float scale, float* to, int64_t to_stride, int64_t T, int64_t C, bool accumulate) {
  poll();
  if (T * C <= 0) return;
  const auto kernel = accumulate ? scale_columns_kernel<true> : scale_columns_kernel<false>;
  check(launch(kernel, dim3(blocks_of(T * C, kThreads)), dim3(kThreads), 0, stream(), from, from_stride, scale, to, to_stride, T, C), "scale_columns");
}

void CudaBackend::dropout(const float* x, float rate, uint64_t key, float* y, int64_t size, bool accumulate) {
  poll();
  if (size <= 0) return;
  const auto kernel = accumulate ? dropout_kernel<true> : dropout_kernel<false>;
  check(launch(kernel, dim3(blocks_of(size, kThreads)), dim3(kThreads), 0, stream(), x, 1.0f / (1.0f - rate), dropout_limit(rate), mix(key), y, size), "dropout");
}

}  // namespace plumbline
