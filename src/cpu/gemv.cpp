// gemv_dot, gemv_sum: c[M,N] (+)= A B + bias for a few rows M, B read once and in place.
//   in   A f32, rows contiguous; B f32 or bf16, rows along k (dot) or along j (sum); bias f32
//   out  c f32, row-major
//   how  f32 sums. dot: one vector of partial sums per result, in order of k, its lanes added pairwise, then the rest of k.
//        sum: c is swept once per eight weight rows. Deterministic; NaN and infinity propagate
//   cost bound by the memory that B lies in: 4 or 2 bytes read per multiply-add of a row
//   limits: M, N >= 1; K may be 0
#include "gemm.h"

#define PLUMBLINE_INL "gemv_inl.h"
#include "foreach_isa.h"

namespace plumbline {

void gemv_dot(Isa isa, const GemmCall& tile) {
  if (tile.b_is_bf16)
    PLUMBLINE_PICK(isa, dot_bf16)(tile);
  else
    PLUMBLINE_PICK(isa, dot_f32)(tile);
}

void gemv_sum(Isa isa, const GemmCall& tile) {
  GemmCall product = tile;
  product.accumulate = start_with_bias(tile);
  if (!product.accumulate)
    for (int64_t i = 0; i < tile.M; ++i) std::memset(tile.c + i * tile.ldc, 0, static_cast<size_t>(tile.N) * sizeof(float));
  if (tile.b_is_bf16)
    PLUMBLINE_PICK(isa, sum_bf16)(product);
  else
    PLUMBLINE_PICK(isa, sum_f32)(product);
}

}  // namespace plumbline
