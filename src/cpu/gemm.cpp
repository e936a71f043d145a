// gemm_tile: c[M,N] (+)= op(A) op(B) + bias, one tile on one thread.
//   in   A f32, rows or columns contiguous; B f32 or bf16 (widened while it is packed), rows or columns contiguous; bias f32
//   out  c f32, row-major
//   how  f32 sums: within a block of at most 320 k in order of k, the blocks added in order; fused multiply-add on AVX2 and
//        AVX-512. Deterministic; rows do not see each other; NaN and infinity propagate.
//   cost bound by the multipliers; B is packed once per tile, and so is transposed A; row-major A is read in place, or copied when its
//        rows lie a page apart (2 to 8 % faster at 504 x 512 x 1536..8960, Zen 3)
//   limits: workspace of gemm_workspace_bytes; M, N >= 1; K may be 0
#include "gemm.h"

namespace plumbline {
namespace {

// A panel of B (320 x 16 floats: 20 KB) and the rows of A that meet it (6 x 320: 8 KB) share a 32 KB L1. The rows of A that are
// swept by all panels (120 x 320: 150 KB) stay in L2, 256 KB on the smallest machines. 120 is a multiple of 4, 6 and 12.
constexpr int64_t kMaxDepth = 320, kBlockRows = 120;
constexpr int64_t kFarApart = 1024;  // floats in a page

// Equal blocks of k, a multiple of 4 for the transposition.
inline int64_t block_depth(int64_t K) {
  const int64_t blocks = (K + kMaxDepth - 1) / kMaxDepth;
  return blocks <= 1 ? K : ((K + blocks - 1) / blocks + 3) / 4 * 4;
}

}  // namespace
}  // namespace plumbline

#define PLUMBLINE_INL "gemm_inl.h"
#include "foreach_isa.h"

namespace plumbline {

size_t gemm_workspace_bytes(Isa isa, const GemmCall& tile) { return PLUMBLINE_PICK(isa, workspace_floats)(tile) * sizeof(float); }

// The bias goes in before the products, while the tile is still to come into the cache.
bool start_with_bias(const GemmCall& tile) {
  if (!tile.bias_N && (tile.K > 0 || tile.accumulate)) return tile.accumulate;
  for (int64_t i = 0; i < tile.M; ++i) {
    float* const row = tile.c + i * tile.ldc;
    for (int64_t j = 0; j < tile.N; ++j) row[j] = (tile.accumulate ? row[j] : 0.0f) + (tile.bias_N ? tile.bias_N[j] : 0.0f);
  }
  return true;
}

void gemm_tile(Isa isa, const GemmCall& tile, float* workspace) {
  GemmCall product = tile;
  product.accumulate = start_with_bias(tile);
  if (tile.K > 0) PLUMBLINE_PICK(isa, multiply)(product, workspace);
}

}  // namespace plumbline
