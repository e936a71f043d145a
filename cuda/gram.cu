// gram: Gram matrices of a ragged batch, on the shorter side.   g = m m^T (rows <= cols) or m^T m, r = min(rows, cols)
//   in   matrices [rows, cols], row-major, f32, f16 or bf16      out  g [r, r] f64, packed one after another, exactly symmetric
//   how  f64 tensor cores: products of f32 values are exact, sums along the longer side in a fixed order; NaN and inf spread. Lanes read
//        their own fragments from memory, 4 elements at a time: a fragment's place along the sum, and its row, are free to choose
//   cost no r above 32: a block of 8 warps per matrix, which share the sum. Else a block of 4 warps per 64 x 64 of the upper triangle, a warp per
//        32 x 32: each element is read r/32 times, from L1. Few tiles: blocks share the sum too, and a second launch adds it up.
//        32 KB of shared memory for r <= 32, none beyond. Bound by the tensor cores, for r <= 32 by memory
//   limits any size; loads of one element where cols is no multiple of 4 or a matrix is not aligned to 4 elements
#include <algorithm>
#include <vector>

#include "cuda_backend.h"
#include "dtype.cuh"

namespace plumbline {
namespace {

constexpr int kStep = 16;                // of the sum: four elements for each lane of a row
constexpr int64_t kEnoughBlocks = 384;   // three for each multiprocessor of an H100: with fewer the sums are split
constexpr int64_t kLeastDepth = 128;     // of a part

struct GramTask {
  const void* data;
  int64_t rows, cols, out, first_tile;  // out: offset in the result
  bool is_whole;                        // four elements may be read at a time
};

template <typename T, int kSize>
struct alignas(kSize * sizeof(T)) Run {
  T at[kSize];
};

// Fragments f of 8 rows of a panel over one step, for lane 4 g + t: rows 8 f + g at 4 t + e where rows run along memory, else rows
// kFrags g + f at 4 e + t, so that both read runs.
template <int kFrags, typename T, bool kIsWide, bool kIsWhole>
struct Panel {
  static constexpr int kSize = kIsWide ? 4 : kFrags, kRuns = kIsWide ? kFrags : 4;
  Run<T, kSize> run[kRuns];

  PLUMBLINE_DEVICE void load(const GramTask& task, int64_t row, int64_t k, int64_t end) {
    const int group = threadIdx.x % 32 / 4, place = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kRuns; ++n) {
      const int64_t i = kIsWide ? row + group + 8 * n : row + kFrags * group, at = kIsWide ? k + 4 * place : k + place + 4 * n;
      const int64_t along = kIsWide ? at : i, across = kIsWide ? i : at, inside = across < (kIsWide ? task.rows : end) ? (kIsWide ? end : task.cols) - along : 0;
      const T* from = static_cast<const T*>(task.data) + across * task.cols + along;
      run[n] = {};
      if (kIsWhole && inside > 0) run[n] = *reinterpret_cast<const Run<T, kSize>*>(from);
#pragma unroll
      for (int m = 0; m < kSize; ++m)
        if (!kIsWhole && m < inside) run[n].at[m] = from[m];
    }
  }
  PLUMBLINE_DEVICE double at(int f, int e) const { return static_cast<double>(to_float(kIsWide ? run[f].at[e] : run[e].at[f])); }
};
PLUMBLINE_DEVICE int row_of(int position, int frags, bool is_wide) { return is_wide ? position : position % 8 * frags + position / 8; }

template <int kFrags>
using Sums = double[kFrags / 2][kFrags][4];

// Steps [from, to) of the sum for the rows from `row` on against those from `column` on; kAhead steps are loaded at a time. A tile on the
// diagonal has only one panel, and leaves out fragments that are others' transposes.
template <int kFrags, int kAhead, bool kIsDiagonal, bool kIsWide, bool kIsWhole, typename T>
PLUMBLINE_DEVICE void accumulate(Sums<kFrags>& sum, const GramTask& task, int64_t row, int64_t column, int64_t from, int64_t to) {
  const int64_t depth = kIsWide ? task.cols : task.rows, end = to * kStep < depth ? to * kStep : depth;
#pragma unroll 1
  for (int64_t k = from * kStep; k < end; k += kAhead * kStep) {
    Panel<kFrags, T, kIsWide, kIsWhole> left[kAhead], other[kIsDiagonal ? 1 : kAhead];
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      left[s].load(task, row, k + s * kStep, end);
      if (!kIsDiagonal) other[s].load(task, column, k + s * kStep, end);
    }
#pragma unroll
    for (int s = 0; s < 2 * kAhead; ++s) {  // eight places of the sum
      const auto& right = kIsDiagonal ? left[s / 2] : other[kIsDiagonal ? 0 : s / 2];
      const int e = s % 2 * 2;
      double b[kFrags][2];
#pragma unroll
      for (int f = 0; f < kFrags; ++f) b[f][0] = right.at(f, e), b[f][1] = right.at(f, e + 1);
#pragma unroll
      for (int m = 0; m < kFrags / 2; ++m) {
        const auto& panel = left[s / 2];
        const double a[4] = {panel.at(2 * m, e), panel.at(2 * m + 1, e), panel.at(2 * m, e + 1), panel.at(2 * m + 1, e + 1)};
#pragma unroll
        for (int f = kIsDiagonal ? 2 * m : 0; f < kFrags; ++f) mma_f64(sum[m][f], a, b[f][0], b[f][1]);
      }
    }
  }
}

