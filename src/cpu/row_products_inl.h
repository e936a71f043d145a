// Products of a few query rows with rows of pages, read from where they lie: used for decoding and for saliency.
// Needs kFewStride (attention_slice.h).

PLUMBLINE_INLINE quad fold_to_quad(vec v) {
#if PLUMBLINE_LANES == 16
  typedef float half __attribute__((vector_size(32)));
  const half folded = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(folded, folded, 0, 1, 2, 3) + __builtin_shufflevector(folded, folded, 4, 5, 6, 7);
#elif PLUMBLINE_LANES == 8
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  return v;
#endif
}

// The four sums over lanes of a, b, c, e (a fixed tree).
PLUMBLINE_INLINE quad sum_four(vec a, vec b, vec c, vec e) {
  const quad x = fold_to_quad(a), y = fold_to_quad(b), z = fold_to_quad(c), w = fold_to_quad(e);
  const quad xy = __builtin_shufflevector(x, y, 0, 4, 1, 5) + __builtin_shufflevector(x, y, 2, 6, 3, 7);
  const quad zw = __builtin_shufflevector(z, w, 0, 4, 1, 5) + __builtin_shufflevector(z, w, 2, 6, 3, 7);
  return __builtin_shufflevector(xy, zw, 0, 1, 4, 5) + __builtin_shufflevector(xy, zw, 2, 3, 6, 7);
}

// dots[m, 0 .. 4) = q[m] . k[0 .. 4) for kHeight rows of q. fetch (may be null): a line of each of kFetched rows that come later is
// fetched with every line of these, between the products: a burst of them all would wait for the few buffers of the L1 cache.
template <int kHeight, int kFetched = 0>
static void dot_rows(const float* q, int64_t q_stride, const float* const* k, int64_t d, float* dots, const float* const* fetch = nullptr) {
  vec sum[kHeight][4];
#pragma GCC unroll 3
  for (int m = 0; m < kHeight; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) sum[m][n] = vec{};
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    if (kFetched > 0 && j % kCacheLineFloats == 0) {
#pragma GCC unroll 4
      for (int n = 0; n < kFetched; ++n) __builtin_prefetch(fetch[n] + j);
    }
    vec x[kHeight];  // these and one key at a time beside the sums: 16 registers, no sum goes through memory
#pragma GCC unroll 3
    for (int m = 0; m < kHeight; ++m) x[m] = load(q + m * q_stride + j);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const vec key = load(k[n] + j);
#pragma GCC unroll 3
      for (int m = 0; m < kHeight; ++m) sum[m][n] = fma(x[m], key, sum[m][n]);
    }
  }
#pragma GCC unroll 3
  for (int m = 0; m < kHeight; ++m) {
    quad dot = sum_four(sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
    for (int64_t i = j; i < d; ++i) dot += q[m * q_stride + i] * quad{k[0][i], k[1][i], k[2][i], k[3][i]};
    std::memcpy(dots + m * kFewStride, &dot, sizeof(dot));
  }
}

// y[m, column ..] += sum over keys of weights[m, key] v[key][column ..], two vectors wide.
template <int kHeight>
static void weigh_rows(const float* weights, const float* const* v, int64_t column, int64_t keys, float* y, int64_t stride) {
  vec low[kHeight], high[kHeight];
#pragma GCC unroll 4
  for (int m = 0; m < kHeight; ++m) low[m] = high[m] = vec{};
  for (int64_t key = 0; key < keys; ++key) {
    const vec a = load(v[key] + column), b = load(v[key] + column + kLanes);
#pragma GCC unroll 4
    for (int m = 0; m < kHeight; ++m) {
      const vec w = splat(weights[m * kFewStride + key]);
      low[m] = fma(w, a, low[m]);
      high[m] = fma(w, b, high[m]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kHeight; ++m) {
    float* row = y + m * stride + column;
    store(row, load(row) + low[m]);
    store(row + kLanes, load(row + kLanes) + high[m]);
  }
}

// All columns of up to 4 rows; the last columns of an odd d one by one, since a row of a page has nothing behind it.
static void weigh_values(int64_t height, const float* weights, const float* const* v, int64_t keys, int64_t d, float* y, int64_t stride) {
  int64_t column = 0;
  for (; column + 2 * kLanes <= d; column += 2 * kLanes) {
    switch (height) {
      case 1: weigh_rows<1>(weights, v, column, keys, y, stride); break;
      case 2: weigh_rows<2>(weights, v, column, keys, y, stride); break;
      case 3: weigh_rows<3>(weights, v, column, keys, y, stride); break;
      default: weigh_rows<4>(weights, v, column, keys, y, stride);
    }
  }
  for (int64_t m = 0; m < height; ++m)
    for (int64_t key = 0; key < keys; ++key)
      for (int64_t j = column; j < d; ++j) y[m * stride + j] += weights[m * kFewStride + key] * v[key][j];
}
