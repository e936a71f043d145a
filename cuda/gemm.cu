// gemm: products too large for gemv on the tensor cores, at the accuracy of f32.   c (+)= a b + bias
//   in   a f32, b f32 or bf16, any strides, as bf16 planes (split_planes.cu); b straight from where it lies if it is bf16, K-contiguous and aligned
//   out  c f32
//   how  a = high + middle + low, exactly. b bf16: 3 products, exact but for the sums. b f32: the 6 products down to middle x middle; the three
//        left out are below 2^-26 |a||b|. Small products first, 32 k at a time, whose sum is added to the total by a rounded f32 addition: the
//        tensor cores' own sums are cut off, not rounded, and drift over a long K. K is cut into slices by shape alone (finish_product): the
//        same bits on every run. A result that is not finite (a NaN, an infinity, or a value whose high part rounds to one) is summed again
//        in plain f32
//   cost blocks of 8 warps, tiles of 128 or 64 x 128 x 32, 2 to 4 of them in flight by cp.async, 72 to 96 KB of shared memory; ldmatrix without
//        bank conflicts. Bound by the tensor cores: their bf16 peak / 3 (b bf16) or / 6 (b f32)
//   limits: M, N, K > 0; fewer than 2^31 tiles
#include <type_traits>

#include "product.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kColumns = 128, kDepth = 32;  // of a tile
constexpr int kRowBytes = kDepth * 2;                       // of a tile's row in shared memory

struct Task : GemmTask {
  int64_t row_tiles, column_tiles;
};

// Where the 16-byte chunk of a row lies: eight rows at the same chunk, and two rows in turn, touch every bank once.
PLUMBLINE_DEVICE int swizzled(int row, int chunk) { return row * kRowBytes + (chunk ^ (row >> 1 & 3)) * 16; }

template <int kRowTiles, int kPlanesB>
struct Shape {
  static constexpr int kRows = 32 * kRowTiles, kPlaneA = kRows * kRowBytes, kPlaneB = kColumns * kRowBytes;
  static constexpr int kStageBytes = kPlanes * kPlaneA + kPlanesB * kPlaneB;
  static constexpr int kStages = kPlanesB == kPlanes ? 2 : kRowTiles == 4 ? 3 : 4;  // what 99 KB hold, the least of sm_80 to sm_120
};

// The block's share of one tile on its way to shared memory: 4 lanes for each row, 64 rows at a time.
template <int kRowsOfTile, int kCount>
PLUMBLINE_DEVICE void load_planes(char* to, const Planes& planes, int64_t first_row, int64_t rows, int64_t k, int64_t end) {
  const int chunk = threadIdx.x % 4;
#pragma unroll
  for (int start = 0; start < kRowsOfTile; start += kThreads / 4) {
    const int row = start + static_cast<int>(threadIdx.x) / 4;
    const bool is_there = first_row + row < rows && k + chunk * 8 < end;
    const uint16_t* const from = planes.at + (is_there ? (first_row + row) * planes.row_size + k + chunk * 8 : 0);
#pragma unroll
    for (int plane = 0; plane < kCount; ++plane) cp_async_16(to + plane * kRowsOfTile * kRowBytes + swizzled(row, chunk), from + plane * planes.plane_size, is_there);
  }
}

// total += the tile's product, for the 16 kRowTiles x 32 results of a warp.
template <int kRowTiles, int kPlanesB>
PLUMBLINE_DEVICE void multiply_tile(const char* stage, int warp_row, int warp_column, float (&total)[kRowTiles][4][4]) {
  using S = Shape<kRowTiles, kPlanesB>;
  constexpr int kSteps = kDepth / 16;
  const int lane = threadIdx.x % 32;
  uint32_t b[kPlanesB][4][2 * kSteps];
#pragma unroll
  for (int plane = 0; plane < kPlanesB; ++plane)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      ldmatrix_x4(b[plane][j], stage + kPlanes * S::kPlaneA + plane * S::kPlaneB + swizzled(warp_column * 32 + j * 8 + lane % 8, lane / 8));
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
    uint32_t a[kPlanes][kSteps][4];
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        ldmatrix_x4(a[plane][step], stage + plane * S::kPlaneA + swizzled((warp_row * kRowTiles + i) * 16 + lane % 16, 2 * step + lane / 16));
    float sum[4][4] = {};
#pragma unroll
    for (int order = 2; order >= 0; --order)  // 0: high x high; 2: middle x middle and high x low, some 2^-16 of it
#pragma unroll
      for (int plane_a = order; plane_a >= 0; --plane_a) {
        if (order - plane_a >= kPlanesB) continue;
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int j = 0; j < 4; ++j) mma_bf16(sum[j], a[plane_a][step], b[order - plane_a][j][2 * step], b[order - plane_a][j][2 * step + 1]);
      }
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) total[i][j][e] += sum[j][e];
  }
}

