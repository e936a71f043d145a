// rms_norm, layer_norm: one scale per row.   y = w (x - mean) rstd + b, rstd = 1/sqrt(mean (x - mean)^2 + eps); RMS: mean = 0, b = 0
//   in   x (T, C), w (C), b (C), f32           out  y (T, C); mean (T), rstd (T) kept for the backward pass
//   how  one warp per row, which stays in registers (up to 4,096 channels; longer rows are read again, from cache): lane sums, then a
//        butterfly; the variance about the mean. Deterministic; no row depends on another. NaN and inf spread over their row
//   cost up to 8 warps a block, w and b in shared memory once per block; 8 T C bytes, bound by memory: every load of a row is in flight
//        at once, 48 KiB a multiprocessor at C = 1,536. w: 6 % of the reads at T = 2,048 (b as much)
//   limits: none; unaligned rows and C % 4 != 0 take 4-byte accesses
#include "cuda_backend.h"
#include "dtype.cuh"
#include "reduce.cuh"

namespace plumbline {
namespace {

constexpr int kMaxWarps = 8;
constexpr int64_t kMultiprocessors = 132;  // of an H100: the grid is made for it, on every device the same

struct NormRows {
  const float *x_TC, *w_C, *b_C;
  float eps;
  float *y_TC, *mean_T, *rstd_T;
  int64_t T, C;
};

// kValues elements of a row in each lane: (p * 32 + lane) * kWidth + k.
template <int kWidth, int kValues>
struct RowPart {
  float at[kValues];

  static PLUMBLINE_DEVICE int column(int i) { return (i / kWidth * 32 + static_cast<int>(threadIdx.x % 32)) * kWidth; }
  PLUMBLINE_DEVICE void load(const float* x, int size) {
#pragma unroll
    for (int i = 0; i < kValues; i += kWidth) {
      const int c = column(i);
      if constexpr (kWidth == 4) {
        const float4 four = c < size ? *reinterpret_cast<const float4*>(x + c) : make_float4(0, 0, 0, 0);
        at[i] = four.x, at[i + 1] = four.y, at[i + 2] = four.z, at[i + 3] = four.w;
      } else {
        at[i] = c < size ? x[c] : 0.0f;
      }
    }
  }
  PLUMBLINE_DEVICE float sum() const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) total += at[i];
    return total;
  }
  PLUMBLINE_DEVICE void subtract(float centre, int size) {  // the padding stays 0
#pragma unroll
    for (int i = 0; i < kValues; ++i) at[i] = column(i) < size ? at[i] - centre : 0.0f;
  }
  PLUMBLINE_DEVICE float squares() const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) total = fmaf(at[i], at[i], total);
    return total;
  }
};

template <bool kCentred, int kWidth, int kValues>
PLUMBLINE_DEVICE void store_part(const RowPart<kWidth, kValues>& part, float rstd, const float* w, const float* b, float* y, int size) {
#pragma unroll
  for (int i = 0; i < kValues; i += kWidth) {
    const int c = part.column(i);
    if (c >= size) break;
    float out[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) out[k] = part.at[i + k] * rstd;
    if constexpr (kWidth == 4) {
      const float4 scale = *reinterpret_cast<const float4*>(w + c);
      float4 four = make_float4(out[0] * scale.x, out[1] * scale.y, out[2] * scale.z, out[3] * scale.w);
      if constexpr (kCentred) {
        const float4 shift = *reinterpret_cast<const float4*>(b + c);
        four = make_float4(fmaf(out[0], scale.x, shift.x), fmaf(out[1], scale.y, shift.y), fmaf(out[2], scale.z, shift.z), fmaf(out[3], scale.w, shift.w));
      }
      *reinterpret_cast<float4*>(y + c) = four;
    } else {
      y[c] = kCentred ? fmaf(out[0], w[c], b[c]) : out[0] * w[c];
    }
  }
}

