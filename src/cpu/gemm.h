#pragma once
// One matrix product C[M,N] (+)= op(A) op(B) + bias, and the serial pieces that linear.cpp runs on the threads of the pool.
// Strides are in elements; of each operand one stride is 1.
#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace plumbline {

struct GemmCall {
  int64_t M, N, K;
  const float* a;              // element (i, k) at a[i * a_row + k * a_col]
  int64_t a_row, a_col;
  const void* b;               // element (k, j) at b[k * b_row + j * b_col]; f32 or bf16
  int64_t b_row, b_col;
  bool b_is_bf16;
  const float* bias_N;         // or null
  float* c;                    // element (i, j) at c[i * ldc + j]
  int64_t ldc;
  bool accumulate;             // C is added to
};

// Packed, register-blocked product of one tile of C; `workspace` of gemm_workspace_bytes(M, N, K), 64-byte aligned.
size_t gemm_workspace_bytes(Isa isa, const GemmCall& tile);
void gemm_tile(Isa isa, const GemmCall& tile, float* workspace);

// Writes or adds the bias before a product. Returns whether the product must now add to c.
bool start_with_bias(const GemmCall& tile);

// A few rows against a weight that is read once, straight from memory (no packing): gemv.cpp.
//   gemv_dot   B's rows run along k (b_row = 1): c[i,j] = dot(a row i, weight row j). Any M; bits do not depend on M or N.
//   gemv_sum   B's rows run along j (b_col = 1): c[i,:] = sum_k a[i,k] * weight row k. Bits do not depend on M or N.
// Both want A's rows contiguous (a_col = 1).
void gemv_dot(Isa isa, const GemmCall& tile);
void gemv_sum(Isa isa, const GemmCall& tile);

// The part of a call that covers rows [i, i + rows) and columns [j, j + cols) of C.
inline GemmCall sub_tile(const GemmCall& call, int64_t i, int64_t rows, int64_t j, int64_t cols) {
  GemmCall tile = call;
  tile.M = rows;
  tile.N = cols;
  tile.a = call.a + i * call.a_row;
  tile.b = static_cast<const char*>(call.b) + j * call.b_col * (call.b_is_bf16 ? 2 : 4);
  if (call.bias_N) tile.bias_N = call.bias_N + j;
  tile.c = call.c + i * call.ldc + j;
  return tile;
}

}  // namespace plumbline
