#pragma once
// First stage of the backward passes: delta[t, h] = sum_d dout out.                                         (arXiv 2307.08691, alg. 2)
//   how  f32, 8 lanes to a row, each its 16-byte pieces in order, then a tree over the lanes
//   cost reads both once: bound by memory
#include "attention_slice.cuh"
#include "dtype.cuh"

namespace plumbline {

template <typename T>
__global__ void __launch_bounds__(kTileThreads) attention_delta_kernel(const T* dout, const T* out, float* delta, int64_t rows, int d, bool is_vector) {
  constexpr int kSize = Packet<T>::kSize;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kTileThreads / 8);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * (kTileThreads / 8); first < rows; first += step) {
    const int64_t r = first + threadIdx.x / 8;
    float sum = 0.0f;
#pragma unroll 4
    for (int c = threadIdx.x % 8 * kSize; r < rows && c < d; c += 8 * kSize) {
      Packet<T> x{}, y{};
      if (is_vector) {
        x = *reinterpret_cast<const Packet<T>*>(dout + r * d + c), y = *reinterpret_cast<const Packet<T>*>(out + r * d + c);
      } else {
        for (int i = 0; i < kSize && c + i < d; ++i) x.at[i] = dout[r * d + c + i], y.at[i] = out[r * d + c + i];
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum = fmaf(to_float(x.at[i]), to_float(y.at[i]), sum);
    }
    for (int bits = 4; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullMask, sum, bits);
    if (r < rows && threadIdx.x % 8 == 0) delta[r] = sum;
  }
}

template <typename T>
cudaError_t launch_delta(const T* dout, const T* out, float* delta, int64_t rows, int d, bool is_vector, cudaStream_t stream) {
  return launch(attention_delta_kernel<T>, dim3(blocks_of(rows, kTileThreads / 8, 1 << 20)), dim3(kTileThreads), 0, stream, dout, out, delta, rows, d, is_vector);
}

}  // namespace plumbline