// Two results side by side, of the slice or of c.
template <typename T>
PLUMBLINE_DEVICE void store_pair(const Task& task, int64_t slice, int64_t i, int64_t j, float2 value, int64_t begin, int64_t end) {
  const Product& p = task.p;
  if (i >= p.M || j >= p.N) return;
  const bool has_second = j + 1 < p.N;
  if (!is_finite(value.x)) value.x = plain_sum<T>(p, i, j, begin, end);
  if (has_second && !is_finite(value.y)) value.y = plain_sum<T>(p, i, j + 1, begin, end);
  const bool is_whole = task.slices == 1;
  float* const to = is_whole ? p.c_MN + i * p.c_row + j : task.partial + (slice * p.M + i) * p.N + j;
  if (is_whole && p.bias_N) value.x += p.bias_N[j], value.y += has_second ? p.bias_N[j + 1] : 0.0f;
  const bool add = is_whole && p.accumulate;
  if (has_second && reinterpret_cast<uintptr_t>(to) % sizeof(float2) == 0) {
    const float2 old = add ? *reinterpret_cast<const float2*>(to) : make_float2(0.0f, 0.0f);
    *reinterpret_cast<float2*>(to) = add ? make_float2(old.x + value.x, old.y + value.y) : value;
  } else {
    to[0] = add ? to[0] + value.x : value.x;
    if (has_second) to[1] = add ? to[1] + value.y : value.y;
  }
}

template <int kRowTiles, int kPlanesB>
__global__ void __launch_bounds__(kThreads) gemm_kernel(Task task) {
  using S = Shape<kRowTiles, kPlanesB>;
  PLUMBLINE_SHARED(char, stages);
  const Product& p = task.p;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 128, warp_column = threadIdx.x / 32 % 4;
  const int64_t tiles = task.row_tiles * task.column_tiles, slice = blockIdx.x / tiles;
  const int64_t band = blockIdx.x % tiles / (8 * task.column_tiles), in_band = blockIdx.x % tiles % (8 * task.column_tiles);
  const int64_t band_rows = min(task.row_tiles - band * 8, static_cast<int64_t>(8));  // bands of 8 tiles keep both operands' tiles in L2
  const int64_t first_row = (band * 8 + in_band % band_rows) * S::kRows, first_column = in_band / band_rows * kColumns;
  const int64_t depth_tiles = (p.K + kDepth - 1) / kDepth, first = depth_tiles * slice / task.slices, last = depth_tiles * (slice + 1) / task.slices;
  const auto load = [&](int64_t tile) {
    if (tile < last) {
      char* const stage = stages + tile % S::kStages * S::kStageBytes;
      load_planes<S::kRows, kPlanes>(stage, task.a, first_row, p.M, tile * kDepth, task.a.row_size);
      load_planes<kColumns, kPlanesB>(stage + kPlanes * S::kPlaneA, task.b, first_column, p.N, tile * kDepth, task.a.row_size);
    }
    cp_async_commit();  // an empty group too: the count of groups in flight stays the same
  };
  float total[kRowTiles][4][4] = {};
  for (int s = 0; s < S::kStages - 1; ++s) load(first + s);
  for (int64_t tile = first; tile < last; ++tile) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // the tile is there for all, and nobody reads the stage that is filled next
    load(tile + S::kStages - 1);
    multiply_tile<kRowTiles, kPlanesB>(stages + tile % S::kStages * S::kStageBytes, warp_row, warp_column, total);
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_pair<std::conditional_t<kPlanesB == 1, bf16, float>>(
            task, slice, first_row + (warp_row * kRowTiles + i) * 16 + lane / 4 + 8 * half, first_column + warp_column * 32 + j * 8 + lane % 4 * 2,
            make_float2(total[i][j][2 * half], total[i][j][2 * half + 1]), first * kDepth, last * kDepth);
}

template <int kRowTiles, int kPlanesB>
cudaError_t start(const GemmTask& gemm, cudaStream_t stream) {
  using S = Shape<kRowTiles, kPlanesB>;
  const Task task{gemm, blocks_of(gemm.p.M, S::kRows), blocks_of(gemm.p.N, kColumns)};
  const dim3 grid(static_cast<unsigned>(task.row_tiles * task.column_tiles * task.slices));
  return launch(gemm_kernel<kRowTiles, kPlanesB>, grid, dim3(kThreads), S::kStages * S::kStageBytes, stream, task);
}

}  // namespace

cudaError_t start_gemm(const GemmTask& task, bool is_short, cudaStream_t stream) {
  if (task.p.b_is_bf16) return is_short ? start<2, 1>(task, stream) : start<4, 1>(task, stream);
  return is_short ? start<2, kPlanes>(task, stream) : start<4, kPlanes>(task, stream);
}

}  // namespace plumbline
