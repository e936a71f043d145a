#pragma once
// Tiles of f16 and bf16 attention for the tensor cores: rows of kD elements (zeros behind d) at a distance of kD + 8, an odd number of
// 16-byte pieces, so that the eight rows of a matrix lie in different banks. Blocks of 4 warps.
#include "attention_slice.cuh"
#include "dtype.cuh"

namespace plumbline {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct PackedAttention {  // arguments of the kernels; arrays are in device memory
  const int32_t* cu_q_B1;
  const int32_t* cu_k_B1;
  int32_t H, Hkv, d;
  float scale;
  bool causal;
  bool is_vector;        // all rows may be read and written 16 bytes at a time
  PLUMBLINE_DEVICE Slice slice(int sequence, int kv_head) const {
    return {cu_q_B1[sequence], cu_q_B1[sequence + 1], cu_k_B1[sequence + 1] - cu_k_B1[sequence], H / Hkv, kv_head, causal};
  }
  // Offset of a key row in (S, Hkv, d).
  PLUMBLINE_DEVICE int64_t key_at(int sequence, int kv_head, int key) const { return ((static_cast<int64_t>(cu_k_B1[sequence]) + key) * Hkv + kv_head) * d; }
};

PLUMBLINE_DEVICE void mma(f16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_f16(d, a, b0, b1); }
PLUMBLINE_DEVICE void mma(bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(d, a, b0, b1); }
PLUMBLINE_DEVICE uint32_t pack(f16, float low, float high) { return pack_half(low, high); }
PLUMBLINE_DEVICE uint32_t pack(bf16, float low, float high) { return pack_bfloat(low, high); }

// One row into shared memory, by 8 lanes; zeros behind d, or everywhere for a null row.
template <int kD, typename T>
PLUMBLINE_DEVICE void load_row(T* to, const T* from, int d, bool is_vector) {
#pragma unroll
  for (int c = threadIdx.x % 8 * 8; c < kD; c += 64) {
    if (is_vector) {
      cp_async_16(to + c, from ? from + c : nullptr, from && c < d);
    } else {
      Packet<T> packet;
      for (int i = 0; i < 8; ++i) packet.at[i] = from && c + i < d ? from[c + i] : T{0};
      *reinterpret_cast<Packet<T>*>(to + c) = packet;
    }
  }
}

// Rows at at_row[m] * d; negative: zeros.
template <int kD, int kRows, typename T>
PLUMBLINE_DEVICE void load_rows(T* to, const T* from, const int64_t* at_row, const PackedAttention& p) {
  for (int m = threadIdx.x / 8; m < kRows; m += kTileThreads / 8) load_row<kD>(to + m * (kD + 8), at_row[m] < 0 ? nullptr : from + at_row[m] * p.d, p.d, p.is_vector);
}

// Key rows [begin, begin + kKeys); zeros from `end` on.
template <int kD, int kKeys, typename T>
PLUMBLINE_DEVICE void load_keys(T* to, const T* from, const PackedAttention& p, int sequence, int kv_head, int begin, int end) {
  for (int m = threadIdx.x / 8; m < kKeys; m += kTileThreads / 8)
    load_row<kD>(to + m * (kD + 8), begin + m < end ? from + p.key_at(sequence, kv_head, begin + m) : nullptr, p.d, p.is_vector);
}

// Fragments of a 16 x 16 piece of a tile. Left operand: its rows are the rows of the product.
template <int kD, typename T>
PLUMBLINE_DEVICE void load_left(uint32_t (&a)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(a, tile + (row + lane % 16) * (kD + 8) + column + lane / 16 * 8);
}
// Right operand, rows of the tile are columns of the product: (b[0], b[1]) for the first 8, (b[2], b[3]) for the next.
template <int kD, typename T>
PLUMBLINE_DEVICE void load_right(uint32_t (&b)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(b, tile + (row + lane % 8 + lane / 16 * 8) * (kD + 8) + column + lane / 8 % 2 * 8);
}
// Right operand, columns of the tile are columns of the product.
template <int kD, typename T>
PLUMBLINE_DEVICE void load_right_transposed(uint32_t (&b)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4_transposed(b, tile + (row + lane % 16) * (kD + 8) + column + lane / 16 * 8);
}

// s[m][16 rows, kN] = left right^T; rows of `left` from row + 16 m on.
template <int kD, int kM, int kN, typename T>
PLUMBLINE_DEVICE void score_product(const T* left, int row, const T* right, float (&s)[kM][kN / 8][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
#pragma unroll
  for (int c = 0; c < kD; c += 16) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) load_left<kD>(a[m], left, row + 16 * m, c);
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      uint32_t b[4];
      load_right<kD>(b, right, n, c);
#pragma unroll
      for (int m = 0; m < kM; ++m) mma(T{}, s[m][n / 8], a[m], b[0], b[1]), mma(T{}, s[m][n / 8 + 1], a[m], b[2], b[3]);
    }
  }
}

