// Products of a few rows with a weight that is read once (see gemv.cpp), for one instruction set.
// Blocks of dot products: sums, weight vectors and one of x must fit the registers (32, 16, 16). A single row leaves room for
// more columns, and eight streams of memory are faster than four: 19.7 against 17.8 GB/s, of 21 that one thread reaches
// (Zen 3, 8960 x 1536 bf16, huge pages). All counts divide 24, the columns of the smallest tile in linear.cpp.
#if PLUMBLINE_LANES == 16
static constexpr int kDotRows = 4, kDotCols = 6, kDotColsTwo = 8;
#elif PLUMBLINE_LANES == 8
static constexpr int kDotRows = 4, kDotCols = 3, kDotColsTwo = 4;
#else
static constexpr int kDotRows = 2, kDotCols = 4, kDotColsTwo = 4;
#endif
static constexpr int kDotColsOne = 8, kMaxDotCols = 8;
static constexpr int kSumRows = 4;
static constexpr int kSumDepth = 8;  // weight rows that are added to c in one sweep

PLUMBLINE_INLINE vec load_weight(const void* p, int64_t index, bool bf16) {
  return bf16 ? load_bf16((const uint16_t*)p + index) : load((const float*)p + index);
}
PLUMBLINE_INLINE float load_one_weight(const void* p, int64_t index, bool bf16) {
  if (!bf16) return ((const float*)p)[index];
  const uint32_t wide = (uint32_t)((const uint16_t*)p)[index] << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Adds kLanes products at k to each sum.
PLUMBLINE_INLINE void dot_step(const GemmCall& call, int64_t i, int rows, int64_t j, int cols, bool bf16, int64_t k,
                               vec sum[kDotRows][kMaxDotCols]) {
  vec w[kMaxDotCols];
#pragma GCC unroll 8
  for (int c = 0; c < cols; ++c) w[c] = load_weight(call.b, (j + c) * call.b_col + k, bf16);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const vec x = load(call.a + (i + r) * call.a_row + k);
#pragma GCC unroll 8
    for (int c = 0; c < cols; ++c) sum[r][c] = fma(x, w[c], sum[r][c]);
  }
}

// rows x cols dot products over all of K. Every result has its own vector of sums, so its bits do not depend on rows and cols.
// While a block is read, the block of weight rows below it is fetched, a 64-byte line at a time: with blocks of three
// rows 15.7 GB/s, against 12.8 when fetching 1 KB ahead in the same row and 11.9 without (Zen 3, 8960 x 1536 bf16).
PLUMBLINE_INLINE void dot_block(const GemmCall& call, int64_t i, int rows, int64_t j, int cols, bool bf16) {
  const int64_t K = call.K, element = bf16 ? 2 : 4;
  const int line = (int)(64 / element);
  vec sum[kDotRows][kMaxDotCols];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < cols; ++c) sum[r][c] = vec{};
  int64_t k = 0;
  for (; k + line <= K; k += line) {
#pragma GCC unroll 8
    for (int c = 0; c < cols; ++c) __builtin_prefetch((const char*)call.b + ((j + cols + c) * call.b_col + k) * element);
#pragma GCC unroll 8
    for (int u = 0; u < line; u += kLanes) dot_step(call, i, rows, j, cols, bf16, k + u, sum);
  }
  for (; k + kLanes <= K; k += kLanes) dot_step(call, i, rows, j, cols, bf16, k, sum);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < cols; ++c) {
      float total = sum_lanes(sum[r][c]);
      for (int64_t t = k; t < K; ++t) total += call.a[(i + r) * call.a_row + t] * load_one_weight(call.b, (j + c) * call.b_col + t, bf16);
      float* const to = call.c + (i + r) * call.ldc + j + c;
      if (call.bias_N) total += call.bias_N[j + c];
      *to = call.accumulate ? *to + total : total;
    }
}

// All rows of A against `cols` weight rows, which stay in the cache between the passes.
PLUMBLINE_INLINE void dot_columns(const GemmCall& call, int64_t j, int cols, bool bf16) {
  int64_t i = 0;
  for (; i + kDotRows <= call.M; i += kDotRows) dot_block(call, i, kDotRows, j, cols, bf16);
#if PLUMBLINE_LANES >= 8
  if (call.M - i == 3) dot_block(call, i, 3, j, cols, bf16);
  if (call.M - i == 2) dot_block(call, i, 2, j, cols, bf16);
#endif
  if (call.M - i == 1) dot_block(call, i, 1, j, cols, bf16);
}

