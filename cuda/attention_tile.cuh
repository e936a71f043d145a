#pragma once
// Tiles of f32 attention in shared memory, and their products. Blocks of 128 threads: thread (ty, tx) = (t / 8, t % 8) owns rows
// ty + 16 i and keys tx + 8 j of a score tile.
#include "attention_slice.cuh"

namespace plumbline {

struct PagedAttention {  // arguments of the kernels; arrays are in device memory
  const float* q;
  const float* const* k;
  const float* const* v;
  const int32_t* page_start_B1;
  const int32_t* cu_q_B1;
  const int32_t* kv_len_B;
  int64_t head_stride, row_stride, q_row_stride;
  int32_t page_rows, H, Hkv, d;
  float scale;
  bool causal;
  bool is_vector;        // all rows may be read 16 bytes at a time
};

PLUMBLINE_DEVICE Slice slice_of(const PagedAttention& p, int sequence, int kv_head) {
  return {p.cu_q_B1[sequence], p.cu_q_B1[sequence + 1], p.kv_len_B[sequence], p.H / p.Hkv, kv_head, p.causal};
}

// One row of up to kD floats into shared memory, by the 8 lanes of a row; zeros behind d, or everywhere for a null row.
template <int kD>
PLUMBLINE_DEVICE void load_row(float* to, const float* from, int d, bool is_vector) {
  const int lane = threadIdx.x % 8;
#pragma unroll
  for (int c = 4 * lane; c < kD; c += 32) {
    if (is_vector) {
      cp_async_16(to + c, from ? from + c : nullptr, from && c < d);
    } else {
      for (int i = c; i < c + 4; ++i) to[i] = from && i < d ? from[i] : 0.0f;
    }
  }
}

// Key rows [begin, begin + kKeys) of a slice from their pages; zeros from `end` on.
template <int kD, int kKeys>
PLUMBLINE_DEVICE void load_keys(float* to, const PagedAttention& p, const float* const* pages, const Slice& slice, int first_page, int begin, int end) {
  for (int m = threadIdx.x / 8; m < kKeys; m += kTileThreads / 8) {
    const int key = begin + m;
    const float* row = nullptr;
    if (key < end) row = pages[first_page + key / p.page_rows] + slice.kv_head * p.head_stride + key % p.page_rows * p.row_stride;
    load_row<kD>(to + m * (kD + 4), row, p.d, p.is_vector);
  }
}

template <int kD, int kRows>
PLUMBLINE_DEVICE void load_rows(float* to, const float* from, const int64_t* at_row, int64_t row_size, int d, bool is_vector) {
  for (int m = threadIdx.x / 8; m < kRows; m += kTileThreads / 8)
    load_row<kD>(to + m * (kD + 4), at_row[m] < 0 ? nullptr : from + at_row[m] * row_size, d, is_vector);
}

PLUMBLINE_DEVICE float4 read4(const float* from) { return *reinterpret_cast<const float4*>(from); }

// Columns c .. c + 4 of a row of d: to = value * factor, or added to.
template <bool kAdd>
PLUMBLINE_DEVICE void write4(float* to, const float (&value)[4], float factor, int c, int d, bool is_vector) {
  if (is_vector) {
    if (c >= d) return;
    float4 old{};
    if (kAdd) old = read4(to + c);
    *reinterpret_cast<float4*>(to + c) = kAdd ? float4{fmaf(value[0], factor, old.x), fmaf(value[1], factor, old.y), fmaf(value[2], factor, old.z), fmaf(value[3], factor, old.w)}
                                              : float4{value[0] * factor, value[1] * factor, value[2] * factor, value[3] * factor};
    return;
  }
#pragma unroll
  for (int n = 0; n < 4; ++n)
    if (c + n < d) to[c + n] = kAdd ? fmaf(value[n], factor, to[c + n]) : value[n] * factor;
}

// s[rows ty + 16 i, keys tx + 8 j] = a b^T over d columns (zeros up to a multiple of 4), in order.
template <int kD, int kM, int kN>
PLUMBLINE_DEVICE void score_product(const float* a, const float* b, int d, float (&s)[kM][kN]) {
  const float* x_row = a + threadIdx.x / 8 * (kD + 4);
  const float* y_row = b + threadIdx.x % 8 * (kD + 4);
#pragma unroll
  for (int i = 0; i < kM; ++i)
#pragma unroll
    for (int j = 0; j < kN; ++j) s[i][j] = 0.0f;
#pragma unroll 2
  for (int c = 0; c < d; c += 4) {
    float4 y[kN];
#pragma unroll
    for (int j = 0; j < kN; ++j) y[j] = read4(y_row + 8 * j * (kD + 4) + c);
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      const float4 x = read4(x_row + 16 * i * (kD + 4) + c);
#pragma unroll
      for (int j = 0; j < kN; ++j) s[i][j] = fmaf(x.w, y[j].w, fmaf(x.z, y[j].z, fmaf(x.y, y[j].y, fmaf(x.x, y[j].x, s[i][j]))));
    }
  }
}

// y[rows ty + 16 i, columns 4 tx + 32 j ..] += weights[rows, kKeys] x[kKeys, columns]; kKeys + 8 floats from row to row of the weights.
template <int kD, int kM, int kKeys>
PLUMBLINE_DEVICE void row_product(const float* weights, const float* x, float (&y)[kM][kD / 32][4]) {
  const float* w_row = weights + threadIdx.x / 8 * (kKeys + 8);
  const float* x_at = x + threadIdx.x % 8 * 4;
#pragma unroll 1
  for (int key = 0; key < kKeys; key += 4) {
    float w[kM][4];
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      const float4 four = read4(w_row + 16 * i * (kKeys + 8) + key);
      w[i][0] = four.x, w[i][1] = four.y, w[i][2] = four.z, w[i][3] = four.w;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int j = 0; j < kD / 32; ++j) {
        const float4 value = read4(x_at + (key + n) * (kD + 4) + 32 * j);
#pragma unroll
        for (int i = 0; i < kM; ++i) {
          y[i][j][0] = fmaf(w[i][n], value.x, y[i][j][0]);
          y[i][j][1] = fmaf(w[i][n], value.y, y[i][j][1]);
          y[i][j][2] = fmaf(w[i][n], value.z, y[i][j][2]);
          y[i][j][3] = fmaf(w[i][n], value.w, y[i][j][3]);
        }
      }
  }
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
// Calls body with the columns of the tiles that hold d.
template <typename Body>
auto for_head_size(int d, const Body& body) {
  if (d <= 64) return body(Constant<64>{});
  if (d <= 96) return body(Constant<96>{});
  if (d <= 128) return body(Constant<128>{});
  return body(Constant<256>{});
}

}  // namespace plumbline
