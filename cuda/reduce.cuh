#pragma once
// Sums and maxima over a warp or a block, in a fixed order: the same bits on every run.
#include "launch.cuh"

namespace plumbline {

struct Sum {
  template <typename T>
  PLUMBLINE_DEVICE T operator()(T a, T b) const { return a + b; }
};
struct Maximum {  // NaN loses
  PLUMBLINE_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <typename T, typename Op>
PLUMBLINE_DEVICE T warp_reduce(T value, Op op) {
  for (int bits = 16; bits > 0; bits /= 2) value = op(value, __shfl_xor_sync(kFullMask, value, bits));
  return value;  // in every lane
}
template <typename T>
PLUMBLINE_DEVICE T warp_sum(T value) { return warp_reduce(value, Sum{}); }

// Over a one-dimensional block of kThreads; in every thread. `room`: shared memory of kThreads / 32 values; free again afterwards.
template <int kThreads, typename T, typename Op>
PLUMBLINE_DEVICE T block_reduce(T value, T* room, T identity, Op op) {
  constexpr int kWarps = kThreads / 32;
  value = warp_reduce(value, op);
  if (kWarps == 1) return value;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  if (lane == 0) room[warp] = value;
  __syncthreads();
  value = warp_reduce(lane < kWarps ? room[lane] : identity, op);
  __syncthreads();
  return value;
}
template <int kThreads, typename T>
PLUMBLINE_DEVICE T block_sum(T value, T* room) { return block_reduce<kThreads>(value, room, T(0), Sum{}); }

}  // namespace plumbline
