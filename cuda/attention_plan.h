#pragma once
// How attention cuts a batch into tiles of rows and, for few rows, parts of the keys. What is cut depends on a sequence's own shape.
#include <algorithm>
#include <vector>

#include "../src/core/backend.h"

namespace plumbline {

constexpr int kFewRows = 16;         // virtual rows of the small tile
constexpr int kFewChunk = 128;       // keys of a part, and how many parts at most: their states stay below a tenth of the keys' bytes
constexpr int kFewParts = 64;
constexpr int64_t kMiddlingRows = 1024;  // slices of more rows fill the device without cutting keys
constexpr int kRowsChunk = 256;
constexpr int kRowsParts = 16;

// A tile of rows against keys [key_begin, key_end). state < 0: all its keys, the result is final. Else where its part goes: floats
// gathered [rows, d], peak [rows], sum [rows]; each kv head has its own, one after another.
struct AttentionWork {
  int32_t sequence, tile, key_begin, key_end;
  int64_t state;
};
struct AttentionMerge {
  int32_t sequence, tile, parts;
  int64_t state;
};

struct AttentionTiles {
  std::vector<AttentionWork> works;
  std::vector<AttentionMerge> merges;
};

// Tiles of one sequence; states: floats that are taken already.
inline void plan_sequence(const AttentionShape& shape, int32_t b, int32_t tile_rows, int32_t chunk, AttentionTiles& plan, int64_t& states) {
  const int64_t queries = shape.cu_q_B1[b + 1] - shape.cu_q_B1[b], keys = shape.kv_len_B[b], group = shape.H / shape.Hkv, rows = queries * group;
  for (int32_t tile = 0; static_cast<int64_t>(tile) * tile_rows < rows; ++tile) {
    const int64_t last = std::min<int64_t>(rows, (tile + int64_t{1}) * tile_rows) - 1;
    const int64_t end = shape.causal ? std::min(keys, std::max<int64_t>(0, keys - queries + last / group + 1)) : keys;
    if (end <= chunk) {
      plan.works.push_back({b, tile, 0, static_cast<int32_t>(end), -1});
      continue;
    }
    const int32_t parts = static_cast<int32_t>((end + chunk - 1) / chunk);
    plan.merges.push_back({b, tile, parts, states});
    for (int32_t part = 0; part < parts; ++part, states += shape.Hkv * int64_t{tile_rows} * (shape.d + 2))
      plan.works.push_back({b, tile, part * chunk, static_cast<int32_t>(std::min<int64_t>(end, (part + int64_t{1}) * chunk)), states});
  }
}

// Keys of a part: `chunk`, or so many that there are at most `parts`.
inline int32_t chunk_of(int64_t keys, int64_t chunk, int64_t parts) { return static_cast<int32_t>(std::max(chunk, (keys + parts - 1) / parts)); }

inline void long_first(AttentionTiles& plan) {
  std::stable_sort(plan.works.begin(), plan.works.end(),
                   [](const AttentionWork& a, const AttentionWork& b) { return a.key_end - a.key_begin > b.key_end - b.key_begin; });
}

struct AttentionPlan {
  AttentionTiles few, many;  // tiles of kFewRows rows, and of many_rows(d)
  int64_t states = 0;        // floats
};

inline int32_t many_rows(int32_t d) { return d <= 128 ? 64 : 32; }

inline AttentionPlan plan_attention(const AttentionShape& shape) {
  AttentionPlan plan;
  for (int32_t b = 0; b < shape.B; ++b) {
    const int64_t rows = int64_t{shape.cu_q_B1[b + 1] - shape.cu_q_B1[b]} * (shape.H / shape.Hkv), keys = shape.kv_len_B[b];
    if (rows <= kFewRows) plan_sequence(shape, b, kFewRows, chunk_of(keys, kFewChunk, kFewParts), plan.few, plan.states);
    else plan_sequence(shape, b, many_rows(shape.d), rows <= kMiddlingRows ? chunk_of(keys, kRowsChunk, kRowsParts) : INT32_MAX, plan.many, plan.states);
  }
  long_first(plan.few);
  long_first(plan.many);
  return plan;
}

}  // namespace plumbline
