#pragma once
// Ragged attention, version 1: forward and backward without tiles. d = 128, every row sees a key. Geometry is cuda/'s.
#include "../../cuda/attention_mma.cuh"
#include "../../cuda/reduce.cuh"

namespace plumbline_bench {

using namespace plumbline;

constexpr int kD = 128, kRowThreads = kD;

template <typename T>
struct AttentionRows {
  const T *q, *k, *v;
  const int32_t* sequence_T;
  T* out;
  float* lse;
  // Backward: dout and delta are read.
  const T* dout;
  const float* delta;
  T *dq, *dk, *dv;
};

template <typename T>
PLUMBLINE_DEVICE float dot_row(const T* a, const T* b) {
  float sum = 0;
  for (int c = 0; c < kD; ++c) sum = fmaf(to_float(a[c]), to_float(b[c]), sum);
  return sum;
}

// 1: a block per row and head; a thread per key while scores gather in shared memory, then a thread per column.
template <typename T>
__global__ void row_attention_kernel(PackedAttention p, AttentionRows<T> in) {
  PLUMBLINE_SHARED(float, score);
  __shared__ float room[kRowThreads / 32];
  const int t = blockIdx.x / p.H, h = blockIdx.x % p.H, b = in.sequence_T[t], kv_head = h / (p.H / p.Hkv);
  const Slice slice = p.slice(b, kv_head);
  const int keys = slice.visible_to(t - slice.first_query);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kD;
  float peak = -INFINITY, sum = 0, value = 0;
  for (int key = threadIdx.x; key < keys; key += kRowThreads) score[key] = p.scale * dot_row(in.q + at, in.k + p.key_at(b, kv_head, key)), peak = fmaxf(peak, score[key]);
  peak = block_reduce<kRowThreads>(peak, room, -INFINITY, Maximum{});
  for (int key = threadIdx.x; key < keys; key += kRowThreads) score[key] = expf(score[key] - peak), sum += score[key];
  sum = block_sum<kRowThreads>(sum, room);
  __syncthreads();
  for (int key = 0; key < keys; ++key) value = fmaf(score[key], to_float(in.v[p.key_at(b, kv_head, key) + threadIdx.x]), value);
  in.out[at + threadIdx.x] = from_float<T>(value / sum);
  if (threadIdx.x == 0) in.lse[blockIdx.x] = peak + logf(sum);
}

// Weight, and the gradient of the score, of one row and key.
template <typename T>
PLUMBLINE_DEVICE float2 weight_and_grad(const PackedAttention& p, const AttentionRows<T>& in, int64_t row, int64_t key_at) {
  const float weight = expf(p.scale * dot_row(in.q + row * kD, in.k + key_at) - in.lse[row]);
  return make_float2(weight, weight * (dot_row(in.dout + row * kD, in.v + key_at) - in.delta[row]));
}

// 1 of the backward pass, dq: as the forward one.
template <typename T>
__global__ void row_grad_kernel(PackedAttention p, AttentionRows<T> in) {
  PLUMBLINE_SHARED(float, dscore);
  const int t = blockIdx.x / p.H, h = blockIdx.x % p.H, b = in.sequence_T[t], kv_head = h / (p.H / p.Hkv);
  const Slice slice = p.slice(b, kv_head);
  const int keys = slice.visible_to(t - slice.first_query);
  for (int key = threadIdx.x; key < keys; key += kRowThreads) dscore[key] = weight_and_grad(p, in, blockIdx.x, p.key_at(b, kv_head, key)).y;
  __syncthreads();
  float sum = 0;
  for (int key = 0; key < keys; ++key) sum = fmaf(dscore[key], to_float(in.k[p.key_at(b, kv_head, key) + threadIdx.x]), sum);
  in.dq[static_cast<int64_t>(blockIdx.x) * kD + threadIdx.x] = from_float<T>(p.scale * sum);
}

// dk and dv: a block per key and kv head, a thread per row for some rows, then a thread per column.
template <typename T>
__global__ void key_grad_kernel(PackedAttention p, AttentionRows<T> in, const int32_t* sequence_S) {
  __shared__ float2 share[kRowThreads];
  const int s = blockIdx.x / p.Hkv, kv_head = blockIdx.x % p.Hkv, b = sequence_S[s], key = s - p.cu_k_B1[b];
  const Slice slice = p.slice(b, kv_head);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kD;
  const auto head_of = [&](int64_t row) { return (slice.first_query + row / slice.group) * p.H + kv_head * slice.group + row % slice.group; };
  float dk = 0, dv = 0;
  for (int64_t begin = slice.first_row(key); begin < slice.rows; begin += kRowThreads) {
    const int64_t own = begin + threadIdx.x;
    if (own < slice.rows) share[threadIdx.x] = weight_and_grad(p, in, head_of(own), at);
    __syncthreads();
    for (int i = 0; i < kRowThreads && begin + i < slice.rows; ++i) {
      const int64_t row = head_of(begin + i) * kD + threadIdx.x;
      dv = fmaf(share[i].x, to_float(in.dout[row]), dv), dk = fmaf(share[i].y, to_float(in.q[row]), dk);
    }
    __syncthreads();
  }
  in.dk[at + threadIdx.x] = from_float<T>(p.scale * dk), in.dv[at + threadIdx.x] = from_float<T>(dv);
}

}  // namespace plumbline_bench
