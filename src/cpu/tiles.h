#pragma once
// How an operation is cut into tiles for ThreadPool::parallel_for: by its shape alone, never by the number of threads, so that
// partial sums per tile are the same for any pool. One tile runs on the calling thread without waking the others.
#include <algorithm>
#include <cstdint>

namespace plumbline {

// 32 Ki floats per tile and stream: about 10 us of memory traffic, against 5 us to wake a sleeping thread.
constexpr int64_t kTileFloats = 1 << 15;

struct Tiles {
  int64_t total, size, count;
  Tiles(int64_t items, int64_t items_per_tile)
      : total(items), size(std::max<int64_t>(items_per_tile, 1)), count((items + size - 1) / size) {}
  int64_t begin(int64_t tile) const { return tile * size; }
  int64_t end(int64_t tile) const { return std::min(total, (tile + 1) * size); }
};

// As many tiles as needed, all about as long: 64 rows are 4 times 16, not 3 times 21 and one more that a thread waits for.
inline Tiles even_tiles(int64_t items, int64_t at_most) {
  const int64_t count = Tiles(items, at_most).count;
  return Tiles(items, count > 0 ? (items + count - 1) / count : 1);
}

inline Tiles tile_elements(int64_t size) { return Tiles(size, kTileFloats); }
inline Tiles tile_rows(int64_t rows, int64_t row_floats) { return even_tiles(rows, kTileFloats / std::max<int64_t>(row_floats, 1)); }

// Slices of rows whose partial sums are added in order. At most 32: their sums cost 32 C floats, a few percent of the rows' traffic.
inline Tiles slice_rows(int64_t T, int64_t C) {
  constexpr int64_t kMaxSlices = 32;
  return even_tiles(T, std::max((T + kMaxSlices - 1) / kMaxSlices, kTileFloats / std::max<int64_t>(C, 1)));
}
inline int64_t padded(int64_t C) { return (C + 15) / 16 * 16; }  // to whole cache lines

}  // namespace plumbline
