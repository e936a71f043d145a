#pragma once
// Geometry shared by the attention kernels and the code that plans them. All query heads of one kv head of one sequence form
// a slice: its virtual row r is query row r / group of head `first_head + r % group`, so that one tile of keys serves
// group x query rows and the work is matrix products. Causal visibility never falls with r, so rows and keys that do not meet
// are ranges.
#include <algorithm>
#include <cstdint>

#include "../core/backend.h"

namespace plumbline {

constexpr int64_t kKeyTile = 96;           // a multiple of every micro-kernel's height (4, 6, 12) and width (8, 16, 32)
constexpr int64_t kScoreStride = 112;      // floats per row of a score tile: 7 cache lines, odd so that columns spread over all sets
constexpr int64_t kRowTile = 192;          // virtual rows of a forward task
constexpr int64_t kGradRowTile = 96;       // virtual rows met at once in the backward pass: its seven tiles of d = 128 fit 512 KiB of L2
constexpr int64_t kCacheLineFloats = 16;
constexpr int64_t kMaxLanes = 16;          // of any instruction set
constexpr int64_t kFewRows = 16;           // at most so many virtual rows take the path that packs nothing
constexpr int64_t kFewKeys = 64;           // keys at once on that path: their rows of d = 128 fit the L1 cache
constexpr int64_t kFewStride = 80;         // floats per row of its scores: kFewKeys and the masked end of a micro-kernel
constexpr int64_t kFewChunk = 512;         // keys of a task on that path: 512 KiB of cache at d = 128, about 50 us

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Floats from row to row of a tile with d columns: padded to the widest micro-kernel (32), then to an odd number of lines.
inline int64_t tile_stride(int64_t d) { return round_up(d, 2 * kCacheLineFloats) + kCacheLineFloats; }

// Offsets of a virtual row in q (and dq), out (and dout) and lse; keys that it sees.
struct AttentionRow {
  int64_t q, out, lse, visible;
};

struct AttentionSlice {
  int64_t rows, keys;      // virtual query rows, keys
  int64_t ahead;           // keys - query rows: query row i sees keys 0 .. ahead + i when causal
  int64_t group, d;
  int64_t first_query, first_head, heads, q_row_stride;
  float scale;
  bool causal;
  int64_t first_page, page_rows, row_stride, head_offset;

  // Number of keys that query row i, and that virtual row r, sees.
  int64_t visible_to(int64_t i) const { return causal ? std::min(keys, std::max<int64_t>(0, ahead + i + 1)) : keys; }
  int64_t visible(int64_t r) const { return visible_to(r / group); }
  // First row that sees this key.
  int64_t first_row(int64_t key) const { return causal ? std::min(rows, std::max<int64_t>(0, (key - ahead) * group)) : 0; }

  // Where the virtual rows [begin, begin + count) lie, counted up: a division takes longer than a short row's softmax.
  void describe(int64_t begin, int64_t count, AttentionRow* rows_out) const {
    int64_t i = begin / group, member = begin % group;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t query = first_query + i, lse = query * heads + first_head + member;
      rows_out[m] = {query * q_row_stride + (first_head + member) * d, lse * d, lse, visible_to(i)};
      if (++member == group) member = 0, ++i;
    }
  }

  // Addresses of `count` rows of this slice's head in `pages` (k, v, dk or dv), from key row `begin` on.
  template <typename Float>
  void row_pointers(float* const* pages, int64_t begin, int64_t count, Float** rows_out) const {
    float* const* page = pages + first_page + begin / page_rows;
    int64_t row = begin % page_rows;
    for (int64_t i = 0; i < count; ++i, ++row) {
      if (row == page_rows) {
        row = 0;
        ++page;
      }
      rows_out[i] = *page + head_offset + row * row_stride;
    }
  }
};

inline AttentionSlice attention_slice(const AttentionShape& shape, const KeyValuePages& pages, int32_t sequence, int32_t kv_head) {
  AttentionSlice s;
  const int64_t queries = shape.cu_q_B1[sequence + 1] - shape.cu_q_B1[sequence];
  s.group = shape.H / shape.Hkv;
  s.rows = queries * s.group;
  s.keys = shape.kv_len_B[sequence];
  s.ahead = s.keys - queries;
  s.d = shape.d;
  s.first_query = shape.cu_q_B1[sequence];
  s.first_head = kv_head * s.group;
  s.heads = shape.H;
  s.q_row_stride = shape.q_row_stride;
  s.scale = shape.scale;
  s.causal = shape.causal;
  s.first_page = pages.page_start_B1[sequence];
  s.page_rows = pages.page_rows;
  s.row_stride = pages.row_stride;
  s.head_offset = kv_head * pages.head_stride;
  return s;
}

struct AttentionGradPointers {
  const float* q;
  const KeyValuePages* pages;
  const float *out, *lse, *dout;
  float* dq;
  float* const* dk;
  float* const* dv;
};

// Scores that a slice needs, for balancing tasks.
inline int64_t attention_area(const AttentionSlice& s, int64_t row_begin, int64_t row_end) {
  return row_begin >= row_end ? 0 : (row_end - row_begin) * (s.visible(row_begin) + s.visible(row_end - 1)) / 2;
}

}  // namespace plumbline
