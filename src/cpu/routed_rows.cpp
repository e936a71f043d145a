// gather_rms_norm, gated_scatter: the rows that take another pass leave the hidden states, and come back.
//        x = h[row] + step, y = w x rstd;   h[row] = h + g (y - h) | h + g y | h + g y (1 + step)    (arXiv 2604.10500, RDS; algorithms 4.3 to 4.5)
//   grad interpolate: dh (1 - g), dy = g dh, dg = <dh, y - base>; plain: dh, g dh, <dh, y>; scaled: dh, g dh (1 + step),
//        <dh, y (1 + step)>, dstep += g dh y
//   in   h (T, C), rows and places in `gate` of n tokens, rows distinct, f32        out  x, y (n, C), rstd (n); h, dh in place
//   how  gather_rms_norm has the bits of copy_rows, add_rows and rms_norm; dstep by slices of rows cut by shape, slices added in order.
//        NaN and inf spread over their row
//   cost each row is read once and each result written once, large ones past the caches; bound by memory
#include <cmath>

#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "routed_rows_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

// Results beyond this go past the caches, half of a 32 MiB last level: 1.0 to 1.3 x faster at 25 MiB, 1.2 to 1.5 x at 50, slower where
// they would have stayed in the cache (Zen 3, C = 1536, a shared machine).
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

bool is_streamed(const float* x, const float* y, int64_t n, int64_t C) {
  const auto in_lines = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; };
  return 2 * n * C * static_cast<int64_t>(sizeof(float)) > kStreamedBytes && C % 16 == 0 && in_lines(x) && in_lines(y);
}

}  // namespace

void CpuBackend::gather_rms_norm(const float* h_TC, const int32_t* row_n, const float* step_C, const float* w_C, float eps, float* x_nC,
                                 float* y_nC, float* rstd_n, int64_t n, int64_t C,
                                 const RotaryRows* rotary) {
  const auto kernel = PLUMBLINE_PICK(isa_, gather_norm_row);
  const auto streamed = PLUMBLINE_PICK(isa_, gather_norm_row_streamed);
  if (rotary) {
    copy_rows(Weight{rotary->cos_Th, DType::f32, 0, rotary->half}, row_n, rotary->cos_nh, nullptr, n);
    copy_rows(Weight{rotary->sin_Th, DType::f32, 0, rotary->half}, row_n, rotary->sin_nh, nullptr, n);
  }
  const bool past_caches = is_streamed(x_nC, y_nC, n, C);
  const Tiles tiles = tile_rows(n, C);
  parallel(tiles.count, [&](int64_t tile, int32_t thread) {
    float* memory = past_caches ? static_cast<float*>(scratch(thread, static_cast<size_t>(C) * sizeof(float))) : nullptr;
    for (int64_t i = tiles.begin(tile); i < tiles.end(tile); ++i) {
      const float *h = h_TC + row_n[i] * C, *next = h_TC + row_n[std::min(i + 1, n - 1)] * C;
      if (past_caches)
        streamed(h, step_C, next, w_C, eps, x_nC + i * C, y_nC + i * C, rstd_n + i, C, memory);
      else
        kernel(h, step_C, next, w_C, eps, x_nC + i * C, y_nC + i * C, rstd_n + i, C);
    }
    if (past_caches) PLUMBLINE_PICK(isa_, end_streaming)();
  });
}

void CpuBackend::gated_scatter(Fusion fusion, const float* y_nC, const float* gate, const int32_t* at_n, const float* step_C, float* h_TC,
                               const int32_t* row_n, int64_t n, int64_t C) {
  const auto kernel = PLUMBLINE_PICK(isa_, gated_scatter_row);
  const Tiles tiles = tile_rows(n, C);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t i = tiles.begin(tile); i < tiles.end(tile); ++i)
      kernel(fusion, y_nC + i * C, gate[at_n[i]], step_C, h_TC + row_n[i] * C, C);
  });
}

void CpuBackend::gated_scatter_grad(Fusion fusion, const float* y_nC, const float* base, const float* gate, const int32_t* at_n,
                                    const float* step_C, float* dh_TC, const int32_t* row_n, float* dy_nC, float* dgate, float* dstep_C,
                                    int64_t n, int64_t C) {
  const auto kernel = PLUMBLINE_PICK(isa_, gated_scatter_grad_row);
  const Tiles slices = slice_rows(n, C);
  const int64_t stride = padded(C);
  const bool with_step = fusion == Fusion::scaled && dstep_C;
  // Zeros in the place of a step that is not there, then the slices' sums.
  float* zeros = static_cast<float*>(scratch(threads(), static_cast<size_t>((slices.count + 1) * stride) * sizeof(float)));
  float* partial = zeros + stride;
  std::fill_n(zeros, C, 0.0f);
  const float* step = step_C ? step_C : zeros;
  parallel(slices.count, [&](int64_t slice, int32_t) {
    float* dstep = with_step ? partial + slice * stride : nullptr;
    if (dstep) std::fill_n(dstep, C, 0.0f);
    for (int64_t i = slices.begin(slice); i < slices.end(slice); ++i)
      dgate[at_n[i]] = kernel(fusion, y_nC + i * C, base ? base + at_n[i] * C : nullptr, step, gate[at_n[i]], dh_TC + row_n[i] * C,
                              dy_nC + i * C, dstep, C);
  });
  if (with_step) PLUMBLINE_PICK(isa_, add_slices)(partial, slices.count, stride, dstep_C, C);
}

}  // namespace plumbline
