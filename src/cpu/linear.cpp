// linear, linear_grad_input, linear_grad_weight: the three products of a linear layer, cut into tiles for the pool.
//   y = x w^T + bias          dx = dy w          dw += dy^T x, db += column sums of dy
//   in   x, dy f32; w f32 or bf16         out  f32
//   how  the cut depends on shape and thread count alone, every tile is summed in a fixed order: same bits every run
//   cost few rows: the bytes of w (gemv.cpp); many rows: 2 M N K operations (gemm.cpp or oneDNN)
#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu_backend.h"
#include "gemm.h"
#include "onednn.h"

namespace plumbline {
namespace {

constexpr int64_t kTileFlops = 300'000'000;  // 4 ms on one AVX2 core (75 GFLOP/s), 10 ms at a baseline core's 30
constexpr int64_t kMaxCols = 512;            // a packed panel set of 320 x 512 floats: 640 KB
constexpr int64_t kMinRows = 60, kMinCols = 64;  // smaller tiles spend over 5 % of their time on packing
constexpr int64_t kMinSlice = 512;           // k of a slice: below that, adding the slices costs more than it brings

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Length of equal pieces, at most `most` long, a multiple of `unit` where that fits.
int64_t even_piece(int64_t size, int64_t most, int64_t unit) {
  const int64_t pieces = ceil_div(size, std::max(most, unit));
  return std::min(size, ceil_div(ceil_div(size, pieces), unit) * unit);
}

struct Tiling {
  int64_t rows, cols, row_tiles, col_tiles;
};

// Wide tiles use a packed panel for many rows and a row of A for many panels; four tiles a thread even out the load.
Tiling tiling_of(const GemmCall& call, int32_t threads) {
  const int64_t wanted = threads == 1 ? 1 : 4 * static_cast<int64_t>(threads);
  Tiling t;
  t.cols = even_piece(call.N, kMaxCols, 32);
  const int64_t balanced_rows = call.M * ceil_div(call.N, t.cols) / wanted;
  const int64_t budget_rows = kTileFlops / (2 * t.cols * std::max<int64_t>(call.K, 1));
  t.rows = even_piece(call.M, std::max(kMinRows, std::min(balanced_rows, budget_rows)), 12);
  t.row_tiles = ceil_div(call.M, t.rows);
  if (t.row_tiles * ceil_div(call.N, t.cols) < wanted)
    t.cols = even_piece(call.N, std::max(kMinCols, call.N * t.row_tiles / wanted), 32);
  t.col_tiles = ceil_div(call.N, t.cols);
  return t;
}

// Rows of A and C up to which the weight is streamed in place. Past them a packed GEMM is faster (Zen 3, 1536 x 1536, GFLOP/s of
// one thread: linear bf16 at 16 rows 59 against 42; grad_input bf16 at 8 rows 34 against 27). A bf16 weight has no oneDNN to go to.
bool is_gemv(const GemmCall& call) {
  if (call.a_col != 1) return false;
  const int64_t most = call.b_row == 1 ? 8 : 4;
  return call.M <= (call.b_is_bf16 ? 2 * most : most);
}

GemmCall k_slice(const GemmCall& call, int64_t k, int64_t depth) {
  GemmCall slice = call;
  slice.K = depth;
  slice.a = call.a + k * call.a_col;
  slice.b = static_cast<const char*>(call.b) + k * call.b_row * (call.b_is_bf16 ? 2 : 4);
  return slice;
}

}  // namespace

bool CpuBackend::use_onednn(const GemmCall& call) const {
  if (!onednn_linked() || call.b_is_bf16) return false;
  return gemm_kind_ == GemmKind::onednn || (gemm_kind_ == GemmKind::automatic && onednn_is_faster(call));
}

void CpuBackend::multiply_tiles(const GemmCall& call) {
  const Tiling t = tiling_of(call, threads());
  const bool onednn = use_onednn(call);
  parallel(t.row_tiles * t.col_tiles, [&](int64_t index, int32_t thread) {
    const int64_t i = index % t.row_tiles * t.rows, j = index / t.row_tiles * t.cols;
    const GemmCall tile = sub_tile(call, i, std::min(t.rows, call.M - i), j, std::min(t.cols, call.N - j));
    if (onednn) return onednn_tile(tile);
    gemm_tile(isa_, tile, static_cast<float*>(scratch(thread, gemm_workspace_bytes(isa_, tile))));
  });
}

// A small C with a long K (a weight gradient of a narrow layer) has too few tiles for many threads: K is cut into slices with
// a C of their own, which are then added in order.
void CpuBackend::multiply_sliced(const GemmCall& call, int64_t slices) {
  const int64_t size = call.M * call.N, depth = even_piece(call.K, ceil_div(call.K, slices), 4);
  const int64_t count = ceil_div(call.K, depth);
  float* const partial = static_cast<float*>(scratch(threads(), static_cast<size_t>(count * size) * sizeof(float)));
  const bool onednn = use_onednn(call);
  const Tiling t = tiling_of(call, threads());
  const int64_t tiles = t.row_tiles * t.col_tiles;
  parallel(tiles * count, [&](int64_t index, int32_t thread) {
    const int64_t s = index / tiles, i = index % tiles % t.row_tiles * t.rows, j = index % tiles / t.row_tiles * t.cols;
    GemmCall slice = k_slice(call, s * depth, std::min(depth, call.K - s * depth));
    slice.c = partial + s * size;
    slice.ldc = call.N;
    slice.bias_N = nullptr;
    slice.accumulate = false;
    const GemmCall tile = sub_tile(slice, i, std::min(t.rows, call.M - i), j, std::min(t.cols, call.N - j));
    if (onednn) return onednn_tile(tile);
    gemm_tile(isa_, tile, static_cast<float*>(scratch(thread, gemm_workspace_bytes(isa_, tile))));
  });
  parallel(call.M, [&](int64_t i, int32_t) {
    float* const row = call.c + i * call.ldc;
    const bool add = start_with_bias(sub_tile(call, i, 1, 0, call.N));
    for (int64_t s = 0; s < count; ++s) {
      const float* const from = partial + s * size + i * call.N;
      for (int64_t j = 0; j < call.N; ++j) row[j] = add || s > 0 ? row[j] + from[j] : from[j];
    }
  });
}

void CpuBackend::gemv(const GemmCall& call) {
  const bool dot = call.b_row == 1;
  const int64_t row_bytes = call.K * (call.b_is_bf16 ? 2 : 4), share = call.N * row_bytes / (8 * static_cast<int64_t>(threads()));
  int64_t cols;  // of a tile
  if (dot)       // 32 KB to 512 KB of weights: 2 to 30 us
    cols = even_piece(call.N, std::clamp<int64_t>(share, 32 << 10, 512 << 10) / std::max<int64_t>(row_bytes, 1), 24);
  else           // wide enough for whole lines of every weight row, narrow enough for c to stay in L1
    cols = even_piece(call.N, std::clamp<int64_t>(call.N / (2 * static_cast<int64_t>(threads())), 256, 1024), 32);
  parallel(ceil_div(call.N, cols), [&](int64_t index, int32_t) {
    const int64_t j = index * cols;
    const GemmCall tile = sub_tile(call, 0, call.M, j, std::min(cols, call.N - j));
    dot ? gemv_dot(isa_, tile) : gemv_sum(isa_, tile);
  });
}

void CpuBackend::multiply(const GemmCall& call) {
  if (call.M == 0 || call.N == 0) return;
  const auto start = std::chrono::steady_clock::now();
  if (is_gemv(call) && (gemm_kind_ != GemmKind::onednn || call.b_is_bf16)) {
    gemv(call);
  } else {
    const Tiling t = tiling_of(call, threads());
    const int64_t tiles = t.row_tiles * t.col_tiles;
    const int64_t slices = std::min(ceil_div(2 * threads(), tiles), call.K / kMinSlice);
    if (tiles < threads() && slices > 1) {
      multiply_sliced(call, slices);
    } else {
      // One sweep over K, or several so that no tile outgrows kTileFlops and a cancel waits.
      const int64_t depth = std::max<int64_t>(kTileFlops / (2 * t.rows * t.cols) / 320 * 320, 3200);
      multiply_tiles(k_slice(call, 0, std::min(depth, call.K)));
      for (int64_t k = depth; k < call.K; k += depth) {
        GemmCall rest = k_slice(call, k, std::min(depth, call.K - k));
        rest.bias_N = nullptr;
        rest.accumulate = true;
        multiply_tiles(rest);
      }
    }
  }
  gemm_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  gemm_flops_ += 2.0 * static_cast<double>(call.M) * static_cast<double>(call.N) * static_cast<double>(call.K);
}

void CpuBackend::gemm(bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const float* b,
                      int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  multiply({M, N, K, a, transpose_a ? 1 : lda, transpose_a ? lda : 1, b, transpose_b ? 1 : ldb, transpose_b ? ldb : 1, false, nullptr, c,
            ldc, accumulate});
}

void CpuBackend::linear(const float* x_MK, const Weight& w_NK, const float* bias_N, float* y_MN, int64_t M, bool accumulate) {
  const int64_t N = w_NK.rows, K = w_NK.cols;
  multiply({M, N, K, x_MK, K, 1, w_NK.data, 1, K, w_NK.dtype == DType::bf16, bias_N, y_MN, N, accumulate});
}

void CpuBackend::linear_grad_input(const float* dy_MN, const Weight& w_NK, float* dx_MK, int64_t M, bool accumulate) {
  const int64_t N = w_NK.rows, K = w_NK.cols;
  multiply({M, K, N, dy_MN, N, 1, w_NK.data, K, 1, w_NK.dtype == DType::bf16, nullptr, dx_MK, K, accumulate});
}

void CpuBackend::linear_grad_weight(const float* dy_MN, const float* x_MK, float* dw_NK, float* db_N, int64_t M, int64_t N, int64_t K) {
  multiply({N, K, M, dy_MN, 1, N, x_MK, K, 1, false, nullptr, dw_NK, K, true});
  if (!db_N) return;
  constexpr int64_t kCols = 64, kRows = 256;  // 256 rows are summed on their own: the error grows with M / 256 + 256, not M
  parallel(ceil_div(N, kCols), [&](int64_t index, int32_t) {
    const int64_t j = index * kCols, cols = std::min(kCols, N - j);
    for (int64_t start = 0; start < M; start += kRows) {
      float sum[kCols] = {};
      for (int64_t i = start; i < std::min(M, start + kRows); ++i)
        for (int64_t c = 0; c < cols; ++c) sum[c] += dy_MN[i * N + j + c];
      for (int64_t c = 0; c < cols; ++c) db_N[j + c] += sum[c];
    }
  });
}

}  // namespace plumbline
