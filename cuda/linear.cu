// linear, linear_grad_input, linear_grad_weight: the three products of a linear layer, and the choice of the way to compute each.
//   y = x w^T + bias          dx = dy w          dw += dy^T x, db += column sums of dy
//   in   x, dy f32; w f32 or bf16; sizes from 0 on, any alignment        out  f32
//   how  plan_of chooses by shape; each way sums in a fixed order: the same bits on every run. NaN and infinities go where they belong
//   cost up to 16 rows, columns or terms: the bytes of the largest operand; else 2 M N K operations (gemm.cu, or cuBLAS for two f32 operands)
//   limits: fewer than 2^31 tiles of 64 x 128 results
#include "cublas.h"
#include "product.h"

namespace plumbline {
namespace {

enum class Way { nothing, bias, dot, mma, sum, outer, cublas, tiles };

constexpr double kCublasWork = 1 << 21;  // M N K from which the library's launch, slower than ours, has paid off (estimate: not measured)

struct Plan {
  Way way;
  int32_t slices = 1;
};

Plan plan_of(const Product& p, bool has_cublas) {
  if (p.M == 0 || p.N == 0) return {Way::nothing};
  if (p.K == 0) return {Way::bias};
  const bool is_dot = p.a_col == 1 && p.b_row == 1;  // both operands have contiguous K
  if (is_dot && gemv_mma_takes(p)) return {Way::mma};
  if (is_dot && (p.M <= kFew || p.N <= kFew)) return {Way::dot};
  if (!is_dot && p.K <= kFew && p.a) return {Way::outer};
  if (!is_dot && p.M <= kFew) return {Way::sum, gemv_sum_slices(p)};
  const double work = static_cast<double>(p.M) * static_cast<double>(p.N) * static_cast<double>(p.K);
  if (has_cublas && work >= kCublasWork && Cublas::takes(p)) return {Way::cublas};
  return {Way::tiles};
}

}  // namespace

Cublas* CudaBackend::cublas() {
  if (!cublas_was_tried_) {
    cublas_was_tried_ = true;
    cublas_ = Cublas::load(stream_);
    if (cublas_) gemm_library_ = "cublas " + cublas_->version();
  }
  return cublas_.get();
}

const char* CudaBackend::gemm_library() {
  cublas();
  return gemm_library_.c_str();
}

void CudaBackend::multiply(const Product& p, const char* op) {
  const Plan plan = plan_of(p, !p.b_is_bf16 && cublas());
  float* const partial = plan.slices > 1 ? static_cast<float*>(scratch(static_cast<size_t>(plan.slices * p.M * p.N) * sizeof(float))) : nullptr;
  switch (plan.way) {
    case Way::nothing: return;
    case Way::bias: return check(finish_product(p, nullptr, 0, stream_), op);
    case Way::dot: return check(gemv_dot(p, stream_), op);
    case Way::mma: return check(gemv_mma(p, stream_), op);
    case Way::outer: return check(outer_product(p, stream_), op);
    case Way::sum: check(gemv_sum(p, partial, plan.slices, stream_), op); break;
    case Way::cublas:
      if (p.bias_N) check(finish_product(p, nullptr, 0, stream_), op);
      if (!cublas_->multiply(p, p.accumulate || p.bias_N)) fail("ERR_CUDA", "[" + std::string(op) + "] Expected cuBLAS to start a product but it refused");
      return;
    case Way::tiles: return check(gemm(p, scratch(gemm_workspace_bytes(p)), stream_), op);
  }
  if (plan.slices > 1) check(finish_product(p, partial, plan.slices, stream_), op);
}

void CudaBackend::linear(const float* x_MK, const Weight& w_NK, const float* bias_N, float* y_MN, int64_t M, bool accumulate) {
  poll();
  const int64_t N = w_NK.rows, K = w_NK.cols;
  multiply({M, N, K, x_MK, K, 1, w_NK.data, 1, K, w_NK.dtype == DType::bf16, bias_N, y_MN, N, accumulate}, "linear");
}

void CudaBackend::linear_grad_input(const float* dy_MN, const Weight& w_NK, float* dx_MK, int64_t M, bool accumulate) {
  poll();
  const int64_t N = w_NK.rows, K = w_NK.cols;
  multiply({M, K, N, dy_MN, N, 1, w_NK.data, K, 1, w_NK.dtype == DType::bf16, nullptr, dx_MK, K, accumulate}, "linear_grad_input");
}

void CudaBackend::linear_grad_weight(const float* dy_MN, const float* x_MK, float* dw_NK, float* db_N, int64_t M, int64_t N, int64_t K) {
  poll();
  multiply({N, K, M, dy_MN, 1, N, x_MK, K, 1, false, nullptr, dw_NK, K, true}, "linear_grad_weight");
  if (db_N) multiply({1, N, M, nullptr, 0, 0, dy_MN, N, 1, false, nullptr, db_N, N, true}, "linear_grad_weight");
}

}  // namespace plumbline
