// Kernel of attention_grad.cpp, compiled once per instruction set.
#include "attention_tile_inl.h"

// y[keys, d] += weights[rows, keys]^T x[rows, d]
static void key_product(const ScoreTile& tile, const float* weights, const float* x, float* y, int64_t stride) {
  for (int64_t n = 0; n < tile.slice->d; n += kColumns) {
    for (int64_t key = 0; key < tile.keys; key += kRows) {
      const int64_t row = tile.first_row(key);
      micro_kernel_tail(tile.keys - key < kRows ? tile.keys - key : kRows, {weights + row * kScoreStride + key, 1, kScoreStride},
                        x + row * stride + n, stride, tile.rows - row, y + key * stride + n, stride, true);
    }
  }
}

struct GradTiles {
  float *q, *dout, *dq, *k, *dk, *dv, *k_transposed, *v_transposed, *weights, *dscores, *delta, *lse;
  int64_t stride;
  GradTiles(float* memory, int64_t d) : stride(tile_stride(d)) {
    const auto carve = [&memory](int64_t floats) {
      float* at = memory;
      memory += floats;
      return at;
    };
    q = carve(kGradRowTile * stride);
    dout = carve(kGradRowTile * stride);
    dq = carve(kGradRowTile * stride);
    k = carve(kKeyTile * stride);
    dk = carve(kKeyTile * stride);
    dv = carve(kKeyTile * stride);
    k_transposed = carve(d * kScoreStride);
    v_transposed = carve(d * kScoreStride);
    weights = carve(kGradRowTile * kScoreStride);
    dscores = carve(kGradRowTile * kScoreStride);
    delta = carve(kGradRowTile);
    lse = carve(kGradRowTile);
  }
};

PLUMBLINE_INLINE float dot(const float* x, const float* y, int64_t d) {
  vec sum{};
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) sum = fma(load(x + j), load(y + j), sum);
  float total = sum_lanes(sum);
  for (; j < d; ++j) total += x[j] * y[j];
  return total;
}

// to[0 .. d) (+)= from * factor, `to` being a row of d floats with nothing behind it.
PLUMBLINE_INLINE void add_row(const float* from, float factor, int64_t d, bool accumulate, float* to) {
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    const vec part = load(from + j) * factor;
    store(to + j, accumulate ? load(to + j) + part : part);
  }
  for (; j < d; ++j) to[j] = accumulate ? to[j] + from[j] * factor : from[j] * factor;
}

// Scores and the gradients of the weights of one row become weights p = e^(s - lse) and gradients of the scores p (dp - delta),
// both zero behind `visible` as far as a micro-kernel reads.
PLUMBLINE_INLINE void softmax_grad_row(float* score, float* dweight, int64_t visible, float lse, float delta) {
  const vec base = splat(lse), mean = splat(delta);
  for (int64_t j = 0; j < visible; j += kLanes) {
    const vec weight = exp_nonpositive(load(score + j) - base);
    store(score + j, weight);
    store(dweight + j, weight * (load(dweight + j) - mean));
  }
  for (int64_t j = visible; j < visible + kRows; j += kLanes) {
    store(score + j, vec{});
    store(dweight + j, vec{});
  }
}

// Virtual rows [begin, begin + count), count <= kGradRowTile, against the key tile that lies in `t`.
static void grad_rows(const ScoreTile& tile, const AttentionGradPointers& p, const GradTiles& t, bool want_dq, bool want_dkv) {
  const AttentionSlice& slice = *tile.slice;
  // The first tile writes dq of every row (zeros where nothing is visible), later ones add.
  const int64_t d = slice.d, first = tile.key_begin == 0 ? 0 : tile.first_micro_row(0);
  for (int64_t m = first; m < tile.rows; ++m) {
    const int64_t at = tile.row[m].out;
    load_row(p.q + tile.row[m].q, d, slice.scale, t.q + m * t.stride);
    load_row(p.dout + at, d, 1.0f, t.dout + m * t.stride);
    t.delta[m] = dot(p.dout + at, p.out + at, d);
    t.lse[m] = p.lse[tile.row[m].lse];
  }
  score_product(tile, t.q, t.stride, t.k_transposed, t.weights);
  score_product(tile, t.dout, t.stride, t.v_transposed, t.dscores);
  for (int64_t m = first; m < tile.rows; ++m)
    softmax_grad_row(t.weights + m * kScoreStride, t.dscores + m * kScoreStride, tile.visible(m), t.lse[m], t.delta[m]);
  if (want_dkv) {
    key_product(tile, t.weights, t.dout, t.dv, t.stride);
    key_product(tile, t.dscores, t.q, t.dk, t.stride);
  }
  if (want_dq) {
    row_product(tile, first, t.dscores, t.k, t.dq, t.stride, false);
    for (int64_t m = first; m < tile.rows; ++m)
      add_row(t.dq + m * t.stride, slice.scale, d, tile.key_begin > 0, p.dq + tile.row[m].q);
  }
}

// One tile of keys [key_begin, key_begin + keys) against the virtual rows [row_begin, row_end), row_begin a multiple of kGradRowTile.
// The tile at key 0 writes dq, the others add to it: they must follow it, in order.
static void attention_grad_tile(const AttentionSlice& slice, const AttentionGradPointers& p, int64_t key_begin, int64_t keys,
                                int64_t row_begin, int64_t row_end, bool want_dq, bool want_dkv, float* memory) {
  const int64_t d = slice.d;
  const GradTiles t(memory, d);
  AttentionRow row[kGradRowTile];
  float* rows[kKeyTile] = {};
  slice.row_pointers(p.pages->v, key_begin, keys, rows);
  load_transposed(rows, keys, d, t.v_transposed);
  slice.row_pointers(p.pages->k, key_begin, keys, rows);
  load_transposed(rows, keys, d, t.k_transposed);
  if (want_dq)
    for (int64_t n = 0; n < keys; ++n) load_row(rows[n], d, 1.0f, t.k + n * t.stride);
  if (want_dkv) {
    zero_floats(t.dk, keys * t.stride);
    zero_floats(t.dv, keys * t.stride);
  }
  for (int64_t begin = row_begin; begin < row_end; begin += kGradRowTile) {
    const ScoreTile tile{&slice, row, begin, row_end - begin < kGradRowTile ? row_end - begin : kGradRowTile, key_begin, keys};
    slice.describe(begin, tile.rows, row);
    if (tile.first_row(0) < tile.rows || key_begin == 0) grad_rows(tile, p, t, want_dq, want_dkv);
  }
  if (!want_dkv) return;
  slice.row_pointers(p.dk, key_begin, keys, rows);
  for (int64_t n = 0; n < keys; ++n) add_row(t.dk + n * t.stride, 1.0f, d, true, rows[n]);
  slice.row_pointers(p.dv, key_begin, keys, rows);
  for (int64_t n = 0; n < keys; ++n) add_row(t.dv + n * t.stride, 1.0f, d, true, rows[n]);
}
