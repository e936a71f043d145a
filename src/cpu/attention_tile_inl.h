// Building blocks of the attention kernels: a register-blocked product of small tiles, loads of rows into tiles.
//   C[M, N] (+)= A[M, depth] B[depth, N]: one element of A is broadcast over kColumns columns of B held in two vectors.
// Accumulators run over depth in order, one chain per element: the same tile gives the same bits wherever it is computed.
static constexpr int kColumns = 2 * kLanes;                                     // width of the micro-kernel
static constexpr int kRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;           // height: 2 * kRows accumulators + 3 fit the registers

// A: element (m, k) at data + m * row + k * col, so that a transposed operand costs nothing.
struct Operand {
  const float* data;
  int64_t row, col;
};

template <int kHeight>
static __attribute__((noinline)) void micro_kernel(Operand a, const float* b, int64_t b_stride, int64_t depth, float* c,
                                                   int64_t c_stride, bool accumulate) {
  vec low[kHeight], high[kHeight];
#pragma GCC unroll 12
  for (int m = 0; m < kHeight; ++m) low[m] = high[m] = vec{};
  for (int64_t k = 0; k < depth; ++k) {
    const vec b_low = load(b), b_high = load(b + kLanes);
#pragma GCC unroll 12
    for (int m = 0; m < kHeight; ++m) {
      const vec x = splat(a.data[m * a.row]);
      low[m] = fma(x, b_low, low[m]);
      high[m] = fma(x, b_high, high[m]);
    }
    a.data += a.col;
    b += b_stride;
  }
#pragma GCC unroll 12
  for (int m = 0; m < kHeight; ++m) {
    float* row = c + m * c_stride;
    store(row, accumulate ? load(row) + low[m] : low[m]);
    store(row + kLanes, accumulate ? load(row + kLanes) + high[m] : high[m]);
  }
}

static void micro_kernel_tail(int64_t height, Operand a, const float* b, int64_t b_stride, int64_t depth, float* c, int64_t c_stride,
                              bool accumulate) {
  switch (height) {
    case 1: return micro_kernel<1>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 2: return micro_kernel<2>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 3: return micro_kernel<3>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 4: return micro_kernel<4>(a, b, b_stride, depth, c, c_stride, accumulate);
#if PLUMBLINE_LANES >= 8
    case 5: return micro_kernel<5>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 6: return micro_kernel<6>(a, b, b_stride, depth, c, c_stride, accumulate);
#endif
#if PLUMBLINE_LANES == 16
    case 7: return micro_kernel<7>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 8: return micro_kernel<8>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 9: return micro_kernel<9>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 10: return micro_kernel<10>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 11: return micro_kernel<11>(a, b, b_stride, depth, c, c_stride, accumulate);
#endif
    default: return micro_kernel<kRows>(a, b, b_stride, depth, c, c_stride, accumulate);
  }
}

// Rows and keys of one tile of scores; `first_row` and `visible` are local to it.
struct ScoreTile {
  const AttentionSlice* slice;
  const AttentionRow* row;  // of its first row
  int64_t row_begin, rows, key_begin, keys;
  int64_t visible(int64_t m) const { return clamp(row[m].visible - key_begin, keys); }
  int64_t first_row(int64_t key) const { return clamp(slice->first_row(key_begin + key) - row_begin, rows); }
  static int64_t clamp(int64_t value, int64_t limit) { return value < 0 ? 0 : value > limit ? limit : value; }
  // First row of the micro-kernel in which any row sees this key or a later one.
  int64_t first_micro_row(int64_t key) const { return first_row(key) / kRows * kRows; }
};

// scores[rows, keys] = x[rows, d] y_transposed[d, keys]; groups of rows and keys that do not meet are left as they are.
static void score_product(const ScoreTile& tile, const float* x, int64_t x_stride, const float* y_transposed, float* scores) {
  const int64_t d = tile.slice->d;
  for (int64_t n = 0; n < tile.keys; n += kColumns) {
    for (int64_t m = tile.first_micro_row(n); m < tile.rows; m += kRows)
      micro_kernel_tail(tile.rows - m < kRows ? tile.rows - m : kRows, {x + m * x_stride, x_stride, 1}, y_transposed + n, kScoreStride, d,
                        scores + m * kScoreStride + n, kScoreStride, false);
  }
}

// y[rows, d] (+)= weights[rows, keys] x[keys, d], from row `begin` (a multiple of kRows) on.
static void row_product(const ScoreTile& tile, int64_t begin, const float* weights, const float* x, float* y, int64_t stride,
                        bool accumulate) {
  for (int64_t n = 0; n < tile.slice->d; n += kColumns) {
    for (int64_t m = begin; m < tile.rows; m += kRows) {
      const int64_t height = tile.rows - m < kRows ? tile.rows - m : kRows;
      micro_kernel_tail(height, {weights + m * kScoreStride, kScoreStride, 1}, x + n, stride, tile.visible(m + height - 1),
                        y + m * stride + n, stride, accumulate);
    }
  }
}

// to[0 .. d) = from * factor, zeros up to the width that the micro-kernel reads.
PLUMBLINE_INLINE void load_row(const float* from, int64_t d, float factor, float* to) {
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) store(to + j, load(from + j) * factor);
  for (; j < d; ++j) to[j] = from[j] * factor;
  for (; j % kColumns != 0; ++j) to[j] = 0.0f;
}

// to[j, i] = rows[i][j] for i < count, j < d; zeros up to a multiple of kColumns in i. 4x4 blocks in 128-bit registers.
static void load_transposed(const float* const* rows, int64_t count, int64_t d, float* to) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    int64_t j = 0;
    for (; j + 4 <= d; j += 4) {
      quad x[4];
      for (int n = 0; n < 4; ++n) std::memcpy(&x[n], rows[i + n] + j, 16);
      const quad low_a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5), high_a = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const quad low_b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5), high_b = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      const quad y[4] = {__builtin_shufflevector(low_a, low_b, 0, 1, 4, 5), __builtin_shufflevector(low_a, low_b, 2, 3, 6, 7),
                         __builtin_shufflevector(high_a, high_b, 0, 1, 4, 5), __builtin_shufflevector(high_a, high_b, 2, 3, 6, 7)};
      for (int n = 0; n < 4; ++n) std::memcpy(to + (j + n) * kScoreStride + i, &y[n], 16);
    }
    for (; j < d; ++j)
      for (int n = 0; n < 4; ++n) to[j * kScoreStride + i + n] = rows[i + n][j];
  }
  for (; i < count || i % kColumns != 0; ++i)
    for (int64_t j = 0; j < d; ++j) to[j * kScoreStride + i] = i < count ? rows[i][j] : 0.0f;
}

// max_lanes by halves.
PLUMBLINE_INLINE float peak_lanes(vec v) {
#if PLUMBLINE_LANES == 16
  v = max(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = max(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
#elif PLUMBLINE_LANES == 8
  v = max(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
#else
  v = max(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
#endif
  return v[0] > v[1] ? v[0] : v[1];
}

PLUMBLINE_INLINE void zero_floats(float* p, int64_t count) { std::memset(p, 0, count * sizeof(float)); }
