#pragma once
// The window with most selected tokens, by a block: marks, their summed-area table, first maximum over pictures, rows and columns.
#include "replay_select.cuh"

namespace plumbline {

struct Greatest {
  PLUMBLINE_DEVICE SortKey operator()(SortKey a, SortKey b) const { return a < b ? b : a; }
};

struct WindowGrid {
  int rows, columns, stride;  // stride: odd, so that the rows of a table lie in different banks
  __host__ PLUMBLINE_DEVICE WindowGrid(int own_rows, int own_columns, int fixed)
      : rows(fixed ? fixed : own_rows), columns(fixed ? fixed : own_columns), stride((columns + 1) | 1) {}
  __host__ PLUMBLINE_DEVICE int64_t floats() const { return static_cast<int64_t>(rows + 1) * stride; }
};

// area[r][c] = marks in rows < r and columns < c.
template <int kThreads>
PLUMBLINE_DEVICE void sum_area(const WindowGrid& grid, const SortKey* sorted, int count, int base, int tokens, int* area) {
  for (int64_t i = threadIdx.x; i < grid.floats(); i += kThreads) area[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int at = key_index(sorted[i]) - base;
    if (at >= 0 && at < tokens && at < static_cast<int64_t>(grid.rows) * grid.columns) area[static_cast<int64_t>(at / grid.columns + 1) * grid.stride + at % grid.columns + 1] = 1;
  }
  __syncthreads();
  for (int r = 1 + threadIdx.x; r <= grid.rows; r += kThreads)
    for (int c = 1, sum = 0; c <= grid.columns; ++c) sum = area[static_cast<int64_t>(r) * grid.stride + c] += sum;
  __syncthreads();
  for (int c = 1 + threadIdx.x; c <= grid.columns; c += kThreads)
    for (int r = 1, sum = 0; r <= grid.rows; ++r) sum = area[static_cast<int64_t>(r) * grid.stride + c] += sum;
  __syncthreads();
}

// window: picture, row, column, height, width, count; grid_P2 from the sequence's first picture on.
template <int kThreads>
PLUMBLINE_DEVICE void best_window(const ReplayRule& rule, const int32_t* grid_P2, int pictures, const SortKey* sorted, int count, int* area, SortKey* room, int32_t* window) {
  int best = -1, base = 0;
  for (int p = 0; p < pictures; ++p) {
    const WindowGrid grid(grid_P2[2 * p], grid_P2[2 * p + 1], rule.grid);
    const int tokens = grid_P2[2 * p] * grid_P2[2 * p + 1], tall = min(rule.window, grid.rows), broad = min(rule.window, grid.columns), across = grid.columns - broad + 1;
    sum_area<kThreads>(grid, sorted, count, base, tokens, area);
    base += tokens;
    SortKey own = 0;
    for (int at = threadIdx.x; at < (grid.rows - tall + 1) * across; at += kThreads) {
      const int *top = area + static_cast<int64_t>(at / across) * grid.stride + at % across, *bottom = top + static_cast<int64_t>(tall) * grid.stride;
      const int marks = bottom[broad] - top[broad] - bottom[0] + top[0];
      own = Greatest{}(own, static_cast<SortKey>(marks + 1) << 32 | (0xffffffffu - static_cast<unsigned>(at)));
    }
    own = block_reduce<kThreads>(own, room, SortKey{0}, Greatest{});
    const int found = static_cast<int>(own >> 32) - 1, at = key_index(own);
    if (found > best && threadIdx.x == 0) {
      const int32_t values[6] = {p, at / across, at % across, tall, broad, found};
      for (int j = 0; j < 6; ++j) window[j] = values[j];
    }
    best = max(best, found);
    __syncthreads();  // the table is made again
  }
}

}  // namespace plumbline
