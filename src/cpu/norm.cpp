// rms_norm, layer_norm: one scale per row.   y = w (x - mean) rstd + b, rstd = 1/sqrt(mean (x - mean)^2 + eps); RMS: mean = 0, b = 0
//   in   x (T, C), w (C), b (C), f32           out  y (T, C); mean (T), rstd (T) kept for the backward pass
//   grad dx (T, C) written or added to; dw, db (C) added to; either may be null; L2 norm of each row of dx, from registers
//   how  f32 sums over fixed lanes; the variance about the mean, not from E[x^2]; dw and db by slices of rows cut by shape, slices
//        added in order: the same bits for any number of threads. NaN and inf spread over their row, as in the plain formula
//   cost 2 reads of a row, the second from cache, and 1 write; bound by memory
#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "norm_inl.h"
#include "foreach_isa.h"

namespace plumbline {
void CpuBackend::rms_norm(const float* x_TC, const float* w_C, float eps, float* y_TC, float* rstd_T, int64_t T, int64_t C) {
  const auto kernel = PLUMBLINE_PICK(isa_, rms_norm_rows);
  const Tiles tiles = tile_rows(T, C);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t t = tiles.begin(tile);
    kernel(x_TC + t * C, w_C, eps, y_TC + t * C, rstd_T + t, tiles.end(tile) - t, C);
  });
}

void CpuBackend::rms_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* rstd_T, float* dx_TC, float* dw_C,
                               float* dx_norm_T, int64_t T, int64_t C, bool accumulate_dx) {
  const auto kernel = PLUMBLINE_PICK(isa_, rms_norm_grad_rows);
  const Tiles slices = slice_rows(T, C);
  const int64_t stride = padded(C);
  float* partial = dw_C ? static_cast<float*>(scratch(0, static_cast<size_t>(slices.count * stride) * sizeof(float))) : nullptr;
  parallel(slices.count, [&](int64_t slice, int32_t) {
    const int64_t t = slices.begin(slice), first = t * C;
    float* dw = partial ? partial + slice * stride : nullptr;
    if (dw) std::fill_n(dw, C, 0.0f);
    kernel(dy_TC + first, x_TC + first, w_C, rstd_T + t, dx_TC + first, dw, dx_norm_T ? dx_norm_T + t : nullptr, slices.end(slice) - t, C,
           accumulate_dx);
  });
  if (dw_C) PLUMBLINE_PICK(isa_, add_slices)(partial, slices.count, stride, dw_C, C);
}

void CpuBackend::layer_norm(const float* x_TC, const float* w_C, const float* b_C, float eps, float* y_TC, float* mean_T, float* rstd_T,
                            int64_t T, int64_t C) {
  const auto kernel = PLUMBLINE_PICK(isa_, layer_norm_rows);
  const Tiles tiles = tile_rows(T, C);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t t = tiles.begin(tile);
    kernel(x_TC + t * C, w_C, b_C, eps, y_TC + t * C, mean_T + t, rstd_T + t, tiles.end(tile) - t, C);
  });
}

void CpuBackend::layer_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* mean_T, const float* rstd_T,
                                 float* dx_TC, float* dw_C, float* db_C, int64_t T, int64_t C, bool accumulate_dx) {
  const auto kernel = PLUMBLINE_PICK(isa_, layer_norm_grad_rows);
  const Tiles slices = slice_rows(T, C);
  const int64_t width = padded(C), stride = 2 * width;  // dw, then db
  const bool weights = dw_C || db_C;
  float* partial = weights ? static_cast<float*>(scratch(0, static_cast<size_t>(slices.count * stride) * sizeof(float))) : nullptr;
  parallel(slices.count, [&](int64_t slice, int32_t) {
    const int64_t t = slices.begin(slice), first = t * C;
    float* dw = partial ? partial + slice * stride : nullptr;
    if (dw) std::fill_n(dw, stride, 0.0f);
    kernel(dy_TC + first, x_TC + first, w_C, mean_T + t, rstd_T + t, dx_TC + first, dw, dw ? dw + width : nullptr, slices.end(slice) - t,
           C, accumulate_dx);
  });
  if (dw_C) PLUMBLINE_PICK(isa_, add_slices)(partial, slices.count, stride, dw_C, C);
  if (db_C) PLUMBLINE_PICK(isa_, add_slices)(partial + width, slices.count, stride, db_C, C);
}

}  // namespace plumbline