template <int kFrags, int kAhead, bool kIsDiagonal, typename T>
PLUMBLINE_DEVICE void accumulate(Sums<kFrags>& sum, const GramTask& task, int64_t row, int64_t column, int64_t from, int64_t to) {
  if (task.rows <= task.cols) {
    if (task.is_whole) accumulate<kFrags, kAhead, kIsDiagonal, true, true, T>(sum, task, row, column, from, to);
    else accumulate<kFrags, kAhead, kIsDiagonal, true, false, T>(sum, task, row, column, from, to);
  } else {
    if (task.is_whole) accumulate<kFrags, kAhead, kIsDiagonal, false, true, T>(sum, task, row, column, from, to);
    else accumulate<kFrags, kAhead, kIsDiagonal, false, false, T>(sum, task, row, column, from, to);
  }
}

// The last task whose first tile is not beyond `tile`.
PLUMBLINE_DEVICE GramTask find_task(const GramTask* tasks, int count, int64_t tile) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (tasks[middle].first_tile <= tile) low = middle;
    else high = middle - 1;
  }
  return tasks[low];
}

// Tiles of the upper triangle, row by row: number -> (row, column) of tiles, `across` of them on a side.
PLUMBLINE_DEVICE void place_of(int64_t number, int64_t across, int64_t* row, int64_t* column) {
  int64_t i = 0;
  while (number >= across - i) number -= across - i, ++i;
  *row = i, *column = i + number;
}

PLUMBLINE_DEVICE int64_t shorter_side(const GramTask& task) { return task.rows < task.cols ? task.rows : task.cols; }

// Results: both triangles of g, or where sums are split the upper one, a plane of `elements` for each part.
struct GramOut {
  double* data;
  int64_t elements;
  int parts;
};

// On the diagonal an element is written by the lane that has it above the diagonal of places: lower ones may differ in their last bits.
template <int kFrags, bool kIsDiagonal>
PLUMBLINE_DEVICE void write_tile(const Sums<kFrags>& sum, const GramTask& task, int64_t row, int64_t column, const GramOut& out) {
  const int64_t r = shorter_side(task);
  const bool is_wide = task.rows <= task.cols;
  double* to = out.data + blockIdx.y * out.elements + task.out;
  const int group = threadIdx.x % 32 / 4, place = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < kFrags / 2; ++m)
#pragma unroll
    for (int f = kIsDiagonal ? 2 * m : 0; f < kFrags; ++f)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int above = 8 * (2 * m + c / 2) + group, beside = 8 * f + 2 * place + c % 2;
        const int64_t i = row + row_of(above, kFrags, is_wide), j = column + row_of(beside, kFrags, is_wide);
        if (i >= r || j >= r || (kIsDiagonal && above > beside)) continue;
        to[i < j ? i * r + j : j * r + i] = sum[m][f][c];
        if (out.parts == 1) to[i < j ? j * r + i : i * r + j] = sum[m][f][c];
      }
}

// r <= 8 kFrags. The warps share the sum.
constexpr int kSmallWarps = 8;
template <int kFrags, typename T>
__global__ void __launch_bounds__(32 * kSmallWarps, kFrags == 2 ? 2 : 1) gram_small_kernel(const GramTask* tasks, int count, GramOut out) {
  constexpr int kAhead = 8 / kFrags;
  __shared__ double room[kSmallWarps / 2][kFrags / 2 * kFrags * 4][32];
  const GramTask task = find_task(tasks, count, blockIdx.x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t steps = ((task.rows < task.cols ? task.cols : task.rows) + kStep - 1) / kStep, slices = out.parts * kSmallWarps, slice = blockIdx.y * kSmallWarps + warp;
  Sums<kFrags> sum = {};
  accumulate<kFrags, kAhead, true, T>(sum, task, 0, 0, steps * slice / slices, steps * (slice + 1) / slices);
#pragma unroll 1
  for (int half = kSmallWarps / 2; half > 0; half /= 2) {
#pragma unroll
    for (int n = 0; n < kFrags / 2 * kFrags * 4; ++n)
      if (warp >= half && warp < 2 * half) room[warp - half][n][lane] = sum[n / 4 / kFrags][n / 4 % kFrags][n % 4];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kFrags / 2 * kFrags * 4; ++n)
      if (warp < half) sum[n / 4 / kFrags][n / 4 % kFrags][n % 4] += room[warp][n][lane];
    __syncthreads();
  }
  if (warp == 0) write_tile<kFrags, true>(sum, task, 0, 0, out);
}

