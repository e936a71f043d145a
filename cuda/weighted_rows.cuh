#pragma once
// Weighted sums of rows by warps: weighted_rows, and the gather at the end of select_patches.
#include <type_traits>

#include "dtype.cuh"
#include "reduce.cuh"

namespace plumbline {

constexpr int kChunkTurns = 4;  // loads of a lane for one row: 512 floats of it per warp, or 128 where rows are not 16-byte aligned
template <bool kVector>
struct RowChunk {
  static constexpr int kWidth = kVector ? 4 : 1, kFloats = 32 * kChunkTurns * kWidth;
};

struct RowTerm {
  float weight;
  int64_t row;
};

PLUMBLINE_DEVICE void store_piece(float* to, const float (&x)[1]) { *to = x[0]; }
PLUMBLINE_DEVICE void store_piece(float4* to, const float (&x)[4]) { *to = make_float4(x[0], x[1], x[2], x[3]); }

template <bool kVector, bool kWhole, typename Term>
PLUMBLINE_DEVICE void weigh_turns(const float* from, int64_t C, int64_t first, int64_t begin, int64_t end, const Term& term, float* out) {
  using Piece = typename std::conditional<kVector, float4, float>::type;
  constexpr int kWidth = RowChunk<kVector>::kWidth;
  Piece* const to = reinterpret_cast<Piece*>(out + (first - threadIdx.x % 32 * kWidth)) + threadIdx.x % 32;
  float sum[kChunkTurns][kWidth] = {};
#pragma unroll 2
  for (int64_t i = begin; i < end; ++i) {
    const RowTerm t = term(i);
    const float* row = from + t.row * C + first;
    Piece piece[kChunkTurns] = {};
#pragma unroll
    for (int k = 0; k < kChunkTurns; ++k)
      if (kWhole || first + k * 32 * kWidth < C) piece[k] = *reinterpret_cast<const Piece*>(row + k * 32 * kWidth);
#pragma unroll
    for (int k = 0; k < kChunkTurns; ++k)
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[k][j] = fmaf(t.weight, reinterpret_cast<const float*>(&piece[k])[j], sum[k][j]);
  }
#pragma unroll
  for (int k = 0; k < kChunkTurns; ++k)
    if (kWhole || first + k * 32 * kWidth < C) store_piece(to + k * 32, sum[k]);
}

// out[column ..] = sum over i in [begin, end) of weight * from[row][column ..], in order; one warp, one chunk. term(i) -> RowTerm.
template <bool kVector, typename Term>
PLUMBLINE_DEVICE void weigh_chunk(const float* from, int64_t C, int64_t column, int64_t begin, int64_t end, const Term& term, float* out) {
  const int64_t first = column + threadIdx.x % 32 * RowChunk<kVector>::kWidth;
  if (column + RowChunk<kVector>::kFloats <= C) weigh_turns<kVector, true>(from, C, first, begin, end, term, out);
  else weigh_turns<kVector, false>(from, C, first, begin, end, term, out);
}

}  // namespace plumbline
