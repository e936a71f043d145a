#pragma once
// What linear, linear_grad_input and linear_grad_weight have in common: one matrix product, and the ways to compute it.
#include "cuda_backend.h"

namespace plumbline {

// c[M, N] (+)= a[M, K] b[K, N] + bias[N].   a(i, k) = a[i * a_row + k * a_col], b likewise, each with one unit stride; c(i, j) = c[i * c_row + j].
struct Product {
  int64_t M, N, K;
  const float* a;       // null: ones (gemv_sum only)
  int64_t a_row, a_col;
  const void* b;
  int64_t b_row, b_col;
  bool b_is_bf16;
  const float* bias_N;  // may be null
  float* c_MN;
  int64_t c_row;        // N, but in a part of a larger product
  bool accumulate;
};

constexpr int kFew = 16;  // rows, columns or terms up to which a product is bound by memory and has a kernel of its own

// Each launcher fills c in one launch, or writes `slices` partial products [slices, M, N] that finish_product adds up in order.
cudaError_t gemv_dot(const Product& p, cudaStream_t stream);       // b_row == 1, a_col == 1, M or N <= kFew
bool gemv_mma_takes(const Product& p);                             // the same with M from 5 to 16, aligned
cudaError_t gemv_mma(const Product& p, cudaStream_t stream);
int32_t gemv_sum_slices(const Product& p);
cudaError_t gemv_sum(const Product& p, float* partial, int32_t slices, cudaStream_t stream);  // b_col == 1, M <= kFew
cudaError_t outer_product(const Product& p, cudaStream_t stream);  // b_col == 1, K <= kFew, no bias
cudaError_t finish_product(const Product& p, const float* partial, int32_t slices, cudaStream_t stream);  // slices 0: bias alone

// A matrix as bf16 planes that sum up to it, K-contiguous: element (r, k) is the sum over planes of at[plane * plane_size + r * row_size + k].
struct Planes {
  const uint16_t* at;
  int64_t plane_size, row_size;  // row_size is a multiple of 8, with zeros from K on
};
constexpr int kPlanes = 3;  // f32 = high + middle + low part of 8 bits each
// rows x K from `from` (element (r, k) at r * row + k * col) to `count` planes at `to`: 3 for f32, 1 for bf16.
cudaError_t split_planes(const void* from, bool is_bf16, int64_t rows, int64_t K, int64_t row, int64_t col, uint16_t* to, int64_t row_size, cudaStream_t stream);

struct GemmTask {
  Product p;
  Planes a, b;
  int32_t slices;
  float* partial;  // [slices, M, N] when there are several
};
cudaError_t start_gemm(const GemmTask& task, bool is_short, cudaStream_t stream);  // gemm.cu; is_short: tiles of 64 rows, else 128

size_t gemm_workspace_bytes(const Product& p);
cudaError_t gemm(const Product& p, void* workspace, cudaStream_t stream);  // gemm_parts.cu

}  // namespace plumbline
