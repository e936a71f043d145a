// Kernels of attention.cpp, compiled once per instruction set.
#include "attention_tile_inl.h"

// Scores of one row become weights e^(s - peak), zero behind `visible`; peak and the lanes of the sum are brought up to date and
// what the row has gathered so far (`gathered`, null in the first tile) is scaled to the new peak.
PLUMBLINE_INLINE void softmax_row(float* score, int64_t visible, float* peak, float* sum_lanes_out, float* gathered, int64_t d) {
  const float infinity = __builtin_inff();
  const int64_t padded = (visible + kLanes - 1) / kLanes * kLanes;
  for (int64_t j = visible; j < padded; ++j) score[j] = -infinity;
  vec best = splat(-infinity);
  for (int64_t j = 0; j < padded; j += kLanes) best = max(best, load(score + j));
  const float tile_peak = peak_lanes(best);
  const float before = gathered ? *peak : -infinity;
  const float top = tile_peak > before ? tile_peak : before;
  const vec base = splat(top == -infinity ? 0.0f : top);  // all scores -inf so far: the weights must be 0, not NaN
  vec total{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const vec weight = exp_nonpositive(load(score + j) - base);
    store(score + j, weight);
    total += weight;
  }
  // The micro-kernel reads up to the last visible key of its kRows rows: at most kRows - 1 further.
  for (int64_t j = padded; j < visible + kRows; j += kLanes) store(score + j, vec{});
  if (gathered) {
    vec sum = load(sum_lanes_out);
    if (top != before) {
      const vec factor = splat(exp_nonpositive(splat(before - top))[0]);
      sum *= factor;
      for (int64_t j = 0; j < d; j += kLanes) store(gathered + j, load(gathered + j) * factor);
    }
    total += sum;
  }
  store(sum_lanes_out, total);
  *peak = top;
}

// out = gathered / sum, lse = peak + ln(sum). A row without keys gives 0 and -inf; one whose scores are all -inf gives NaN, like the
// formula.
PLUMBLINE_INLINE void finish_row(const float* gathered, float peak, float sum, int64_t keys, int64_t d, float* out, float* lse) {
  if (keys == 0) {
    zero_floats(out, d);
    *lse = -__builtin_inff();
    return;
  }
  const float inverse = 1.0f / sum;
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) store(out + j, load(gathered + j) * inverse);
  for (; j < d; ++j) out[j] = gathered[j] * inverse;
  *lse = peak + __builtin_logf(sum);
}

// Virtual rows [begin, begin + count), count <= kRowTile, of one slice against all their keys.
static void attention_rows(const AttentionSlice& slice, const KeyValuePages& pages, const float* q, int64_t begin, int64_t count,
                           float* out, float* lse, float* scratch) {
  const int64_t d = slice.d, stride = tile_stride(d);
  float* q_tile = scratch;
  float* gathered = q_tile + kRowTile * stride;
  float* v_tile = gathered + kRowTile * stride;
  float* k_transposed = v_tile + kKeyTile * stride;
  float* scores = k_transposed + d * kScoreStride;
  float* sums = scores + kRowTile * kScoreStride;
  float* peaks = sums + kRowTile * kLanes;
  const float* rows[kKeyTile];
  AttentionRow row[kRowTile];
  slice.describe(begin, count, row);
  for (int64_t m = 0; m < count; ++m) load_row(q + row[m].q, d, slice.scale, q_tile + m * stride);

  const int64_t key_end = slice.visible(begin + count - 1);
  for (int64_t key = 0; key < key_end; key += kKeyTile) {
    const ScoreTile tile{&slice, row, begin, count, key, key_end - key < kKeyTile ? key_end - key : kKeyTile};
    slice.row_pointers(pages.k, key, tile.keys, rows);
    load_transposed(rows, tile.keys, d, k_transposed);
    slice.row_pointers(pages.v, key, tile.keys, rows);
    for (int64_t n = 0; n < tile.keys; ++n) load_row(rows[n], d, 1.0f, v_tile + n * stride);
    score_product(tile, q_tile, stride, k_transposed, scores);
    // The first tile writes every row (zeros where nothing is visible), later ones add.
    const int64_t first = key == 0 ? 0 : tile.first_micro_row(0);
    for (int64_t m = first; m < count; ++m)
      softmax_row(scores + m * kScoreStride, tile.visible(m), peaks + m, sums + m * kLanes, key == 0 ? nullptr : gathered + m * stride, d);
    row_product(tile, first, scores, v_tile, gathered, stride, key > 0);
  }
  for (int64_t m = 0; m < count; ++m) {
    const float sum = row[m].visible ? sum_lanes(load(sums + m * kLanes)) : 0.0f;
    finish_row(gathered + m * stride, peaks[m], sum, row[m].visible, d, out + row[m].out, lse + row[m].lse);
  }
}

#include "attention_few_inl.h"