// y[m][16 rows, kWidth] += w[m][16, kN] right, where w are sums as mma leaves them, rounded to T.
template <int kD, int kM, int kN, int kWidth, typename T>
PLUMBLINE_DEVICE void weighted_product(const float (&w)[kM][kN / 8][4], const T* right, float (&y)[kM][kWidth / 8][4]) {
#pragma unroll
  for (int n = 0; n < kN; n += 16) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[m][i] = pack(T{}, w[m][n / 8 + i / 2][i % 2 * 2], w[m][n / 8 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int c = 0; c < kWidth; c += 16) {
      uint32_t b[4];
      load_right_transposed<kD>(b, right, n, c);
#pragma unroll
      for (int m = 0; m < kM; ++m) mma(T{}, y[m][c / 8], a[m], b[0], b[1]), mma(T{}, y[m][c / 8 + 1], a[m], b[2], b[3]);
    }
  }
}

// 16 rows of sums, times factor[0] in rows 0..7 and factor[1] in 8..15, through this warp's rows of a tile into memory: `width` columns
// of tile row m to to + at(m), nowhere when that is negative.
template <int kD, int kWidth, typename T, typename At>
PLUMBLINE_DEVICE void store_rows(const float (&sum)[kWidth / 8][4], const float (&factor)[2], T* tile, int row, T* to, int width, bool is_vector, const At& at) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint32_t*>(tile + (row + lane / 4 + 8 * half) * (kD + 8) + 8 * c + lane % 4 * 2) = pack(T{}, sum[c][2 * half] * factor[half], sum[c][2 * half + 1] * factor[half]);
  __syncwarp();
#pragma unroll
  for (int m = row + lane / 8; m < row + 16; m += 4) {
    const int64_t offset = at(m);
    if (offset < 0) continue;
    for (int c = lane % 8 * 8; c < width; c += 64) {
      const Packet<T> packet = *reinterpret_cast<const Packet<T>*>(tile + m * (kD + 8) + c);
      if (is_vector) {
        *reinterpret_cast<Packet<T>*>(to + offset + c) = packet;
      } else {
        for (int i = 0; i < 8 && c + i < width; ++i) to[offset + c + i] = packet.at[i];
      }
    }
  }
}

// Offsets of rows [T, H] of which each holds d.
template <int kRows>
PLUMBLINE_DEVICE int64_t offset_of(const RowTable<kRows>& row, int m, int d) { return row.head[m] < 0 ? -1 : row.head[m] * d; }

template <int kValue>
struct HeadSize {
  static constexpr int value = kValue;
};
// Calls body with the columns of the tiles that hold d.
template <typename Body>
void for_mma_head_size(int d, const Body& body) {
  if (d <= 64) return body(HeadSize<64>{});
  if (d <= 80) return body(HeadSize<80>{});
  if (d <= 96) return body(HeadSize<96>{});
  if (d <= 128) return body(HeadSize<128>{});
  return body(HeadSize<256>{});
}

}  // namespace plumbline