constexpr int kTile = 64, kWarpTile = 32, kTileWarps = 4;
template <typename T>
__global__ void __launch_bounds__(32 * kTileWarps, 3) gram_kernel(const GramTask* tasks, int count, GramOut out) {
  constexpr int kFrags = kWarpTile / 8;
  const GramTask task = find_task(tasks, count, blockIdx.x);
  const int64_t r = shorter_side(task), steps = ((task.rows < task.cols ? task.cols : task.rows) + kStep - 1) / kStep;
  int64_t tile_row, tile_column;
  place_of(blockIdx.x - task.first_tile, (r + kTile - 1) / kTile, &tile_row, &tile_column);
  const int quarter = (threadIdx.x / 32 + blockIdx.x) % kTileWarps;  // the one below a diagonal has no work: not always the same warp
  const int64_t row = tile_row * kTile + quarter / 2 * kWarpTile, column = tile_column * kTile + quarter % 2 * kWarpTile;
  if (row > column || column >= r) return;
  const int64_t from = steps * blockIdx.y / out.parts, to = steps * (blockIdx.y + 1) / out.parts;
  Sums<kFrags> sum = {};
  if (row == column) {
    accumulate<kFrags, 1, true, T>(sum, task, row, column, from, to);
    write_tile<kFrags, true>(sum, task, row, column, out);
  } else {
    accumulate<kFrags, 1, false, T>(sum, task, row, column, from, to);
    write_tile<kFrags, false>(sum, task, row, column, out);
  }
}

// The sums of all parts, in order.
constexpr int kAddThreads = 256;
__global__ void __launch_bounds__(kAddThreads) add_parts_kernel(const GramTask* tasks, int count, int side, GramOut from, double* gram) {
  const GramTask task = find_task(tasks, count, blockIdx.x);
  const int64_t r = shorter_side(task);
  int64_t tile_row, tile_column;
  place_of(blockIdx.x - task.first_tile, (r + side - 1) / side, &tile_row, &tile_column);
  for (int n = threadIdx.x; n < side * side; n += kAddThreads) {
    const int64_t i = tile_row * side + n / side, j = tile_column * side + n % side;
    if (i > j || j >= r) continue;
    const double* part = from.data + task.out + i * r + j;
    double sum = 0;
#pragma unroll 4
    for (int p = 0; p < from.parts; ++p) sum += part[p * from.elements];
    gram[task.out + i * r + j] = sum, gram[task.out + j * r + i] = sum;
  }
}

}  // namespace

void CudaBackend::gram(const MatrixBatch& matrices, double* gram) {
  poll();
  int64_t largest = 0, deepest = 0;
  const auto shorter = [&](int32_t b) { return std::min<int64_t>(matrices.rows[b], matrices.cols[b]); };
  for (int32_t b = 0; b < matrices.count; ++b) largest = std::max(largest, shorter(b)), deepest = std::max<int64_t>({deepest, matrices.rows[b], matrices.cols[b]});
  const int64_t side = largest <= 16 ? 16 : largest <= 32 ? 32 : kTile;
  std::vector<GramTask> tasks;
  int64_t tiles = 0, out = 0;
  for (int32_t b = 0; b < matrices.count; ++b) {
    const int64_t r = shorter(b), across = (r + side - 1) / side;
    const bool is_whole = matrices.cols[b] % 4 == 0 && reinterpret_cast<uintptr_t>(matrices.data[b]) % (4 * dtype_bytes(matrices.dtype)) == 0;
    if (r > 0) tasks.push_back({matrices.data[b], matrices.rows[b], matrices.cols[b], out, tiles, is_whole});
    tiles += across * (across + 1) / 2, out += r * r;
  }
  if (tiles == 0) return;
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min(kEnoughBlocks / tiles, (deepest + kLeastDepth - 1) / kLeastDepth)));
  const GramOut to = {parts == 1 ? gram : static_cast<double*>(scratch(static_cast<size_t>(parts * out) * sizeof(double))), out, parts};
  Upload up(*this, "gram");
  const auto table = up.add(tasks.data(), static_cast<int64_t>(tasks.size()));
  up.send();
  const int count = static_cast<int>(tasks.size());
  const unsigned blocks = static_cast<unsigned>(tiles);
  dispatch(matrices.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = side == 16 ? gram_small_kernel<2, T> : side == 32 ? gram_small_kernel<4, T> : gram_kernel<T>;
    check(launch(kernel, dim3(blocks, static_cast<unsigned>(parts)), dim3(side == kTile ? 32 * kTileWarps : 32 * kSmallWarps), 0, stream(), up[table], count, to), "gram");
  });
  if (parts > 1) check(launch(add_parts_kernel, dim3(blocks), dim3(kAddThreads), 0, stream(), up[table], count, static_cast<int>(side), to, gram), "gram");
}

}  // namespace plumbline