PLUMBLINE_INLINE void dot_all(const GemmCall& call, bool bf16) {
  int64_t j = 0;
  if (call.M == 1) {
    for (; j + kDotColsOne <= call.N; j += kDotColsOne) dot_block(call, 0, 1, j, kDotColsOne, bf16);
  } else if (call.M == 2) {
    for (; j + kDotColsTwo <= call.N; j += kDotColsTwo) dot_block(call, 0, 2, j, kDotColsTwo, bf16);
  } else {
    for (; j + kDotCols <= call.N; j += kDotCols) dot_columns(call, j, kDotCols, bf16);
  }
  for (; j < call.N; ++j) dot_columns(call, j, 1, bf16);
}

static void dot_f32(const GemmCall& call) { dot_all(call, false); }
static void dot_bf16(const GemmCall& call) { dot_all(call, true); }

// c[i .. i+rows, j .. j+kLanes) += a[i .. i+rows, k .. k+depth) * weight rows k .. k+depth
PLUMBLINE_INLINE void sum_step(const GemmCall& call, int64_t i, int rows, int64_t k, int depth, int64_t j, bool bf16) {
  const float* const a = call.a + i * call.a_row + k;
  float* const c = call.c + i * call.ldc + j;
  vec sum[kSumRows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sum[r] = load(c + r * call.ldc);
#pragma GCC unroll 8
  for (int d = 0; d < depth; ++d) {
    const vec w = load_weight(call.b, (k + d) * call.b_row + j, bf16);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sum[r] = fma(splat(a[r * call.a_row + d]), w, sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) store(c + r * call.ldc, sum[r]);
}

// The same over all columns. The first rows of c fetch the weight rows that come next.
PLUMBLINE_INLINE void sum_columns(const GemmCall& call, int64_t i, int rows, int64_t k, int depth, bool bf16) {
  const int64_t element = bf16 ? 2 : 4;
  const int line = (int)(64 / element);
  int64_t j = 0;
  for (; j + line <= call.N; j += line) {
    if (i == 0)
#pragma GCC unroll 8
      for (int d = 0; d < depth; ++d) __builtin_prefetch((const char*)call.b + ((k + depth + d) * call.b_row + j) * element);
#pragma GCC unroll 8
    for (int u = 0; u < line; u += kLanes) sum_step(call, i, rows, k, depth, j + u, bf16);
  }
  for (; j + kLanes <= call.N; j += kLanes) sum_step(call, i, rows, k, depth, j, bf16);
  for (; j < call.N; ++j)
    for (int r = 0; r < rows; ++r) {
      vec sum = splat(call.c[(i + r) * call.ldc + j]);  // a vector, so that a column's bits do not depend on the cut
      for (int d = 0; d < depth; ++d)
        sum = fma(splat(call.a[(i + r) * call.a_row + k + d]), splat(load_one_weight(call.b, (k + d) * call.b_row + j, bf16)), sum);
      call.c[(i + r) * call.ldc + j] = sum[0];
    }
}

PLUMBLINE_INLINE void sum_rows(const GemmCall& call, int64_t k, int depth, bool bf16) {
  int64_t i = 0;
  for (; i + kSumRows <= call.M; i += kSumRows) sum_columns(call, i, kSumRows, k, depth, bf16);
  if (call.M - i == 3) sum_columns(call, i, 3, k, depth, bf16);
  if (call.M - i == 2) sum_columns(call, i, 2, k, depth, bf16);
  if (call.M - i == 1) sum_columns(call, i, 1, k, depth, bf16);
}

PLUMBLINE_INLINE void sum_all(const GemmCall& call, bool bf16) {
  int64_t k = 0;
  for (; k + kSumDepth <= call.K; k += kSumDepth) sum_rows(call, k, kSumDepth, bf16);
  for (; k < call.K; ++k) sum_rows(call, k, 1, bf16);
}

static void sum_f32(const GemmCall& call) { sum_all(call, false); }
static void sum_bf16(const GemmCall& call) { sum_all(call, true); }
