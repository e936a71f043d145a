#pragma once
// What the kernels of a matrix product share: loads of a lane's elements, f32 as three bf16 parts, and the plain sum behind them.
#include "dtype.cuh"
#include "product.h"

namespace plumbline {

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Piece {
  T at[kSize];
};

// kVector elements of T as floats, in loads of up to 16 bytes.
template <int kVector, typename T>
PLUMBLINE_DEVICE void load_floats(float (&to)[kVector], const T* from) {
  constexpr int kPiece = kVector * sizeof(T) <= 16 ? kVector : 16 / sizeof(T);
#pragma unroll
  for (int start = 0; start < kVector; start += kPiece) {
    const Piece<T, kPiece> piece = *reinterpret_cast<const Piece<T, kPiece>*>(from + start);
#pragma unroll
    for (int v = 0; v < kPiece; ++v) to[start + v] = to_float(piece.at[v]);
  }
}

// Eight floats as kCount bf16 parts of eight, two to a word: each part is what the ones before left over, rounded to the nearest. 3 x 8
// bits hold the 24 of f32: exact down to 2^-133. A NaN, an infinity or a value that rounds to infinity leaves one of them in a part.
template <int kCount>
PLUMBLINE_DEVICE void split_floats(const float (&x)[8], uint32_t (&part)[kCount][4]) {
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    float low = x[2 * pair], high = x[2 * pair + 1];
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      const uint32_t word = pack_bfloat(low, high);
      part[p][pair] = word;
      low -= __uint_as_float(word << 16);
      high -= __uint_as_float(word & 0xffff0000u);
    }
  }
}

PLUMBLINE_DEVICE bool is_finite(float x) { return fabsf(x) <= 3.402823466e38f; }

// The product of a row of a and a column of b over [begin, end) in plain f32, for results of split parts that are not finite: rare, and
// never inlined, so that it costs the others no registers.
template <typename T>
__device__ __noinline__ float plain_sum(const float* a, int64_t a_col, const T* b, int64_t b_row, int64_t K) {
  float sum = 0;
  for (int64_t k = 0; k < K; ++k) sum = fmaf(a[k * a_col], to_float(b[k * b_row]), sum);
  return sum;
}
template <typename T>
PLUMBLINE_DEVICE float plain_sum(const Product& p, int64_t i, int64_t j, int64_t begin, int64_t end) {
  return plain_sum(p.a + i * p.a_row + begin * p.a_col, p.a_col, static_cast<const T*>(p.b) + begin * p.b_row + j * p.b_col, p.b_row, min(end, p.K) - begin);
}

}  // namespace plumbline