// kKeepWeights: C floats of w, then of b, in shared memory. A row longer than one part is read once per pass over it.
template <bool kCentred, int kWidth, int kValues, bool kKeepWeights>
__global__ void __launch_bounds__(kMaxWarps * 32) norm_kernel(NormRows rows) {
  constexpr int64_t kSpan = 32 * kValues;
  const int64_t C = rows.C;
  const bool is_whole = C <= kSpan;
  const float *w = rows.w_C, *b = rows.b_C;
  if constexpr (kKeepWeights) {
    PLUMBLINE_SHARED(float, kept);
    for (int64_t c = threadIdx.x * 4; c < C; c += blockDim.x * 4) {
      *reinterpret_cast<float4*>(kept + c) = *reinterpret_cast<const float4*>(w + c);
      if (kCentred) *reinterpret_cast<float4*>(kept + C + c) = *reinterpret_cast<const float4*>(b + c);
    }
    __syncthreads();
    w = kept, b = kept + C;
  }
  const int64_t warps = blockDim.x / 32;
  const auto left = [=](int64_t start) { return static_cast<int>(min(C - start, kSpan)); };
  RowPart<kWidth, kValues> part;
  for (int64_t t = blockIdx.x * warps + threadIdx.x / 32; t < rows.T; t += gridDim.x * warps) {
    const float* x = rows.x_TC + t * C;
    float mean = 0, square = 0;
    if (is_whole) part.load(x, static_cast<int>(C));
    if (kCentred) {
      for (int64_t start = 0; start < C; start += kSpan) {
        if (!is_whole) part.load(x + start, left(start));
        mean += part.sum();
      }
      mean = warp_sum(mean) / static_cast<float>(C);
      if (is_whole) part.subtract(mean, static_cast<int>(C));
    }
    const auto load_again = [&](int64_t start) {
      if (is_whole) return;
      part.load(x + start, left(start));
      if (kCentred) part.subtract(mean, left(start));
    };
    for (int64_t start = 0; start < C; start += kSpan) {
      load_again(start);
      square += part.squares();
    }
    const float rstd = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(C) + rows.eps);
    if (threadIdx.x % 32 == 0) {
      if (kCentred) rows.mean_T[t] = mean;
      rows.rstd_T[t] = rstd;
    }
    for (int64_t start = 0; start < C; start += kSpan) {
      load_again(start);
      store_part<kCentred>(part, rstd, w + start, b + start, rows.y_TC + t * C + start, left(start));
    }
  }
}

template <bool kCentred, int kWidth, int kValues>
cudaError_t launch_norm(const NormRows& rows, cudaStream_t stream) {
  constexpr bool kKeepWeights = kWidth == 4;
  const int64_t per_block = std::min<int64_t>(blocks_of(rows.T, kMultiprocessors), kMaxWarps);
  const size_t shared = kKeepWeights ? static_cast<size_t>(rows.C) * sizeof(float) * (kCentred ? 2 : 1) : 0;
  return launch(norm_kernel<kCentred, kWidth, kValues, kKeepWeights>, dim3(blocks_of(rows.T, per_block, kMultiprocessors * (kKeepWeights ? 1 : 8))),
                dim3(static_cast<unsigned>(per_block) * 32), shared, stream, rows);
}

template <bool kCentred>
cudaError_t norm(const NormRows& rows, cudaStream_t stream) {
  if (rows.T == 0) return cudaSuccess;
  const bool is_aligned = rows.C % 4 == 0 && is_aligned_16(rows.x_TC) && is_aligned_16(rows.w_C) && is_aligned_16(rows.b_C) && is_aligned_16(rows.y_TC);
  if (!is_aligned || rows.C > 4096) return launch_norm<kCentred, 1, 16>(rows, stream);
  if (rows.C <= 512) return launch_norm<kCentred, 4, 16>(rows, stream);
  if (rows.C <= 2048) return launch_norm<kCentred, 4, 64>(rows, stream);
  return launch_norm<kCentred, 4, 128>(rows, stream);
}

}  // namespace

void CudaBackend::rms_norm(const float* x_TC, const float* w_C, float eps, float* y_TC, float* rstd_T, int64_t T, int64_t C) {
  poll();
  check(norm<false>(NormRows{x_TC, w_C, nullptr, eps, y_TC, nullptr, rstd_T, T, C}, stream()), "rms_norm");
}

void CudaBackend::layer_norm(const float* x_TC, const float* w_C, const float* b_C, float eps, float* y_TC, float* mean_T, float* rstd_T, int64_t T, int64_t C) {
  poll();
  check(norm<true>(NormRows{x_TC, w_C, b_C, eps, y_TC, mean_T, rstd_T, T, C}, stream()), "layer_norm");
}

}  // namespace plumbline
