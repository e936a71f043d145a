// The path for few query rows (decoding): every key and value is read once, from where it lies, with nothing packed.

#include "row_products_inl.h"

// What some keys contribute to the rows of a slice: peak, lanes of the sum, weighted values, per row.
struct FewState {
  float *peaks, *sums, *gathered;
  explicit FewState(float* data) : peaks(data), sums(peaks + kFewRows), gathered(sums + kFewRows * kMaxLanes) {}
};

// Keys [key_begin, key_end) against all (at most kFewRows) rows of the slice.
static void attention_few(const AttentionSlice& slice, const KeyValuePages& pages, const float* q, int64_t key_begin, int64_t key_end,
                          float* state_data, float* scratch) {
  const int64_t d = slice.d, stride = tile_stride(d);
  const FewState state(state_data);
  float* q_tile = scratch;
  float* scores = q_tile + kFewRows * stride;
  const float *k[kFewKeys + 3], *v[kFewKeys];
  AttentionRow row[kFewRows];
  slice.describe(0, slice.rows, row);
  for (int64_t m = 0; m < slice.rows; ++m) {
    load_row(q + row[m].q, d, slice.scale, q_tile + m * stride);
    state.peaks[m] = -__builtin_inff();
    zero_floats(state.sums + m * kLanes, kLanes);
    zero_floats(state.gathered + m * stride, stride);
  }
  for (int64_t key = key_begin; key < key_end; key += kFewKeys) {
    const ScoreTile tile{&slice, row, 0, slice.rows, key, key_end - key < kFewKeys ? key_end - key : kFewKeys};
    slice.row_pointers(pages.k, key, tile.keys, k);
    slice.row_pointers(pages.v, key, tile.keys, v);
    for (int64_t n = tile.keys; n % 4 != 0; ++n) k[n] = k[tile.keys - 1];  // fills the last four; its scores are masked
    for (int64_t n = 0; n < tile.keys; n += 4) {
      // Values are used in columns, which no hardware prefetcher follows: fetch them while the dot products run.
      for (int64_t i = n; i < n + 4 && i < tile.keys; ++i)
        for (int64_t j = 0; j < d; j += kCacheLineFloats) __builtin_prefetch(v[i] + j);
      int64_t m = 0;
      for (; m + 2 <= slice.rows; m += 2) dot_rows<2>(q_tile + m * stride, stride, k + n, d, scores + m * kFewStride + n);
      if (m < slice.rows) dot_rows<1>(q_tile + m * stride, stride, k + n, d, scores + m * kFewStride + n);
    }
    for (int64_t m = 0; m < slice.rows; ++m)
      softmax_row(scores + m * kFewStride, tile.visible(m), state.peaks + m, state.sums + m * kLanes, state.gathered + m * stride, d);
    for (int64_t m = 0; m < slice.rows; m += 4) {
      const int64_t height = slice.rows - m < 4 ? slice.rows - m : 4;
      weigh_values(height, scores + m * kFewStride, v, tile.visible(m + height - 1), d, state.gathered + m * stride, stride);
    }
  }
}

// Joins the states of consecutive ranges of keys, in order, and writes the rows of the slice.
static void attention_few_finish(const AttentionSlice& slice, float* states, int64_t count, int64_t state_floats, float* out, float* lse) {
  const int64_t d = slice.d, stride = tile_stride(d);
  AttentionRow row[kFewRows];
  slice.describe(0, slice.rows, row);
  for (int64_t m = 0; m < slice.rows; ++m) {
    float top = -__builtin_inff();
    for (int64_t i = 0; i < count; ++i) {
      const float peak = FewState(states + i * state_floats).peaks[m];
      top = peak > top ? peak : top;
    }
    const float base = top == -__builtin_inff() ? 0.0f : top;
    float* joined = FewState(states).gathered + m * stride;
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      const FewState state(states + i * state_floats);
      const vec factor = exp_nonpositive(splat(state.peaks[m] - base));
      sum += factor[0] * sum_lanes(load(state.sums + m * kLanes));
      const float* part = state.gathered + m * stride;
      for (int64_t j = 0; j < d; j += kLanes) store(joined + j, (i == 0 ? vec{} : load(joined + j)) + factor * load(part + j));
    }
    finish_row(joined, top, sum, row[m].visible, d, out + row[m].out, lse + row[m].lse);
  }
}
