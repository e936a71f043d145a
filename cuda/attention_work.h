#pragma once
// Which block does what in an attention launch: tiles of every sequence, those with most to do first, so that short ones fill the gaps.
#include <algorithm>
#include <vector>

#include "../src/core/backend.h"

namespace plumbline {

struct TileWork {
  int32_t sequence, tile;
};

// Tiles of `rows` virtual rows.
inline std::vector<TileWork> row_works(const AttentionShape& shape, int32_t rows) {
  std::vector<TileWork> works;
  const int64_t group = shape.H / shape.Hkv;
  const auto meets = [&](const TileWork& w) {
    const int64_t queries = shape.cu_q_B1[w.sequence + 1] - shape.cu_q_B1[w.sequence], keys = shape.kv_len_B[w.sequence];
    return shape.causal ? std::min(keys, keys - queries + ((w.tile + int64_t{1}) * rows - 1) / group + 1) : keys;
  };
  for (int32_t b = 0; b < shape.B; ++b)
    for (int32_t tile = 0; int64_t{tile} * rows < (shape.cu_q_B1[b + 1] - shape.cu_q_B1[b]) * group; ++tile) works.push_back({b, tile});
  std::stable_sort(works.begin(), works.end(), [&](const TileWork& a, const TileWork& b) { return meets(a) > meets(b); });
  return works;
}

// Tiles of `keys` keys; unseen: of sequences without query rows too.
inline std::vector<TileWork> key_works(const AttentionShape& shape, int32_t keys, bool unseen) {
  std::vector<TileWork> works;
  const auto meets = [&](const TileWork& w) {
    const int64_t queries = shape.cu_q_B1[w.sequence + 1] - shape.cu_q_B1[w.sequence], ahead = shape.kv_len_B[w.sequence] - queries;
    return shape.causal ? std::min(queries, queries - int64_t{w.tile} * keys + ahead) : queries;
  };
  for (int32_t b = 0; b < shape.B; ++b)
    for (int32_t tile = 0; (unseen || shape.cu_q_B1[b + 1] > shape.cu_q_B1[b]) && int64_t{tile} * keys < shape.kv_len_B[b]; ++tile) works.push_back({b, tile});
  std::stable_sort(works.begin(), works.end(), [&](const TileWork& a, const TileWork& b) { return meets(a) > meets(b); });
  return works;
}

}  // namespace plumbline
