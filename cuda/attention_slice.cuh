#pragma once
// Geometry of all attention kernels. The query heads of one kv head of one sequence form a slice: its virtual row r is query row
// r / group of head first_head + r % group, so that a tile of keys serves group x query rows. Causal visibility never falls with r.
#include "launch.cuh"

namespace plumbline {

constexpr int kTileThreads = 128;

struct Slice {
  int64_t rows, first_query;
  int32_t keys, ahead, group, kv_head;
  bool causal;
  __device__ Slice(int32_t query_begin, int32_t query_end, int32_t key_count, int32_t group_size, int32_t head, bool is_causal)
      : rows(static_cast<int64_t>(query_end - query_begin) * group_size), first_query(query_begin), keys(key_count), ahead(key_count - (query_end - query_begin)),
        group(group_size), kv_head(head), causal(is_causal) {}
  PLUMBLINE_DEVICE int visible_to(int64_t query) const {
    if (!causal) return keys;
    const int64_t count = ahead + query + 1;
    return static_cast<int>(count < 0 ? 0 : count < keys ? count : keys);
  }
  PLUMBLINE_DEVICE int visible(int64_t row) const { return visible_to(row / group); }
  // First row that sees this key.
  PLUMBLINE_DEVICE int64_t first_row(int key) const {
    const int64_t row = causal && key > ahead ? static_cast<int64_t>(key - ahead) * group : 0;
    return row < rows ? row : rows;
  }
};

// Where the rows of a tile lie: in q, in [T, H], and how many keys they see. Rows behind the slice: at -1, none.
template <int kRows>
struct RowTable {
  int64_t q[kRows], head[kRows];
  int32_t visible[kRows];
  PLUMBLINE_DEVICE void describe(const Slice& slice, int64_t begin, int32_t heads, int32_t d, int64_t q_row_stride) {
    for (int m = threadIdx.x; m < kRows; m += kTileThreads) {
      const int64_t r = begin + m, query = r / slice.group, member = slice.kv_head * slice.group + r % slice.group;
      const bool valid = r < slice.rows;
      q[m] = valid ? (slice.first_query + query) * q_row_stride + member * d : -1;
      head[m] = valid ? (slice.first_query + query) * heads + member : -1;
      visible[m] = valid ? slice.visible_to(query) : 0;
    }
  }
};

}  // namespace plumbline
