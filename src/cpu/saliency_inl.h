// Kernels of saliency.cpp. Needs kAhead.
#include "row_products_inl.h"

PLUMBLINE_INLINE void fetch_row(const float* row, int64_t d) {
  for (int64_t j = 0; j < d; j += kCacheLineFloats) __builtin_prefetch(row + j);
}

// The last query row's heads of one kv head, scaled, in rows of tile_stride(d).
static void load_queries(const float* q, int64_t heads, int64_t d, float scale, float* to) {
  for (int64_t m = 0; m < heads; ++m, q += d, to += tile_stride(d)) {
    int64_t j = 0;
    for (; j + kLanes <= d; j += kLanes) store(to + j, load(q + j) * scale);
    for (; j < d; ++j) to[j] = q[j] * scale;
  }
}

// probability[m, n] = e^(q[m] . k[n] - lse[m]) for up to kFewKeys keys; a row is kFewStride floats. k has room for 3 more pointers.
// next: the rows that come after these, up to kAhead of them.
static void key_probabilities(const float* q, int64_t heads, int64_t d, const float** k, int64_t keys, const float* lse, float* probability, const float* const* next,
                              int64_t next_keys) {
  const int64_t stride = tile_stride(d);
  for (int64_t n = keys; n % 4 != 0; ++n) k[n] = k[keys - 1];  // fills the last four; nobody reads their scores
  for (int64_t n = 0; n < keys; n += 4) {
    const float* fetch[4];
    for (int64_t i = n + kAhead, to = 0; to < 4; ++i, ++to) fetch[to] = i < keys ? k[i] : i - keys < next_keys ? next[i - keys] : k[n];
    const float* rows = q;
    float* scores = probability + n;
    int64_t left = heads;
    if (left >= 6) {  // the keys to come are fetched half by half
      dot_rows<3, 2>(rows, stride, k + n, d, scores, fetch);
      dot_rows<3, 2>(rows + 3 * stride, stride, k + n, d, scores + 3 * kFewStride, fetch + 2);
      rows += 6 * stride, scores += 6 * kFewStride, left -= 6;
    } else if (left >= 2) {
      dot_rows<2, 4>(rows, stride, k + n, d, scores, fetch);
      rows += 2 * stride, scores += 2 * kFewStride, left -= 2;
    } else {
      dot_rows<1, 4>(rows, stride, k + n, d, scores, fetch);
      left = 0;
    }
    for (; left >= 3; left -= 3, rows += 3 * stride, scores += 3 * kFewStride) dot_rows<3>(rows, stride, k + n, d, scores);
    if (left == 2) dot_rows<2>(rows, stride, k + n, d, scores);
    if (left == 1) dot_rows<1>(rows, stride, k + n, d, scores);
  }
  for (int64_t m = 0; m < heads; ++m) {
    const vec base = splat(lse[m]);
    float* row = probability + m * kFewStride;
    for (int64_t n = 0; n < keys; n += kLanes) store(row + n, exp_nonpositive(load(row + n) - base));  // a rounding above 0 does no harm
  }
}

// sum[n] += probability[m, n], heads in order.
static void add_heads(const float* probability, int64_t heads, int64_t keys, float* sum) {
  for (int64_t m = 0; m < heads; ++m)
    for (int64_t n = 0; n < keys; n += kLanes) store(sum + n, load(sum + n) + load(probability + m * kFewStride + n));
}

static void add_scaled(const float* sum, float scale, int64_t size, float* to) {
  for (int64_t i = 0; i < size; ++i) to[i] += scale * sum[i];
}

// sum[m] += sum over n of probability[m, n] weight[n], in f64.
static void add_weighted_columns(const float* probability, int64_t heads, int64_t keys, const float* weight, double* sum) {
  for (int64_t m = 0; m < heads; ++m)
    for (int64_t n = 0; n < keys; ++n) sum[m] += (double)probability[m * kFewStride + n] * (double)weight[n];
}

// probability[m, n] becomes dS = probability (dweight[n] - delta[m]).
static void score_gradients(float* probability, int64_t heads, int64_t keys, const float* dweight, const float* delta) {
  for (int64_t m = 0; m < heads; ++m) {
    const vec centre = splat(delta[m]);
    float* row = probability + m * kFewStride;
    for (int64_t n = 0; n < keys; n += kLanes) store(row + n, load(row + n) * (load(dweight + n) - centre));
  }
}

// to[j] += sum over heads of dscore[m] q[m, j], heads in order.
static void add_key_gradient(const float* dscore, const float* q, int64_t heads, int64_t d, float* to) {
  const int64_t stride = tile_stride(d);
  int64_t j = 0;
  for (; j + 4 * kLanes <= d; j += 4 * kLanes) {
    vec a = {}, b = {}, c = {}, e = {};
    for (int64_t m = 0; m < heads; ++m) {
      const vec w = splat(dscore[m * kFewStride]);
      const float* x = q + m * stride + j;
      a = fma(w, load(x), a);
      b = fma(w, load(x + kLanes), b);
      c = fma(w, load(x + 2 * kLanes), c);
      e = fma(w, load(x + 3 * kLanes), e);
    }
    store(to + j, load(to + j) + a);
    store(to + j + kLanes, load(to + j + kLanes) + b);
    store(to + j + 2 * kLanes, load(to + j + 2 * kLanes) + c);
    store(to + j + 3 * kLanes, load(to + j + 3 * kLanes) + e);
  }
  for (; j < d; ++j) {
    float sum = 0.0f;
    for (int64_t m = 0; m < heads; ++m) sum += dscore[m * kFewStride] * q[m * stride + j];
    to[j] += sum;
  }
}

// The same for all keys, each one's row fetched early.
static void add_key_gradients(const float* dscore, const float* q, int64_t heads, int64_t d, float* const* to, int64_t keys) {
  for (int64_t n = 0; n < keys; ++n) {
    if (n + kAhead < keys) fetch_row(to[n + kAhead], d);
    add_key_gradient(dscore + n, q, heads, d, to[n]);
  }
}

// dq (+)= dscore[heads, keys] k[keys, d], rows of tile_stride(d).
static void add_query_gradients(const float* dscore, int64_t heads, const float* const* k, int64_t keys, int64_t d, float* dq) {
  const int64_t stride = tile_stride(d);
  for (int64_t m = 0; m < heads; m += 4)
    weigh_values(heads - m < 4 ? heads - m : 4, dscore + m * kFewStride, k, keys, d, dq + m * stride, stride);
}
