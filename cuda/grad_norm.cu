// grad_norm, norm_statistics: L2 norm of each row and statistics of the norms by class.   norm[t] = sqrt(sum_c x[t,c]^2)
//                                                                                (gradient dynamics; arXiv 2604.10500, section 3)
//   in   x (T, C) f32, f16 or bf16, any alignment; class (T) bytes, uploaded; or the norms themselves
//   out  norm (T) f32; statistics (classes) brought up to date: count, mean, squared deviations, min, max, histogram, not finite
//   how  f32 sums over fixed lanes; a row whose sum leaves [2^-100, 2^120] is summed again in f64, so that only a norm beyond f32
//        overflows. Statistics in f64, two stages in one launch, fixed order: the same bits on every run. NaN and inf are only counted
//   cost one read of x; a warp per row up to 4096 channels, else a block; 256 threads, at most 512 blocks of consecutive rows; bound by
//        memory: 16-byte loads, eight in flight per lane; the classes are read from host memory while rows are
//   limits classes <= 256; T below 2^38 rows (a block's rows are 64-bit, its tile's are 256)
#include "cuda_backend.h"
#include "norm_statistics.cuh"
#include "row_squares.cuh"

namespace plumbline {
namespace {

constexpr int64_t kWarpChannels = 4096;  // above: a block per row
constexpr int32_t kSharedClasses = 8;    // a block's own histograms take 1 KB for each class
constexpr int64_t kSharedRows = 32;      // below that many rows per block it hardly relieves the few bins where all of them fall
constexpr int kInFlight = 8;             // loads of a lane

PLUMBLINE_DEVICE bool is_safe(float sum) { return sum >= 0x1p-100f && sum <= 0x1p120f; }

template <typename T>
struct WarpRows {  // a warp for each row of the tile
  const T* x;
  int64_t C;
  PLUMBLINE_DEVICE void fill(float* norms, int64_t first, int rows) const {
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < rows; i += kNormWarps) {
      const T* row = x + (first + i) * C;
      const float sum = warp_sum(lane_squares<32, kInFlight>(row, C, lane, SquareF32{}));
      float norm = sqrtf(sum);
      if (!is_safe(sum)) norm = static_cast<float>(sqrt(warp_sum(lane_squares<32, 4>(row, C, lane, SquareF64{}))));
      if (lane == 0) norms[i] = norm;
    }
  }
};

template <typename T>
struct BlockRows {  // all warps on each row; no barrier between rows, so that loads go on
  const T* x;
  int64_t C;
  PLUMBLINE_DEVICE void fill(float* norms, int64_t first, int rows) const {
    __shared__ float parts[kNormTile][kNormWarps + 1];
    __shared__ double room[kNormWarps];
    const int thread = threadIdx.x;
    for (int i = 0; i < rows; ++i) {
      const float part = warp_sum(lane_squares<kNormThreads, kInFlight>(x + (first + i) * C, C, thread, SquareF32{}));
      if (thread % 32 == 0) parts[i][thread / 32] = part;
    }
    __syncthreads();
    if (thread < rows) {
      const float* p = parts[thread];
      norms[thread] = ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
    }
    __syncthreads();
    for (int i = 0; i < rows; ++i) {
      if (is_safe(norms[i])) continue;
      const double sum = block_sum<kNormThreads>(lane_squares<kNormThreads, 4>(x + (first + i) * C, C, thread, SquareF64{}), room);
      if (thread == 0) parts[i][0] = static_cast<float>(sqrt(sum));
    }
    __syncthreads();
    if (thread < rows) norms[thread] = is_safe(norms[thread]) ? sqrtf(norms[thread]) : parts[thread][0];
  }
};

struct GivenNorms {
  const float* norm_T;
  PLUMBLINE_DEVICE void fill(float* norms, int64_t first, int rows) const {
    if (static_cast<int>(threadIdx.x) < rows) norms[threadIdx.x] = norm_T[first + threadIdx.x];
  }
};

// Block b takes rows b * rows_each ... of them, in tiles.
template <typename Rows>
__global__ void __launch_bounds__(kNormThreads, 4) norm_kernel(Rows source, float* norm_T, NormClasses to, int64_t T, int64_t rows_each, bool has_histogram) {
  PLUMBLINE_SHARED(int32_t, shared_histogram);
  __shared__ float norms[kNormTile];
  __shared__ uint8_t kinds[kNormTile];
  int32_t* histogram = has_histogram ? shared_histogram : nullptr;
  if (histogram)
    for (int i = threadIdx.x; i < to.classes * kNormBins; i += kNormThreads) histogram[i] = 0;
  const int64_t begin = blockIdx.x * rows_each, end = begin + rows_each < T ? begin + rows_each : T;
  for (int64_t first = begin; first < end; first += kNormTile) {
    const int rows = static_cast<int>(end - first < kNormTile ? end - first : kNormTile);
    const int kind = class_of(to, first, rows);
    source.fill(norms, first, rows);
    __syncthreads();
    const int i = threadIdx.x;
    if (i < rows) {
      const float norm = norms[i];
      if (norm_T) norm_T[first + i] = norm;
      norms[i] = to.scale * norm;
      kinds[i] = static_cast<uint8_t>(kind);
    }
    __syncthreads();
    if (to.statistics_K) add_tile(to, norms, kinds, rows, first == begin, histogram);
    __syncthreads();
  }
  if (to.statistics_K) finish_statistics(to, histogram);
}

// Rows of a block: whole warps' worth, the same for all but the last.
template <typename Rows>
void run_norms(CudaBackend& backend, const char* op, const Rows& source, int64_t per_block, float* norm_T, NormClasses to, int64_t T) {
  if (T <= 0) return;
  const int64_t share = (T + kNormBlocks - 1) / kNormBlocks, rows_each = (share + per_block - 1) / per_block * per_block;
  const unsigned blocks = blocks_of(T, rows_each);
  CudaBackend::Upload up(backend, op);
  const auto classes = up.add(to.statistics_K ? to.class_T : nullptr, T);
  up.stage();
  to.class_T = up[classes];
  to.finished = backend.counter();
  to.sets_KG = to.statistics_K ? static_cast<BlockSet*>(backend.scratch(static_cast<size_t>(to.classes) * blocks * sizeof(BlockSet))) : nullptr;
  const bool has_histogram = to.statistics_K && to.classes <= kSharedClasses && rows_each >= kSharedRows;
  const size_t shared = has_histogram ? static_cast<size_t>(to.classes) * kNormBins * sizeof(int32_t) : 0;
  backend.check(launch(norm_kernel<Rows>, dim3(blocks), dim3(kNormThreads), shared, backend.stream(), source, norm_T, to, T, rows_each, has_histogram), op);
}

}  // namespace

void CudaBackend::grad_norm(const void* x_TC, DType dtype, const uint8_t* class_T, int32_t classes, float scale, float* norm_T,
                            NormStatistics* statistics_K, int64_t T, int64_t C) {
  poll();
  const NormClasses to = {statistics_K, class_T, nullptr, nullptr, classes, scale};
  dispatch(dtype, [&](auto zero) {
    using Element = decltype(zero);
    const Element* x = static_cast<const Element*>(x_TC);
    if (C <= kWarpChannels) run_norms(*this, "grad_norm", WarpRows<Element>{x, C}, kNormWarps, norm_T, to, T);
    else run_norms(*this, "grad_norm", BlockRows<Element>{x, C}, 1, norm_T, to, T);
  });
}

void CudaBackend::norm_statistics(const float* norm_T, const uint8_t* class_T, int32_t classes, float scale, NormStatistics* statistics_K, int64_t T) {
  poll();
  run_norms(*this, "norm_statistics", GivenNorms{norm_T}, kNormThreads, nullptr, NormClasses{statistics_K, class_T, nullptr, nullptr, classes, scale}, T);
}

}  // namespace plumbline
