// split_planes: an f32 matrix as three bf16 ones that sum up to it, x = high + middle + low; a bf16 matrix as it is, K-contiguous.
//   in   (rows, K) f32 or bf16, either stride 1        out  3 planes or 1 (rows, row_size) bf16, zeros from K on
//   how  split_floats, which says what becomes of NaN and infinities
//   cost 4 bytes read and 6 written for an f32 element, in 16-byte accesses; transposed through shared memory, tiles of 64 x 64. Bound by memory
#include "product.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kTile = 64, kChunk = 8;  // kChunk: elements that a thread writes to a plane at once

template <int kCount>
PLUMBLINE_DEVICE void store_split(const float (&x)[kChunk], uint16_t* to, int64_t plane_size) {
  uint32_t part[kCount][4];
  split_floats(x, part);
#pragma unroll
  for (int p = 0; p < kCount; ++p) store_16(to + p * plane_size, make_uint4(part[p][0], part[p][1], part[p][2], part[p][3]));
}

template <typename T, int kCount, bool kAligned>
__global__ void split_rows_kernel(const T* from, int64_t rows, int64_t K, int64_t row, uint16_t* to, int64_t row_size) {
  const int64_t chunks = row_size / kChunk, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * chunks; i += step) {
    const int64_t r = i / chunks, k = i % chunks * kChunk;
    const T* const source = from + r * row + k;
    float x[kChunk];
    if (kAligned) {  // K is a multiple of 8
      load_floats(x, source);
    } else {
#pragma unroll
      for (int v = 0; v < kChunk; ++v) x[v] = k + v < K ? to_float(source[v]) : 0.0f;
    }
    store_split<kCount>(x, to + r * row_size + k, rows * row_size);
  }
}

// The source has K rows: element (r, k) at k * col + r.
template <typename T, int kCount>
__global__ void split_columns_kernel(const T* from, int64_t rows, int64_t K, int64_t col, uint16_t* to, int64_t row_size, int64_t row_tiles) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t first_row = blockIdx.x % row_tiles * kTile, first_k = blockIdx.x / row_tiles * kTile;
#pragma unroll 4
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int64_t r = first_row + i % kTile, k = first_k + i / kTile;
    tile[i / kTile][i % kTile] = r < rows && k < K ? to_float(from[k * col + r]) : 0.0f;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile / kChunk; i += kThreads) {
    const int r = i % 8 + i / 64 * 8, k = i / 8 % 8 * kChunk;  // a warp: 8 rows by 4 chunks, every bank once
    if (first_row + r >= rows || first_k + k >= row_size) continue;
    float x[kChunk];
#pragma unroll
    for (int v = 0; v < kChunk; ++v) x[v] = tile[k + v][r];
    store_split<kCount>(x, to + (first_row + r) * row_size + first_k + k, rows * row_size);
  }
}

template <typename T, int kCount>
cudaError_t start(const T* from, int64_t rows, int64_t K, int64_t row, int64_t col, uint16_t* to, int64_t row_size, cudaStream_t stream) {
  if (col != 1) {
    const int64_t row_tiles = blocks_of(rows, kTile), k_tiles = blocks_of(K, kTile);
    return launch(split_columns_kernel<T, kCount>, dim3(static_cast<unsigned>(row_tiles * k_tiles)), dim3(kThreads), 0, stream, from, rows, K, col, to, row_size, row_tiles);
  }
  const dim3 grid(blocks_of(rows * (row_size / kChunk), kThreads, 65536));
  if (K % kChunk == 0 && row % kChunk == 0 && is_aligned_16(from)) return launch(split_rows_kernel<T, kCount, true>, grid, dim3(kThreads), 0, stream, from, rows, K, row, to, row_size);
  return launch(split_rows_kernel<T, kCount, false>, grid, dim3(kThreads), 0, stream, from, rows, K, row, to, row_size);
}

}  // namespace

cudaError_t split_planes(const void* from, bool is_bf16, int64_t rows, int64_t K, int64_t row, int64_t col, uint16_t* to, int64_t row_size, cudaStream_t stream) {
  if (is_bf16) return start<bf16, 1>(static_cast<const bf16*>(from), rows, K, row, col, to, row_size, stream);
  return start<float, kPlanes>(static_cast<const float*>(from), rows, K, row, col, to, row_size, stream);
}

}  // namespace plumbline
