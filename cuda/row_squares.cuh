#pragma once
// Sums of squares of contiguous elements by a warp or a block: 16-byte loads, four or eight in flight per lane, whatever the alignment.
#include "dtype.cuh"

namespace plumbline {

constexpr int kSums = 4;  // of a lane

struct SquareF32 {
  using Total = float;
  PLUMBLINE_DEVICE float operator()(float x, float total) const { return fmaf(x, x, total); }
};
struct SquareF64 {  // of f32 values: exact, and cannot overflow
  using Total = double;
  PLUMBLINE_DEVICE double operator()(float x, double total) const { return fma(static_cast<double>(x), static_cast<double>(x), total); }
};

PLUMBLINE_DEVICE void unpack(uint32_t word, float (&x)[1], float) { x[0] = __uint_as_float(word); }
PLUMBLINE_DEVICE void unpack(uint32_t word, float (&x)[2], bf16) { x[0] = __uint_as_float(word << 16), x[1] = __uint_as_float(word & 0xffff0000u); }
PLUMBLINE_DEVICE void unpack(uint32_t word, float (&x)[2], f16) {
  x[0] = half_bits_to_float(static_cast<uint16_t>(word)), x[1] = half_bits_to_float(static_cast<uint16_t>(word >> 16));
}
template <typename T, typename Square>
PLUMBLINE_DEVICE typename Square::Total add_word(uint32_t word, typename Square::Total total, Square square) {
  float x[4 / sizeof(T)];
  unpack(word, x, T{});
#pragma unroll
  for (float value : x) total = square(value, total);
  return total;
}

// This lane's share of x[0, size), for kLanes lanes. Elements before the first 16-byte boundary and after the last go one by one. The order
// of the sums does not depend on kInFlight, a multiple of kSums.
template <int kLanes, int kInFlight, typename T, typename Square>
PLUMBLINE_DEVICE typename Square::Total lane_squares(const T* x, int64_t size, int lane, Square square) {
  constexpr int kSize = 16 / sizeof(T);
  const int64_t before = static_cast<int64_t>((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / sizeof(T)), head = before < size ? before : size;
  const int64_t packets = (size - head) / kSize;
  const uint4* body = reinterpret_cast<const uint4*>(x + head);
  typename Square::Total total[kSums] = {};
  for (int64_t i = lane; i < packets; i += kLanes * kInFlight) {
    uint4 packet[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) packet[u] = i + u * kLanes < packets ? body[i + u * kLanes] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      total[u % kSums] = add_word<T>(packet[u].x, total[u % kSums], square);
      total[u % kSums] = add_word<T>(packet[u].y, total[u % kSums], square);
      total[u % kSums] = add_word<T>(packet[u].z, total[u % kSums], square);
      total[u % kSums] = add_word<T>(packet[u].w, total[u % kSums], square);
    }
  }
  if (lane < head) total[0] = square(to_float(x[lane]), total[0]);
  const int64_t rest = head + packets * kSize;
  if (lane < size - rest) total[1] = square(to_float(x[rest + lane]), total[1]);
  return (total[0] + total[1]) + (total[2] + total[3]);
}

}  // namespace plumbline
